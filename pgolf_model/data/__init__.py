"""Token shards, their windows and bytes, and batches made of them."""
