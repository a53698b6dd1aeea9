"""The training loop: start, stages, optimizer, resumable state, model card."""
