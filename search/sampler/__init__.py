"""Ask for points and tell results: the only folder that talks to Optuna."""
