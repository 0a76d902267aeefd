"""``ctflow challenge``: the contract, held on a tiny random system and on a phantom of known sides."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctflow.challenge import run as running
from ctflow.challenge.command import main
from ctflow.challenge.pace import Pace
from ctflow.challenge.run import Keeper
from ctflow.config.challenge import ChallengeConfig
from ctflow.errors import CTFlowError
from ctflow.pipeline import CTFlow, EmptyVolume
from data_prep.phantom.render import make_phantom
from data_prep.phantom.sampling import sample_spec

NAMES = ["valid_1_a_1", "valid_2_a_1.nii.gz", "Fall ä 3"]
STEMS = ["valid_1_a_1", "valid_2_a_1", "Fall ä 3"]


@pytest.fixture
def place(tmp_path, tiny_checkpoint):
    """Folders of a container, and the command's arguments."""
    prompts = [{"input_image_name": n, "report": f"Effusion {i}."} for i, n in enumerate(NAMES)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    line = ["--input", f"{tmp_path}/prompts.json", "--output", f"{tmp_path}/output"]
    line += ["--progress", f"{tmp_path}/checkpoint", "--checkpoint", str(tiny_checkpoint)]
    return tmp_path, [*line, "device=cpu", "slices=20"]


def rewrite(folder: Path, *entries: object) -> None:
    (folder / "prompts.json").write_text(json.dumps(entries), encoding="utf-8")


def test_the_contract_of_2026(place):
    folder, line = place
    assert main(line) == 0
    assert sorted(p.name for p in (folder / "output").iterdir()) == sorted(f"{s}.nii.gz" for s in STEMS)
    for path in (folder / "output").iterdir():
        image = sitk.ReadImage(str(path))
        assert image.GetPixelID() == sitk.sitkFloat32
        assert image.GetSize() == (32, 32, 20)
        np.testing.assert_allclose(image.GetSpacing(), (9.0, 9.0, 4.0))
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        array = sitk.GetArrayFromImage(image)
        assert -1000 <= array.min() < array.max() <= 1000
        assert np.abs(array - array.round()).max() > 0.01, "not rounded"


def test_the_form_of_2025(place):
    folder, line = place
    assert main([*line, "--form", "2025", "--orientation", "RAS"]) == 0
    assert [p.name for p in (folder / "output").iterdir()] == ["predictions.zip"]
    with zipfile.ZipFile(folder / "output" / "predictions.zip") as archive:
        assert archive.namelist() == [f"{s}.mha" for s in STEMS]
        archive.extractall(folder / "unpacked")
    image = sitk.ReadImage(str(folder / "unpacked" / "valid_1_a_1.mha"))
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(image.GetDirection(), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


@pytest.mark.parametrize("form", ["2026", "2025"])
def test_sides_of_a_phantom_with_a_right_effusion(tmp_path, form):
    """Slices upwards, rows to the back, columns to the left: fluid on the right lies in the first columns."""
    spec = next(
        spec
        for spec in (sample_spec(5, number, 48) for number in range(300))
        if [f.side for f in spec.findings if f.label == "Pleural effusion"] == ["right"]
    )
    phantom = make_phantom(spec, masks=True)
    config = ChallengeConfig(progress=str(tmp_path), form=form)
    keeper = Keeper.__new__(Keeper)
    keeper.folder, keeper.config, keeper._wanted = tmp_path, config, {}
    prompt = running.Prompt("p", "Right pleural effusion.")
    keeper.keep(prompt, phantom.volume, {})
    image = sitk.ReadImage(str(keeper.path(prompt)))
    array = sitk.GetArrayFromImage(image)
    expected = np.clip(phantom.volume.hu, -1000, 1000)[:, :, ::-1]
    np.testing.assert_array_equal(array, expected)
    effusion = phantom.masks["pleural_effusion"]
    fluid = np.argwhere(effusion[:, :, ::-1])
    middle = (np.array(array.shape) - 1) / 2
    assert fluid[:, 2].mean() < middle[2], "the patient's right is the first columns"
    assert fluid[:, 1].mean() > middle[1], "fluid gathers behind"
    assert fluid[:, 0].mean() < middle[0], "and below"


def test_a_retry_keeps_what_was_finished_and_makes_the_rest(place, monkeypatch):
    folder, line = place
    generate = CTFlow.generate_many
    seen = []

    def dies_at_the_third(self, requests, *args, **kwargs):
        seen.append(requests[0].case_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return generate(self, requests, *args, **kwargs)

    monkeypatch.setattr(CTFlow, "generate_many", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main(line)
    (folder / "checkpoint" / ".99999999.partial.x.nii.gz").write_bytes(b"half")
    shutil.rmtree(folder / "output")
    assert main(line) == 0
    assert seen == [*STEMS, STEMS[2]]
    assert len(list((folder / "output").iterdir())) == 3
    assert not list((folder / "checkpoint").glob(".*"))
    # Other settings, other volumes: nothing stale is handed in.
    assert main([*line, "--seed", "5"]) == 0
    assert seen[4:] == STEMS


def test_a_volume_of_another_form_and_seed_is_not_taken_for_this_one(place):
    folder, line = place
    assert main(line) == 0
    first = (folder / "output" / "valid_1_a_1.nii.gz").read_bytes()
    shutil.rmtree(folder / "output")
    assert main([*line, "--form", "2025", "--seed", "5"]) == 0
    shutil.rmtree(folder / "output")
    assert main([*line, "--seed", "5"]) == 0
    assert (folder / "output" / "valid_1_a_1.nii.gz").read_bytes() != first


def test_a_changed_report_is_generated_anew(place):
    folder, line = place
    assert main(line) == 0
    before = (folder / "output" / "valid_1_a_1.nii.gz").read_bytes()
    rewrite(folder, *[{"input_image_name": n, "report": f"Nodule {i}."} for i, n in enumerate(NAMES)])
    assert main(line) == 0
    assert (folder / "output" / "valid_1_a_1.nii.gz").read_bytes() != before


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "an empty list"),
        ([{"input_image_name": "a", "report": "  "}], "the report of a is empty"),
        ([{"input_image_name": "a"}], "the report of a is None"),
        ([{"report": "x"}], "input_image_name is None"),
        ([{"input_image_name": "../a", "report": "x"}], "is not a file name"),
        ([{"input_image_name": "a", "report": "x"}, {"input_image_name": "a.mha", "report": "x"}], "twice"),
        (["a"], "a str, no object"),
    ],
)
def test_faulty_prompts_generate_nothing(place, entries, words):
    folder, line = place
    rewrite(folder, *entries)
    with pytest.raises(CTFlowError, match=words):
        main(line)
    assert not (folder / "output").exists()


def test_no_prompts_and_no_list(place):
    folder, line = place
    (folder / "prompts.json").write_text('{"a": 1}')
    with pytest.raises(CTFlowError, match="holds a dict"):
        main(line)
    (folder / "prompts.json").unlink()
    with pytest.raises(CTFlowError, match="no prompts at"):
        main(line)


def test_a_count_that_does_not_match_is_an_error(place):
    folder, line = place
    (folder / "output").mkdir()
    (folder / "output" / "old.nii.gz").write_bytes(b"")
    with pytest.raises(CTFlowError, match=r"belong to no prompt: old.nii.gz"):
        main(line)


def test_a_damaged_or_missing_volume_is_an_error(place, monkeypatch):
    _, line = place
    copy = running._copy

    def loses_one(path, output):
        if path.name != "valid_1_a_1.nii.gz":
            copy(path, output)

    monkeypatch.setattr(running, "_copy", loses_one)
    with pytest.raises(CTFlowError, match=r"valid_1_a_1.nii.gz is missing"):
        main(line)
    monkeypatch.setattr(running, "_copy", lambda path, output: (output / path.name).write_bytes(b"x"))
    with pytest.raises(CTFlowError, match="cannot be read"):
        main(line)


def test_an_empty_volume_is_drawn_again(place, monkeypatch):
    _, line = place
    generate = CTFlow.generate_many
    empty = [True]

    def empty_at_first(self, requests, *args, **kwargs):
        return [EmptyVolume("empty")] if empty and empty.pop() else generate(self, requests, *args, **kwargs)

    monkeypatch.setattr(CTFlow, "generate_many", empty_at_first)
    assert main(line) == 0
    monkeypatch.setattr(CTFlow, "generate_many", lambda *args, **kwargs: [EmptyVolume("empty")])
    with pytest.raises(CTFlowError, match="5 noises gave no slice"):
        main([*line, "--seed", "8"])


def test_a_short_time_budget_costs_steps_and_no_case(place):
    folder, line = place
    assert main([*line, "sampling.steps=12", "--time-budget", "0.0001"]) == 0
    steps = [json.loads(p.read_text())["steps"] for p in (folder / "checkpoint").glob("*.json")]
    assert steps == [1, 1, 1]
    shutil.rmtree(folder / "checkpoint")
    assert main([*line, "sampling.steps=2", "time_budget=60"]) == 0
    steps = [json.loads(p.read_text())["steps"] for p in (folder / "checkpoint").glob("*.json")]
    assert steps == [2, 2, 2]


def test_pace():
    pace = Pace.measured((1, 3.0), (3, 5.0))  # 2 s a block and 1 s a step
    assert (pace.block, pace.step) == (2.0, 1.0)
    assert pace.seconds(10, 4) == 48.0
    assert pace.steps(left=1000.0, blocks=[4, 4], wanted=20) == 20
    assert pace.steps(left=100.0, blocks=[4, 4], wanted=20) == 9  # 0.9 · 100 / 8 − 2
    assert pace.steps(left=1.0, blocks=[4, 4], wanted=20) == 1
    pace.learn(10, 4, 96.0)
    assert pace.seconds(10, 4) == 96.0
    assert pace.steps(left=100.0, blocks=[4, 4], wanted=20) == 3


def test_the_budget_needs_a_solver_with_steps(place):
    with pytest.raises(CTFlowError, match="dopri5"):
        main([*place[1], "sampling.solver=dopri5", "--time-budget", "1"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["2026", "2025"])
def test_the_self_test(tiny_checkpoint, caplog, form):
    caplog.set_level("INFO")
    line = ["--self-test", "--checkpoint", str(tiny_checkpoint), "device=cpu", "slices=64", "--form", form]
    assert main(line) == 0
    assert "resumed after a kill" in caplog.text and "self-test passed" in caplog.text
