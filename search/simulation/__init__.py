"""Engine 3: trials are calls of a Python function, in simulated time."""
