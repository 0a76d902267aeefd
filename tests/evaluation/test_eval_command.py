"""The command, in-process, on a tiny random system."""

import json
import math
import re

import pytest

from ctflow import eval as command
from ctflow.errors import CTFlowError
from ctflow.evaluation.report.tables import meaning, summary_table
from ctflow.evaluation.results import Row, number


def run(checkpoint, shards, output, *extra) -> dict:
    """Run the command; the JSON it wrote."""
    arguments = [
        "--checkpoint",
        str(checkpoint),
        f"slices={shards}",
        f"output={output}",
        f"cache={output}/cache",
    ]
    assert command.main([*arguments, "cases=6", "batch_size=3", "sampling.steps=1", *extra]) == 0
    folders = sorted(p for p in output.iterdir() if (p / "results.json").is_file())
    return json.loads((folders[-1] / "results.json").read_text(encoding="utf-8")) | {"folder": folders[-1]}


@pytest.fixture(scope="module")
def everything(tiny_checkpoint, tiny_shards, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("eval")
    return run(
        tiny_checkpoint, tiny_shards, output, "--setting", "all", "resolution=[32,64]", "clip_lengths=[16,24]"
    )


def test_whole_table(everything):
    rows = everything["rows"]
    assert {r["setting"] for r in rows} == {"full-body", "gt-head", "next-block"}
    assert {r["source"] for r in rows} >= {"model", "floor: other real cases"}
    names = {r["metric"] for r in rows}
    assert names >= {
        "fid_rand2d",
        "kid_rand2d",
        "fvd_rand3d_f16",
        "is",
        "clip_phantom",
        "clip_phantom_shuffled",
    }
    assert not names & {"fid", "fvd_f16", "clip"}  # no stand-in under a real metric's name
    for name in ("table.md", "table.csv", "monitors.csv"):
        assert (everything["folder"] / name).read_text(encoding="utf-8")


def test_the_page_may_hold_volumes(everything, tiny_checkpoint, tiny_shards):
    output = everything["folder"].parent
    keys = ["resolution=[32,64]", "clip_lengths=[16,24]", "page.viewer=true"]
    page = run(tiny_checkpoint, tiny_shards, output, "--setting", "gt-head", *keys)["folder"] / "report.html"
    titles = re.findall(r'class="nifti" data-title="(\w+)">H4sI', page.read_text(encoding="utf-8"))
    assert titles == ["generated", "real"] * 3
    assert "niivue" not in (everything["folder"] / "report.html").read_text(encoding="utf-8")


def test_missing_numbers_have_reasons(everything):
    for row in everything["rows"]:
        assert (row["value"] is not None) != bool(row["empty"])
        assert row["value"] is not None or row["reason"]
    score = [r for r in everything["rows"] if r["metric"] == "is"]
    assert all(r["empty"] == "n/a" and "Inception" in r["reason"] for r in score)
    long = [r for r in everything["rows"] if r["metric"] == "fvd_rand3d_f24" and r["setting"] == "next-block"]
    assert all(r["empty"] == "–" for r in long)


def test_resolution_above_the_models_own_is_marked(everything):
    for row in everything["rows"]:
        if row["resolution"]:
            assert ("upsampled from 32" in row["reason"]) == (row["resolution"] == 64)


def test_model_of_noise_stands_far_above_the_real_floor(everything):
    values = {
        r["source"]: r["value"]
        for r in everything["rows"]
        if (r["setting"], r["metric"], r["resolution"]) == ("full-body", "fid_rand2d", 32)
    }
    assert values["model"] > 3 * values["floor: other real cases"]


def test_provenance(everything):
    block = everything["provenance"]
    assert len(block["case_set_sha256"]) == 64 and block["cases"] == 6 and block["floor_cases"] == 6
    assert set(block["backbones_sha256"]) == {"rand2d", "rand3d", "clip_phantom"}


def test_every_printed_name_is_explained(everything):
    names = {r["metric"] for r in everything["rows"]} | {r["monitor"] for r in everything["monitors"]}
    assert all(meaning(name).text for name in names), [n for n in names if not meaning(n).text]
    assert meaning("fvd_rand3d_f16") != meaning("fvd_f16") and meaning("fid_other").text == ""
    text = (everything["folder"] / "table.md").read_text(encoding="utf-8")
    assert "not multiplied by 1000" in text and "| fid_rand2d ↓ |" in text


def test_summary_has_a_line_per_setting_resolution_and_source(everything):
    rows = [Row(**{k: math.nan if v is None else v for k, v in r.items()}) for r in everything["rows"]]
    table = summary_table(rows)
    header, lines = list(table.header), table.lines
    assert len(lines) == 3 * 2 * 3 and all(len(line) == len(header) for line in lines)
    assert {line[1] for line in lines} == {"32", "64*"}
    column = header.index("fid_rand2d ↓")
    own = next(r for r in rows if (r.setting, r.source, r.resolution) == ("gt-head", "model", 64))
    line = next(x for x in lines if x[:3] == ["gt-head", "64*", "model"])
    assert own.metric == "fid_rand2d" and line[column] == number(own.value)
    assert line[header.index("is ↑")] == "n/a"


def test_unknown_key_is_an_error(tiny_checkpoint):
    with pytest.raises(CTFlowError, match="resolution"):
        command.main(["--checkpoint", str(tiny_checkpoint), "resolutions=[32]"])


def test_missing_default_cases_are_made_at_the_models_own_size(tiny_checkpoint, tmp_path, monkeypatch):
    commands = []

    def record(module, arguments):
        commands.append([module, *arguments])
        return 0

    monkeypatch.setattr("ctflow.default_data.run_module", record)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CTFlowError, match="manifest"):  # the recorder makes nothing
        command.main(["--checkpoint", str(tiny_checkpoint)])
    assert [c[0] for c in commands] == ["data_prep.phantom", "data_prep.ct_rate"]
    assert "runs/shards/slices" in commands[1] and "resolution=32" in commands[1]
    with pytest.raises(CTFlowError, match="manifest"):  # a folder of the user's own is left alone
        command.main(["--checkpoint", str(tiny_checkpoint), "slices=mine"])
    assert len(commands) == 2


def test_a_missing_file_is_said_before_phantoms_are_made(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", None)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--analysis", "contrast", "analysis.pairs=pairs.csv"]
    with pytest.raises(CTFlowError, match=r"nothing at analysis\.pairs=pairs\.csv"):
        command.main(arguments)
    assert not list(tmp_path.iterdir())
