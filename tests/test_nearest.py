"""Retrieved start: which case is taken, what is given, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.data import LatentHeader, LatentRecord, LatentShards, LatentShardWriter
from ctflow.data.nifti import read_nifti
from ctflow.errors import CTFlowError
from ctflow.generate import main
from ctflow.nearest import StartShards
from ctflow.pipeline import CTFlow, GenerationRequest

REPORTS = [
    "Small right pleural effusion.",
    "A nodule of 8 mm in the left upper lobe.",
    "The heart is enlarged.",
]
SLICES = 24


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> CTFlow:
    return CTFlow.from_pretrained(tiny_checkpoint, device="cpu")


def write_shards(folder: Path, model: CTFlow, fingerprint: str = "") -> Path:
    """A case for each report, encoded by the model."""
    rng = np.random.default_rng(0)
    side = model.system.config.image_size
    whitening = model.avae.config.whitening
    air, white = (np.zeros((4, 4, 4), np.float32) for _ in "ab")
    header = LatentHeader(
        fingerprint or model.avae.fingerprint(), "text", whitening, air, white, (-1000.0, 1000.0), {}
    )
    embedded = model.text_encoder.encode(REPORTS)
    writer = LatentShardWriter(folder, header)
    writer.begin("shard-00000.h5")
    for i, report in enumerate(REPORTS):
        hu = torch.from_numpy(rng.uniform(-1000, 1000, (SLICES, side, side)).astype(np.float32))
        mean = model.avae.encode_hu(hu).mean.detach().numpy().astype(np.float16)
        record = LatentRecord(
            case_id=f"case_{i}",
            patient_id=f"patient_{i}",
            mean=mean,
            logvar=np.full_like(mean, -20),
            spacing=(4.0, 9.0, 9.0),
            text=embedded.tokens[i].numpy().astype(np.float16),
            text_mask=embedded.mask[i].numpy(),
            pooled=embedded.pooled[i].numpy(),
            report=report,
        )
        writer.append(record)
    writer.finish()
    return folder


@pytest.fixture
def shards(tmp_path, model) -> Path:
    return write_shards(tmp_path / "shards", model)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_the_case_with_the_same_report_is_the_nearest(wanted, shards, model):
    request = GenerationRequest(REPORTS[wanted])
    own, start, given = StartShards(shards, model).nearest(request)
    assert start.case_id == f"case_{wanted}" and start.similarity == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(given, LatentShards(shards).whitened(wanted)[:, :16])
    assert (own.z_spacing, own.pixel_spacing) == (4.0, 9.0)


def test_the_volume_starts_with_it_and_says_so(shards, model, tiny_checkpoint, tmp_path):
    out = tmp_path / "ct.nii.gz"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--report", REPORTS[1], "--output", str(out)]
    assert main([*arguments, "--slices", "24", "--start", f"nearest:{shards}", "device=cpu"]) == 0
    record = json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))
    assert record["start"]["case_id"] == "case_1" and record["given_slices"] == 16
    assert np.isfinite(record["start"]["likeness"])
    given = model.generator().decode(LatentShards(shards).whitened(1)[:, :16])
    np.testing.assert_allclose(read_nifti(out).hu[:16], np.rint(given), atol=1)
    made = out.stat().st_mtime_ns
    assert main([*arguments, "--slices", "24", "--start", f"nearest:{shards}", "device=cpu"]) == 0
    assert out.stat().st_mtime_ns == made
    assert main([*arguments, "--slices", "24", "device=cpu"]) == 0
    assert "start" not in json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))


def test_a_repeated_case_is_recognised(shards, model, monkeypatch):
    source = StartShards(shards, model)
    request, start, _ = source.nearest(GenerationRequest(REPORTS[0], slices=SLICES))
    (result,) = model.generate_many([request])

    def likeness(latents: torch.Tensor) -> float:
        monkeypatch.setattr(
            model, "encode", lambda hu: latents
        )  # a random A-VAE does not encode its own output
        return source.told(result, start).provenance["start"]["likeness"]

    shards_of = LatentShards(shards)
    assert likeness(shards_of.whitened(0)) == 0
    assert likeness(shards_of.whitened(1)) > 1
    generator = torch.Generator().manual_seed(0)
    assert 0.7 < likeness(3 * torch.randn(shards_of.whitened(0).shape, generator=generator)) < 1.4


def test_wrong_shards_and_spacings_are_refused(tmp_path, shards, model, tiny_checkpoint):
    with pytest.raises(CTFlowError, match="latents of the A-VAE other"):
        StartShards(write_shards(tmp_path / "other", model, "other"), model)
    with pytest.raises(CTFlowError, match=r"no case of .* has a spacing of 2"):
        StartShards(shards, model).nearest(GenerationRequest(REPORTS[0], z_spacing=2.0))
    with pytest.raises(CTFlowError, match="start is nearest:FOLDER"):
        main(["--checkpoint", str(tiny_checkpoint), "--report", REPORTS[0], "--start", "closest:x"])
