"""Before anything is paid for: what a study costs, what could waste it."""
