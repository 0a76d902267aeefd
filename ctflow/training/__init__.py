"""LightningModules of the A-VAE, the embedded pair and the FMvT, and their callbacks."""
