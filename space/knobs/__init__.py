"""Groups of knobs, and the configuration fields that each group sets."""
