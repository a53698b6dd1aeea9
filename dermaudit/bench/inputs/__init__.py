"""What a benchmark asks: captions, concepts, prompts, saved predictions."""
