"""Small integers to bytes and back: entropy coder and container."""
