"""Inputs of a benchmark: captions, concepts, prompts, saved predictions."""
