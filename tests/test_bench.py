"""``python -m ctflow.bench`` at sizes that take a second."""

import json

from ctflow.bench import main

FMVT = "{input_size: [16, 4, 4], latent_channels: 16, hidden_size: 16, depth: 1, num_heads: 2, text_dim: 8}"


def test_every_stage_is_timed_in_every_precision(tmp_path):
    sizes = ["image_size=32", "slices=2", "batch_size=1", "steps=1", "repeats=1", f"fmvt={FMVT}"]
    network = ["avae_channels=[8,8,16,16]", "avae_groups=4", "precisions=[fp32,bf16]"]
    assert main([*sizes, *network, f"output={tmp_path / 'bench.json'}"]) == 0
    result = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert len(result["stages"]) == 10 and all(stage["seconds"] >= 0 for stage in result["stages"])
    assert {stage["precision"] for stage in result["stages"]} == {"fp32", "bf16"}
