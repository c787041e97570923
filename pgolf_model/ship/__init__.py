"""One checkpoint at any byte target: calibrate, allocate, solve, pack."""
