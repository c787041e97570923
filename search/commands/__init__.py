"""The verbs of `pgolf`, one file each."""
