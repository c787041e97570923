"""What a study found and where it stands, as values."""
