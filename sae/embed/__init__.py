"""The `embed` stage: activations of images at the sites of a tower, shard by shard."""
