"""One trial at one rung: its spec, its result, and the process that turns one into the other."""
