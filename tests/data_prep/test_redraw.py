"""``data_prep.redraw``: what is drawn again, what stays, kills, and what a decoder reads of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_system import REPORTS, save_tiny_system

from ctflow.checkpoint import load_avae, load_system, save_avae, save_system
from ctflow.config.generation import RolloutConfig
from ctflow.data import LatentShards, LatentShardWriter, SliceRecord, SliceShards, SliceShardWriter
from ctflow.data.verify import verify_folder
from ctflow.data.views import SliceView
from ctflow.errors import CTFlowError, ShardError
from ctflow.generation import redraw as redraw_volume
from ctflow.train import main as train
from ctflow.whitening import Whitening
from data_prep import encode, redraw

LENGTHS = [5, 21, 16, 37]
SAMPLING = RolloutConfig(
    steps=4, solver="multistep", churn=0.5, churn_below=0.9, text_guidance=2.0, max_slices=64
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a whitening that is not the identity, slices and their latents."""
    root = tmp_path_factory.mktemp("redraw")
    system = load_system(save_tiny_system(root / "tiny"))
    config = replace(system.config, rollout=replace(SAMPLING, stop=system.config.rollout.stop))
    avae = system.avae.with_whitening(Whitening([0.1, 0.0, -0.2, 0.0], [1.5, 2.0, 1.0, 0.5]))
    save_system(root / "checkpoint", replace(system, config=config, avae=avae))
    rng = np.random.default_rng(0)
    with SliceShardWriter(root / "slices", volumes_per_shard=2) as writer:
        for i, slices in enumerate(LENGTHS):
            hu = rng.integers(-1000, 1000, (slices, 32, 32)).astype(np.int16)
            writer.append(SliceRecord(f"case_{i}", f"p{i}", hu, (4.0, 9.0, 9.0), REPORTS[i], {}))
    parts = [f"avae={root / 'checkpoint'}", f"clip={root / 'checkpoint'}", "accelerator=cpu"]
    assert encode.main([f"source={root / 'slices'}", f"output={root / 'latents'}", *parts]) == 0
    return root


def run(root: Path, output: Path, **settings: object) -> LatentShards:
    keys = {"checkpoint": root / "checkpoint", "source": root / "latents", "output": output, "device": "cpu"}
    keys |= {"most_steps": 2, **settings}
    assert redraw.main([f"{key}={value}" for key, value in keys.items()]) == 0
    return LatentShards(output)


def test_latents_change_with_the_steps_and_all_else_stays(root: Path, tmp_path: Path) -> None:
    source = LatentShards(root / "latents")
    drawn = {steps: run(root, tmp_path / str(steps), most_steps=steps) for steps in (1, 4)}
    for shards in drawn.values():
        assert not verify_folder(shards.folder)
        assert [case.case_id for case in shards.cases] == [case.case_id for case in source.cases]
        assert shards.header.avae_fingerprint == source.header.avae_fingerprint
        for i, slices in enumerate(LENGTHS):
            was, now = source.record(i), shards.record(i)
            assert now.slices == slices and (now.logvar == redraw.SURE).all()
            assert (now.report, now.spacing, now.patient_id) == (was.report, was.spacing, was.patient_id)
            np.testing.assert_array_equal(now.text, was.text)
    change = {
        steps: max(float((shards.whitened(i) - source.whitened(i)).square().mean()) for i in range(4))
        for steps, shards in drawn.items()
    }
    assert 0 < change[1] < change[4]


def test_a_volume_is_a_function_of_the_seed_and_its_name(root: Path, tmp_path: Path) -> None:
    whole, again = run(root, tmp_path / "whole"), run(root, tmp_path / "again")
    other = run(root, tmp_path / "other", seed=1)
    for part in (1, 0):
        parts = run(root, tmp_path / "parts", part=part, parts=2)
    for i in range(len(LENGTHS)):
        assert torch.equal(whole.whitened(i), again.whitened(i))
        assert torch.equal(whole.whitened(i), parts.whitened(parts.index(f"case_{i}")))
        assert not torch.allclose(whole.whitened(i), other.whitened(i), atol=1e-2)


