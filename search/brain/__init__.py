"""What to run next and what a result means: the driver, the makers, the first points."""
