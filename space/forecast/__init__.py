"""Bytes, seconds, memory and dollars of a run before it starts."""
