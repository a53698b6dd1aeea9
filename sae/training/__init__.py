"""SAE training with sparse kernels, resumable, several seeds in one pass."""
