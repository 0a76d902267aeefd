"""Block rollout, stop rule and guidance; tensors only, no files."""
