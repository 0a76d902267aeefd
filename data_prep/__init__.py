"""Preparation of volumes, reports and latents into shards (commands under ``python -m data_prep.*``)."""
