"""The submission folder: exported and verified."""
