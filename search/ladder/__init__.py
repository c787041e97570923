"""Rules over finished trials as pure functions: promote, trust, race, suspect, budget, retry."""
