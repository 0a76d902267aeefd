"""Shards, their schema, the streams over them and the one LightningDataModule."""
