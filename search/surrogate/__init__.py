"""The model over configurations and rungs; no Optuna in it."""
