"""Datasets: build, fetch and check shards and tokenizers."""