def test_a_network_that_knows_the_data_gives_it_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact velocity of one volume every block comes back, whatever the noise: places fit."""
    system, source = load_system(root / "checkpoint"), LatentShards(root / "latents")
    latents, start, white = source.whitened(3), source.start_block(), source.white()
    end = white[:, None].expand(-1, 11, -1, -1)
    blocks = torch.stack(torch.cat([latents, end], dim=1).split(16, dim=1))
    seen = []

    def exact(z, t, conditions):
        seen.append(conditions)
        return (z - blocks) / t

    monkeypatch.setattr(system.fmvt, "forward", exact)
    text = tuple(torch.from_numpy(part) for part in source.text(3)[:2])
    noise = torch.randn(3, *blocks.shape, generator=torch.Generator().manual_seed(0))
    told = (text[0].float(), text[1])
    drawn = redraw_volume(system.fmvt, latents, start, white, told, (4.0, 9.0, 9.0), SAMPLING, 3, noise)
    torch.testing.assert_close(drawn, latents, rtol=1e-4, atol=1e-4)
    assert seen[0].position.tolist() == [0.0, 16.0, 32.0]
    assert torch.equal(seen[0].previous[0], start) and torch.equal(seen[0].previous[2], latents[:, 16:32])
    with pytest.raises(ValueError, match="4 steps, found 5"):
        redraw_volume(system.fmvt, latents, start, white, told, (4.0, 9.0, 9.0), SAMPLING, 5, noise)


def test_a_killed_run_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(root, tmp_path / "whole")
    append, calls = LatentShardWriter.append, []

    def killed(writer, record):
        calls.append(record.case_id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        append(writer, record)

    with monkeypatch.context() as patch:
        patch.setattr(LatentShardWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(root, tmp_path / "killed")
    assert len(LatentShards(tmp_path / "killed")) == 2
    assert not list((tmp_path / "killed").glob("*.partial"))
    went_on = run(root, tmp_path / "killed")
    for i in range(len(LENGTHS)):
        assert torch.equal(whole.whitened(i), went_on.whitened(i))


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    with pytest.raises(ShardError, match="has redrawn"):
        run(root, tmp_path / "out", seed=3)
    with pytest.raises(CTFlowError, match="most_steps=9"):
        run(root, tmp_path / "steps", most_steps=9)
    with pytest.raises(ShardError, match="whitening"):
        run(root, tmp_path / "tiny", checkpoint=root / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_slices_come_with_their_redrawn_latents(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "half", part=0, parts=2)
    half, slices = LatentShards(tmp_path / "half"), SliceShards(root / "slices")
    view = SliceView(slices, redrawn=half)
    batch = view.batch(range(len(view)), 0)
    assert batch.redrawn is not None and batch.redrawn.shape == (sum(LENGTHS), 4, 4, 4)
    torch.testing.assert_close(
        batch.redrawn[:26], torch.cat([half.whitened(i) for i in (0, 1)], 1).transpose(0, 1)
    )
    assert batch.redrawn[26:].isnan().all()
    assert SliceView(slices).batch([0], 0).redrawn is None
    with SliceShardWriter(tmp_path / "others") as writer:
        writer.append(SliceRecord("case_0", "p", np.zeros((6, 32, 32), np.int16), (4.0, 9.0, 9.0)))
    with pytest.raises(ShardError, match="case_0"):
        SliceView(SliceShards(tmp_path / "others"), redrawn=half)
    with SliceShardWriter(tmp_path / "strange") as writer:
        writer.append(SliceRecord("strange", "p", np.zeros((6, 32, 32), np.int16), (4.0, 9.0, 9.0)))
    with pytest.raises(ShardError, match="none of"):
        SliceView(SliceShards(tmp_path / "strange"), redrawn=half)


def test_a_decoder_is_trained_on_them(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "redrawn")
    arguments = [
        "task=autoencoder", f"runs_dir={tmp_path / 'runs'}", "name=decoder", f"data.train={root / 'slices'}",
        "data.valid=", f"data.redrawn={tmp_path / 'redrawn'}", "data.batch_size=4", "loop.max_steps=2",
        "loop.accelerator=cpu", f"autoencoder.init_from={root / 'checkpoint' / 'avae'}",
        "autoencoder.redrawn_share=0.6", "autoencoder.train_encoder=false", "autoencoder.whitening_batches=0",
        "autoencoder.adversary.start_step=-1",
    ]  # fmt: skip
    assert train(arguments) == 0
    trained = load_avae(tmp_path / "runs" / "autoencoder" / "decoder" / "export")
    assert trained.fingerprint() == load_avae(root / "checkpoint" / "avae").fingerprint()
    with pytest.raises(CTFlowError, match="both or neither"):
        train([*arguments, "autoencoder.redrawn_share=0", "name=none"])
    system = load_system(root / "checkpoint")
    save_avae(tmp_path / "avae", system.avae.with_whitening(Whitening([0.0] * 4, [1.0] * 4)))
    with pytest.raises(ShardError, match="with its whitening"):
        train([*arguments, f"autoencoder.init_from={tmp_path / 'avae'}", "name=other"])
