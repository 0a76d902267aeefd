"""Resuming, several processes, comparisons between settings, external volumes: on the tiny system."""

import csv
import json
import multiprocessing
import os
import re
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from page_text import without_payloads

from ctflow import eval as command
from ctflow.config.commands import SamplingChoice
from ctflow.config.evaluation import EvalConfig
from ctflow.data.nifti import read_nifti, write_nifti
from ctflow.errors import CTFlowError
from ctflow.evaluation import collect, external
from ctflow.evaluation.cases import CaseReader, choose_cases
from ctflow.evaluation.compare import Comparer
from ctflow.evaluation.external import VolumeFolder, read_reports
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import extractor_of
from ctflow.metrics import FrechetSliceMetric
from ctflow.processes import Ranks
from ctflow.types import HUVolume

from .conftest import assert_same_features, soft_volume


def config_for(shards, folder, **changes) -> EvalConfig:
    values = {
        "slices": str(shards),
        "cache": str(folder / "cache"),
        "output": str(folder),
        "cases": 3,
        "batch_size": 2,
        "clip_lengths": [16],
        "sampling": SamplingChoice(steps=1),
    }
    return EvalConfig(**(values | changes))


def collector_of(config, system, ranks=None):
    extractor = extractor_of(config, system)
    return collect.Collector(config, system, CaseReader(config.slices), extractor, ranks or Ranks())


