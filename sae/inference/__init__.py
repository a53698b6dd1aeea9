"""An SAE in use: encoding, codes of a data set, and the latent suppressor."""
