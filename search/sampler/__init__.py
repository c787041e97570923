"""Ask and tell: the only room that talks to Optuna."""
