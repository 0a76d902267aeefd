"""Networks: the FMvT, the A-VAE and CT-CLIP. Plain PyTorch; no Lightning, no files."""
