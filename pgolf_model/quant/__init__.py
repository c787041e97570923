"""Float weights to small integers and back."""
