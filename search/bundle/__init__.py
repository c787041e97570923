"""`pgolf_model` as one self-extracting script."""
