"""The page of bits per byte against bytes, its figures, and its main figure as a picture."""
