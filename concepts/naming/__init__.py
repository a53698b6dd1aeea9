"""Names for latents."""
