"""Concept latents: JumpReLU latents fitted with labels and appended to an SAE."""
