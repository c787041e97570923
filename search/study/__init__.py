"""A study's files: settings, frozen settings, trial folders, journal, lock."""
