"""From a model name to a loaded tower: names, hubs, weights, tokenizers, checkpoints."""
