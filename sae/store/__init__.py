"""Activation stores: memory-mapped embeddings of one site, read in batches."""
