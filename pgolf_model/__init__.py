"""What ships: the model, its training, its codec and its score, inlined into one `train_gpt.py`."""
