"""The results and the state of a study, as values."""