def test_an_interrupted_evaluation_resumes_and_makes_nothing_twice(
    tiny_system, tiny_shards, tmp_path, monkeypatch
):
    config = config_for(tiny_shards, tmp_path)
    sets = choose_cases(CaseReader(config.slices).cases(), 3, floors=False)
    stored = []
    store = collect.FeatureCache.store

    def interrupted(self, features, wanted):
        if len(stored) == 4:
            raise KeyboardInterrupt
        store(self, features, wanted)
        stored.append(wanted)

    monkeypatch.setattr(collect.FeatureCache, "store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collector_of(config, tiny_system).collect(sets, ["next-block"])
    monkeypatch.setattr(
        collect.FeatureCache, "store", lambda *args: (store(*args), stored.append(args[2]))[0]
    )
    first = collector_of(config, tiny_system).collect(sets, ["next-block"])
    # The three real cases were stored once; of the generated ones, the interrupted batch was made again.
    assert len(stored) == 4 + 2 + 1
    before = len(stored)
    again = collector_of(config, tiny_system).collect(sets, ["next-block"])
    assert len(stored) == before
    for kind, cases in first.features.items():
        for case_id, features in cases.items():
            assert_same_features(features, again.features[kind][case_id])


def test_torn_cache_files_are_made_again(tiny_system, tiny_shards, tmp_path):
    config = config_for(tiny_shards, tmp_path)
    sets = choose_cases(CaseReader(config.slices).cases(), 2, floors=False)
    collector_of(config, tiny_system).collect(sets, [])
    files = sorted((tmp_path / "cache").glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    assert len(collector_of(config, tiny_system).collect(sets, []).of("real", sets.evaluated)) == 2


def test_the_cache_knows_what_features_depend_on(tiny_system, tiny_shards, tmp_path):
    config = config_for(tiny_shards, tmp_path)
    case = CaseReader(config.slices).cases()[0]
    paths = set()
    for changes in ({}, {"seed": 1}, {"sampling": SamplingChoice(steps=2)}, {"resolution": [64]}):
        collector = collector_of(config_for(tiny_shards, tmp_path, **changes), tiny_system)
        ((batch,),) = collector._generated([SETTINGS["full-body"]], [case])
        paths.add(collector.cache.path(batch.wanted[0].names))
    assert len(paths) == 4


def test_ranks_share_whole_batches():
    items = list(range(7))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert sorted(shares[0] + shares[1] + shares[2]) == items
    assert Ranks().share(items) == items


def _rank_main(rank: int, port: int, shards, folder, checkpoint, queue) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    metric = FrechetSliceMetric()
    images = torch.linspace(-900, 900, 12 * 64).view(12, 1, 8, 8) + 50 * torch.sin(torch.arange(64.0)).view(
        8, 8
    )
    metric.update(images[rank::2], real=True)
    if rank == 0:  # the other rank never sees a fake image
        metric.update(images.flip(0) * 0.5, real=False)
    queue.put((rank, float(metric.compute())))
    dist.destroy_process_group()


def test_two_processes_give_one_distance():
    """Sums over two gloo processes equal those of one to 1e-9, also where a rank saw no fake image."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_rank_main, args=(rank, port, None, None, None, queue)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    values = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    images = torch.linspace(-900, 900, 12 * 64).view(12, 1, 8, 8) + 50 * torch.sin(torch.arange(64.0)).view(
        8, 8
    )
    alone = FrechetSliceMetric()
    alone.update(images, real=True)
    alone.update(images.flip(0) * 0.5, real=False)
    assert values[0] == values[1] == pytest.approx(float(alone.compute()), rel=1e-9)


def test_work_shared_over_two_ranks_gives_the_same_features(tiny_system, tiny_shards, tmp_path):
    """Rank by rank on one cache, as two processes would: bit-identical with one process."""
    sets = choose_cases(CaseReader(tiny_shards).cases(), 3, floors=False)
    one = collector_of(config_for(tiny_shards, tmp_path / "one"), tiny_system).collect(sets, ["full-body"])
    config = config_for(tiny_shards, tmp_path / "two")
    second = collector_of(config, tiny_system)
    groups = Ranks(1, 2).share(second.groups(sets, ["full-body"]))
    second.cache.collect(groups)
    first = collector_of(config, tiny_system)
    two = first.collect(sets, ["full-body"])
    assert first.cache.reused == sum(len(batch.wanted) for group in groups for batch in group) > 0
    for kind, cases in one.features.items():
        for case_id, features in cases.items():
            assert_same_features(features, two.features[kind][case_id])


def test_all_settings_at_once_give_the_features_of_each_alone(tiny_system, tiny_shards, tmp_path):
    """Settings that begin with the same blocks share them; nothing may change by it."""
    sets = choose_cases(CaseReader(tiny_shards).cases(), 3, floors=False)
    together = collector_of(config_for(tiny_shards, tmp_path / "all"), tiny_system)
    everything = together.collect(sets, list(SETTINGS))
    assert len(together.memo) == 2 * 3 + 2  # blocks 0 and 1 of three cases; block 1 from the real block 0
    for name in SETTINGS:
        one = collector_of(config_for(tiny_shards, tmp_path / name), tiny_system).collect(sets, [name])
        for case_id, features in one.features[name].items():
            assert_same_features(features, everything.features[name][case_id])


def test_features_with_findings_serve_where_none_are_asked_for(tiny_system, tiny_shards, tmp_path):
    config = config_for(tiny_shards, tmp_path)
    sets = choose_cases(CaseReader(tiny_shards).cases(), 2, floors=True)
    plain = collector_of(config, tiny_system)
    measured = collector_of(config, tiny_system)
    measured.findings = True
    found = measured.collect(sets, ["full-body"])
    for kind, cases, has in (
        ("full-body", sets.evaluated, True),
        ("real", sets.evaluated, True),
        ("real", sets.others, False),  # nothing is read from them
        ("reconstruction", sets.others, True),
    ):
        assert all((f.findings is not None) == has for f in found.of(kind, cases)), kind
    files = {p.name for p in (tmp_path / "cache").iterdir()}
    again = plain.collect(sets, ["full-body"])
    assert {p.name for p in (tmp_path / "cache").iterdir()} == files
    assert len(again.of("real", sets.evaluated)) == 2


def test_settings_are_compared_over_equal_slices(tiny_system, tiny_shards, tmp_path):
    config = config_for(tiny_shards, tmp_path, cases=4, batch_size=4)
    sets = choose_cases(CaseReader(config.slices).cases(), 4, floors=False)
    collector = collector_of(config, tiny_system)
    collected = collector.collect(sets, list(SETTINGS))
    extractor = collector.cache.extractor
    comparer = Comparer(config, extractor.plan, extractor.backbones, sets, collected)
    rows = comparer.between_settings(list(SETTINGS))
    numbers = {r.samples for r in rows if r.metric == "fid_rand2d"}
    assert len(numbers) == 1 and numbers.pop() == sum(c.shape[0] - 16 for c in sets.evaluated)
    ratios = [r for r in rows if "ratio" in r.metric]
    assert ratios and all(r.empty == "n/a" and r.reason for r in ratios)  # too few cases to extrapolate
    assert comparer.between_settings(["full-body"]) == []


def write_volumes(folder, names, first_seed, side=32):
    for i, name in enumerate(names):
        hu = soft_volume(20, first_seed + i, side).astype(np.float32)
        write_nifti(folder / f"{name}.nii.gz", HUVolume(hu, (4.0, 9.0, 9.0)))


def test_volumes_of_another_system(tmp_path):
    write_volumes(tmp_path / "made", ["a", "b", "c"], 50)
    write_volumes(tmp_path / "real", ["a", "b", "c", "d"], 70)
    output = tmp_path / "out"
    arguments = ["--volumes", str(tmp_path / "made"), "--reference", str(tmp_path / "real")]
    keys = [f"output={output}", f"cache={tmp_path / 'cache'}", "clip_lengths=[16]"]
    assert command.main([*arguments, *keys]) == 0
    result = json.loads(next(output.glob("*/results.json")).read_text(encoding="utf-8"))
    values = {(r["source"], r["metric"]): r for r in result["rows"]}
    assert values["model", "fid_rand2d"]["value"] > 0
    assert values["model", "fid_rand2d"]["samples"] == 60 and values["model", "fid_rand2d"]["reference"] == 80
    assert values["model", "fvd_rand3d_f16"]["empty"] == "n/a"  # 3 clips are too few
    assert values["model", "clip"]["empty"] == "n/a"  # no reports given
    drift = {m["monitor"]: m for m in result["monitors"] if m["source"] == "real"}
    assert not any(m["alarm"] for name, m in drift.items() if name.startswith("drift")), drift
    page = without_payloads(next(output.glob("*/report.html")).read_text(encoding="utf-8"))
    assert "data:image/png;base64" in page and "http" not in page.replace("http-equiv", "")


def test_the_page_of_another_system_may_hold_its_volumes(tmp_path):
    write_volumes(tmp_path / "made", ["a", "b"], 50)
    write_volumes(tmp_path / "real", ["a", "c"], 70)
    arguments = ["--volumes", str(tmp_path / "made"), "--reference", str(tmp_path / "real")]
    keys = [f"output={tmp_path}/out", f"cache={tmp_path / 'cache'}", "clip_lengths=[16]", "page.viewer=true"]
    assert command.main([*arguments, *keys]) == 0
    page = next((tmp_path / "out").glob("*/report.html")).read_text(encoding="utf-8")
    titles = re.findall(r'class="nifti" data-title="(\w+)">H4sI', page)
    # Three places for two volumes: a is shown beside the real volume of its name, b has none.
    assert sorted(titles) in (["reference", "scored", "scored", "scored"], ["reference"] * 2 + ["scored"] * 3)


def test_a_volume_of_another_system_is_read_once_and_never_again(tmp_path, monkeypatch):
    write_volumes(tmp_path / "made", ["a", "b"], 50)
    write_volumes(tmp_path / "real", ["a", "b"], 70)
    read = []
    monkeypatch.setattr(external, "read_nifti", lambda path: read.append(path.name) or read_nifti(path))
    arguments = ["--volumes", str(tmp_path / "made"), "--reference", str(tmp_path / "real")]
    for output in ("one", "two"):
        keys = [f"output={tmp_path / output}", f"cache={tmp_path / 'cache'}", "clip_lengths=[16]"]
        assert command.main([*arguments, *keys]) == 0
    assert sorted(read) == ["a.nii.gz", "a.nii.gz", "b.nii.gz", "b.nii.gz"]


def test_external_input_that_means_nothing_is_refused(tmp_path):
    write_volumes(tmp_path / "made", ["a"], 50)
    with pytest.raises(CTFlowError, match="in both"):
        command.main(["--volumes", str(tmp_path / "made"), "--reference", str(tmp_path / "made")])
    with pytest.raises(CTFlowError, match="belong together"):
        command.main(["--volumes", str(tmp_path / "made")])
    with pytest.raises(CTFlowError, match="no NIfTI"):
        VolumeFolder(tmp_path / "nothing")
    write_volumes(tmp_path / "made" / "again", ["a"], 51)
    with pytest.raises(CTFlowError, match="twice"):
        VolumeFolder(tmp_path / "made")
    write_volumes(tmp_path / "mixed", ["a"], 50)
    write_volumes(tmp_path / "mixed", ["b"], 50, side=16)
    with pytest.raises(CTFlowError, match="planes of"):
        VolumeFolder(tmp_path / "mixed")


def test_report_tables(tmp_path):
    path = tmp_path / "reports.csv"

    def write(*rows):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    write(["VolumeName", "Findings_EN", "Impressions_EN"], ["a.nii.gz", "Clear lungs.", "Normal."])
    assert read_reports(path) == {"a": "Clear lungs. Normal."}
    write(["case_id", "report"], ["a", "x"], ["a", "y"])
    with pytest.raises(CTFlowError, match="twice"):
        read_reports(path)
    write(["name", "text"], ["a", "x"])
    with pytest.raises(CTFlowError, match="columns"):
        read_reports(path)
