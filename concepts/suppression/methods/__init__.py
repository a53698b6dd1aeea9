"""Methods that choose the latents to suppress: one file each, found by the registry."""
