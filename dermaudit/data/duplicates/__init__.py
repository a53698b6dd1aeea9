"""Near-duplicate images, by perceptual hash and by embedding (`data dedup`)."""
