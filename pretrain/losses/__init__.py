"""The training losses: masked latent modelling, contrastive, MAKE."""
