"""Export a submission folder, and verify one."""
