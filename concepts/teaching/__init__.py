"""Teaching: a concept latent fitted with labels of the run, or with two folders of images."""
