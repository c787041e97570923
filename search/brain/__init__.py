"""Decides which trial runs next and takes in its result: the driver, the makers of trials, the starting points."""
