"""Shards, their schema, the streams over them and the one LightningDataModule."""

from ctflow.data.batches import BlockBatch, SliceBatch, VolumeBatch
from ctflow.data.datamodule import LatentDataModule
from ctflow.data.manifest import read_manifest, shards_to_encode
from ctflow.data.reader import LatentShards, SliceShards, padded_slices
from ctflow.data.records import CaseEntry, LatentHeader, LatentRecord, ShardEntry, SliceRecord
from ctflow.data.writer import LatentShardWriter, SliceShardWriter

__all__ = [
    "BlockBatch",
    "CaseEntry",
    "LatentDataModule",
    "LatentHeader",
    "LatentRecord",
    "LatentShardWriter",
    "LatentShards",
    "ShardEntry",
    "SliceBatch",
    "SliceRecord",
    "SliceShardWriter",
    "SliceShards",
    "VolumeBatch",
    "padded_slices",
    "read_manifest",
    "shards_to_encode",
]
