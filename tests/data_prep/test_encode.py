"""``data_prep.encode``: what the latents are, resuming, and the same bytes on any number of ranks."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_system import BERT, CTVIT

from ctflow.checkpoint import folder_fingerprint, load_avae, load_text_encoder, save_avae, save_ctclip
from ctflow.config.encoders import AVAEConfig, CTCLIPConfig, VolumeGrid
from ctflow.data import LatentShards, SliceRecord, SliceShards, SliceShardWriter
from ctflow.data.verify import verify_folder
from ctflow.errors import ConfigError, ShardError, WeightsError
from ctflow.models import AVAE, CTCLIP, train_wordpiece
from ctflow.parts import Part
from ctflow.training.parts import matching_avae, matching_clip
from ctflow.whitening import Whitening
from data_prep import check, encode

LENGTHS = [5, 11, 16, 9, 3]
REPORTS = [f"Nodule of {i} mm in the left lung. {'No effusion. ' * i}" for i in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Slice shards, an A-VAE and a text tower, all tiny."""
    root = tmp_path_factory.mktemp("encode")
    rng = np.random.default_rng(0)
    with SliceShardWriter(root / "slices", volumes_per_shard=2) as writer:
        for i, slices in enumerate(LENGTHS):
            hu = rng.integers(-1000, 1000, (slices, 32, 32)).astype(np.int16)
            spacing = (4.0, 2.0, 2.0)
            writer.append(SliceRecord(f"case_{i}", f"p{i}", hu, spacing, REPORTS[i], {"Lung nodule": 1}))
    torch.manual_seed(0)
    config = AVAEConfig(
        block_out_channels=[8, 8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        whitening=Whitening([0.1, 0.0, 0.2, 0.0], [1.0, 2.0, 1.0, 0.5]),
    )
    save_avae(root / "avae", AVAE(config))
    ctvit = replace(CTVIT, quantize=True, codebook_size=8)
    grid = VolumeGrid(shape=[8, 16, 16], spacing_mm=[8.0, 8.0, 8.0])
    clip = CTCLIP(CTCLIPConfig(bert=BERT, ctvit=ctvit, grid=grid, dim_latent=8, max_tokens=24))
    save_ctclip(root / "clip", clip, train_wordpiece(REPORTS, 100, 24))
    return root


def arguments(root: Path, output: Path, **settings: object) -> list[str]:
    keys = {"avae": root / "avae", "clip": root / "clip", "source": root / "slices", "output": output}
    keys |= {"batch_slices": 4, "accelerator": "cpu", **settings}
    return [f"{key}={value}" for key, value in keys.items()]


FOREIGN = "Göğüs duvarında belirgin yumuşak doku kalınlaşması izlenmiştir."


def shards_of_reports(folder: Path, reports: list[str]) -> None:
    """Slice shards of one small case a report."""
    with SliceShardWriter(folder, volumes_per_shard=2) as writer:
        for i, report in enumerate(reports):
            hu = np.full((3, 32, 32), i, dtype=np.int16)
            writer.append(SliceRecord(f"case_{i}", f"p{i}", hu, (4.0, 2.0, 2.0), report, {}))


def test_single_unknown_reports_are_named_and_encoded(root, tmp_path, caplog):
    shards_of_reports(tmp_path / "slices", [REPORTS[0], FOREIGN])
    with caplog.at_level(logging.WARNING):
        assert encode.main(arguments(root, tmp_path / "latents", source=tmp_path / "slices")) == 0
    assert "1 of 2 reports have more than 60% words" in caplog.text and "does not know: case_1" in caplog.text
    assert len(LatentShards(tmp_path / "latents")) == 2


def test_a_whole_checkpoint_stands_for_its_parts(root, tmp_path):
    assert encode.main(arguments(root, tmp_path / "latents", avae=root, clip=root)) == 0
    header = LatentShards(tmp_path / "latents").header
    assert header.text_fingerprint == folder_fingerprint(root / "clip")
    for match, part in ((matching_clip, "clip"), (matching_avae, "avae")):
        for given in (root, root / part):
            assert match(tmp_path / "runs", header, given=str(given)) == root / part


def test_a_data_set_in_another_language_is_refused(root, tmp_path):
    shards_of_reports(tmp_path / "slices", [REPORTS[0], FOREIGN, FOREIGN])
    asked = arguments(root, tmp_path / "latents", source=tmp_path / "slices")
    with pytest.raises(ShardError, match="2 of 3 reports"):
        encode.main(asked)
    assert encode.main([*asked, "max_unknown=1"]) == 0


@pytest.fixture(scope="module")
def encoded(root) -> Path:
    assert encode.main(arguments(root, root / "latents")) == 0
    return root / "latents"


def test_latents_are_the_avaes_posteriors_of_the_slices(root, encoded):
    shards, slices, avae = LatentShards(encoded), SliceShards(root / "slices"), load_avae(root / "avae")
    assert [case.slices for case in shards.cases] == LENGTHS
    with torch.no_grad():
        for i in range(len(shards)):
            posterior = avae.encode_hu(torch.from_numpy(slices.hu(i)).float())
            record = shards.record(i)
            np.testing.assert_allclose(record.mean, posterior.mean, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(record.logvar, posterior.logvar, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(shards.air(), avae.air_latent(32), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shards.white(), avae.white_latent(32), rtol=1e-4, atol=1e-5)
    header = shards.header
    assert header.avae_fingerprint == avae.fingerprint() and header.whitening == avae.config.whitening
    assert header.hu_window == (-1000.0, 1000.0)


def test_texts_are_the_encoders_and_padding_is_not_stored(root, encoded):
    shards, text_encoder = LatentShards(encoded), load_text_encoder(root / "clip")
    embedding = text_encoder.encode(REPORTS)
    lengths = embedding.mask.sum(1).tolist()
    assert [case.tokens for case in shards.cases] == lengths and len(set(lengths)) > 1
    for i, real in enumerate(lengths):
        record = shards.record(i)
        np.testing.assert_allclose(record.text, embedding.tokens[i, :real], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(record.pooled, embedding.pooled[i], rtol=1e-4, atol=1e-5)
        assert record.text_mask.all() and record.report == REPORTS[i]
        assert (record.case_id, record.labels, record.spacing) == (
            f"case_{i}",
            {"Lung nodule": 1},
            (4.0, 2.0, 2.0),
        )


def same_bytes(one: Path, other: Path) -> None:
    names = [f"shard-{i:05d}.h5" for i in range(3)] + ["manifest.jsonl"]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_stopped_in_mid_shard_goes_on_and_gives_the_same_bytes(root, encoded, tmp_path, monkeypatch):
    written = []
    append = encode.LatentShardWriter.append

    def stop_at_fourth(writer, record):
        append(writer, record)
        written.append(record.case_id)
        if len(written) == 4:
            raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(encode.LatentShardWriter, "append", stop_at_fourth)
        with pytest.raises(RuntimeError, match="stop"):
            encode.main(arguments(root, tmp_path))
    assert [case.case_id for case in LatentShards(tmp_path).cases] == ["case_0", "case_1"]
    modified = (tmp_path / "shard-00000.h5").stat().st_mtime_ns
    encode.main(arguments(root, tmp_path))
    assert (tmp_path / "shard-00000.h5").stat().st_mtime_ns == modified, (
        "complete shards are not written again"
    )
    same_bytes(encoded, tmp_path)
    assert verify_folder(tmp_path) == []


def test_ranks_take_whole_shards_and_leave_none_out(root):
    source = SliceShards(root / "slices")
    a, b, c = (f"shard-0000{i}.h5" for i in range(3))
    shards = {a: range(2), b: range(2, 4), c: range(4, 5)}
    loaders = [encode.EncodeLoader(source, shards, {c}, 4, Part(rank, 2)) for rank in (0, 1)]
    assert [list(loader.shards) for loader in loaders] == [[a], [b]]
    batches = list(loaders[0])
    assert len(batches) == len(loaders[0]) == 2 + 3
    assert [(b.case, len(b.hu), b.ends_case, b.ends_shard) for b in batches] == [
        (0, 4, False, False),
        (0, 1, True, False),
        (1, 4, False, False),
        (1, 4, False, False),
        (1, 3, True, True),
    ]


def test_an_output_of_other_weights_or_settings_is_refused(root, encoded, tmp_path):
    save_avae(tmp_path / "avae", AVAE(load_avae(root / "avae").config))
    with pytest.raises(ShardError, match="avae_fingerprint"):
        encode.main(arguments(root, encoded, avae=tmp_path / "avae"))
    with pytest.raises(ShardError, match="provenance"):
        encode.main(arguments(root, encoded, batch_slices=8))
    with pytest.raises(ShardError, match="no slice shards"):
        encode.main(arguments(root, encoded, source=tmp_path))
    with pytest.raises(WeightsError):
        encode.main(arguments(root, encoded, clip=tmp_path))
    with pytest.raises(ConfigError, match="fp16"):
        encode.main(arguments(root, encoded, precision="fp16"))


def test_every_split_is_encoded_with_the_newest_networks_by_name(
    root, encoded, tmp_path, monkeypatch, caplog
):
    """As README types it: no argument but sizes; what is taken is said, and why."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid"):
        shutil.copytree(root / "slices", tmp_path / "runs" / "shards" / "slices" / split)
    shutil.copytree(root / "avae", tmp_path / "runs" / "autoencoder" / "mine" / "export")
    (tmp_path / "runs" / "clip" / "cut").mkdir(parents=True)
    (tmp_path / "runs" / "clip" / "cut" / "config.yaml").touch()
    with caplog.at_level(logging.INFO):
        assert encode.main(["batch_slices=4", "accelerator=cpu"]) == 0
    assert "A-VAE: runs/autoencoder/mine/export (the newest run under runs/autoencoder)" in caplog.text
    assert "(embedded: no exported run under runs/clip; cut not exported yet" in caplog.text
    for split in ("train", "valid"):
        shards = LatentShards(tmp_path / "runs" / "shards" / "latents" / split)
        assert [case.slices for case in shards.cases] == LENGTHS
        assert shards.header.avae_fingerprint == load_avae(root / "avae").fingerprint()


def test_an_output_of_other_slices_is_refused(root, encoded, tmp_path):
    with SliceShardWriter(tmp_path) as writer:
        writer.append(SliceRecord("other", "p", np.zeros((4, 32, 32), np.int16), (4.0, 2.0, 2.0), REPORTS[0]))
    with pytest.raises(ShardError, match="was not made from"):
        encode.main(arguments(root, encoded, source=tmp_path))


def test_measured_whitening_gives_unit_variance_and_an_avae_that_decodes_it(root, tmp_path, caplog):
    output, avae = tmp_path / "latents", tmp_path / "avae"
    encode.main(arguments(root, output, whitening="measured", avae_output=avae))
    shards = LatentShards(output)
    assert load_avae(avae).config.whitening == shards.header.whitening
    z = [shards.sample(i, 0, n, torch.Generator().manual_seed(i)) for i, n in enumerate(LENGTHS)]
    z = torch.cat(z, dim=1)
    torch.testing.assert_close(z.mean(dim=(1, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(z.std(dim=(1, 2, 3)), torch.ones(4), rtol=0.1, atol=0)
    with caplog.at_level(logging.INFO):
        encode.main(arguments(root, output, whitening="measured", avae_output=avae))
    assert "whitening taken from" in caplog.text


def test_reports_alone_are_encoded_where_posteriors_are_taken_over(root, encoded, tmp_path):
    clip = load_text_encoder(root / "clip")
    with torch.no_grad():
        for parameter in clip.clip.parameters():
            parameter.mul_(1.1)
    save_ctclip(tmp_path / "clip", clip.clip, clip.tokenizer)
    encode.main(arguments(root, tmp_path / "whole", clip=tmp_path / "clip"))
    encode.main(arguments(root, tmp_path / "text", clip=tmp_path / "clip", posteriors=encoded))
    shards = sorted(p.name for p in (tmp_path / "whole").glob("*.h5"))
    assert len(shards) == 3
    for name in shards:
        assert (tmp_path / "text" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    old, new = LatentShards(encoded), LatentShards(tmp_path / "text")
    assert (old.posterior(1)[0] == new.posterior(1)[0]).all() and (old.text(1)[0] != new.text(1)[0]).any()
    other = AVAE(load_avae(root / "avae").config)
    save_avae(tmp_path / "avae", other)
    with pytest.raises(ShardError, match="avae_fingerprint"):
        encode.main(arguments(root, tmp_path / "no", avae=tmp_path / "avae", posteriors=encoded))


def test_bf16_stays_near_fp32(root, encoded, tmp_path):
    encode.main(arguments(root, tmp_path, precision="bf16"))
    exact, rounded = (LatentShards(folder).whitened(2) for folder in (encoded, tmp_path))
    error = float((exact - rounded).norm() / exact.norm())
    assert 0 < error < 0.03


def test_parts_of_a_scheduler_write_the_bytes_of_one_run_and_check_names_the_lost_one(
    root, encoded, tmp_path, monkeypatch, caplog
):
    """``srun`` starts three processes, the second is lost; nothing says so but the check."""
    for rank in (0, 2):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_NTASKS", "3")
        assert encode.main(arguments(root, tmp_path)) == 0
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.delenv("SLURM_NTASKS")
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == ["shard-00000.h5", "shard-00002.h5"]
    assert check.main([str(tmp_path)]) == 1
    assert "part 1 of 3 never ran: 1 shards are not done; run it again with part=1 parts=3" in caplog.text
    assert encode.main(arguments(root, tmp_path, part=1, parts=3)) == 0
    same_bytes(encoded, tmp_path)
    assert check.main([str(tmp_path)]) == 0
    with pytest.raises(ConfigError, match="one A-VAE for all parts"):
        measured = {"whitening": "measured", "avae_output": tmp_path / "avae"}
        encode.main(arguments(root, tmp_path / "m", part=0, parts=2, **measured))


@pytest.mark.slow
def test_two_real_processes_write_the_bytes_of_one_also_when_killed(root, encoded, tmp_path):
    command = [sys.executable, "-m", "data_prep.encode", *arguments(root, tmp_path, devices=2)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, start_new_session=True, env=environment)
    try:
        while first.poll() is None and not (tmp_path / "manifest.jsonl").is_file():
            try:
                first.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(30)
    subprocess.run(command, check=True, timeout=400, env=environment)
    same_bytes(encoded, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(2, 1500), (1500, 2)])
def test_two_processes_end_together(root, tmp_path, lengths):
    with SliceShardWriter(tmp_path / "slices", volumes_per_shard=1) as writer:
        for i, slices in enumerate(lengths):
            hu = np.zeros((slices, 32, 32), dtype=np.int16)
            writer.append(SliceRecord(f"case_{i}", f"p{i}", hu, (4.0, 2.0, 2.0), REPORTS[i], {}))
    latents = tmp_path / "latents"
    own = arguments(root, latents, source=tmp_path / "slices", devices=2)
    command = [sys.executable, "-m", "data_prep.encode", *own]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    long_one = f"shard-{lengths.index(1500):05d}.h5"
    for complete in (0, 1):
        ended = subprocess.run(
            command, check=False, timeout=400, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert f"{complete} of 2 shards" in ended.stderr
        assert f"2 cases of {latents} are encoded" in ended.stderr
        assert "not done" not in ended.stderr and "terminate called" not in ended.stderr
        # The second run has work for one process alone.
        (latents / long_one).unlink()
        lines = (latents / "manifest.jsonl").read_text().splitlines(keepends=True)
        (latents / "manifest.jsonl").write_text("".join(line for line in lines if long_one not in line))
