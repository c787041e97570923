"""The design space: parameter kinds, named spaces, presets, and sizes known before training."""
