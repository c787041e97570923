"""Before a study starts: its cost, and checks of machine and data."""
