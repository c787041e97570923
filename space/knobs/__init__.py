"""What can be asked: groups of knobs and the configuration fields that each sets."""
