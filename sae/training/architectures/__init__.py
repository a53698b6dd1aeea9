"""SAE architectures: one file each, found by the registry."""
