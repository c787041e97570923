"""The design space: kinds of parameters, named spaces, presets, forecasts of bytes and speed before training."""
