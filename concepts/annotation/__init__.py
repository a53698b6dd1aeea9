"""Latents against labels: the lift share."""
