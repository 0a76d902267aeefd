"""The demonstration's checks, on phantoms whose truth is known."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from ctflow.config.demo import REPORTS, DemoConfig
from ctflow.data.nifti import write_nifti
from ctflow.demo import Stages, _data, _evaluation, _generation, _training
from ctflow.demo.checks import Draw, asked_sides, check_draws, measured
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume
from data_prep.phantom import make_phantom, sample_spec
from data_prep.phantom.requested import with_stated


@pytest.fixture(scope="module")
def draws(tmp_path_factory) -> list[Draw]:
    """A phantom of each report, measured."""
    folder = tmp_path_factory.mktemp("volumes")
    made = []
    for number, report in enumerate(REPORTS):
        spec = with_stated(sample_spec(8, 1, 128, 4.0), report)
        path = folder / f"{number}.nii.gz"
        write_nifti(path, make_phantom(spec).volume)
        made.append(measured(number, 1, path))
    return made


def as_if_asked(draws: list[Draw], *numbers: int) -> list[Draw]:
    """The same volumes, as if other reports had been asked for."""
    return [replace(draw, report=number) for draw, number in zip(draws, numbers, strict=True)]


def test_volumes_as_asked_pass_every_check(draws):
    made = check_draws(draws, list(REPORTS), 1.0)
    assert [check.holds for check in made] == [True, True]
    right, _, none = REPORTS
    assert made[0].found.startswith(
        f"3 of 3. “{right}”: effusion in 1 of 1, on the right, there alone, in 1;"
    )
    assert made[0].found.endswith(f"“{none}”: none in 1 of 1")
    assert made[1].found == "3 of 3"


def test_exchanged_volumes_fail_their_reports_alone(draws):
    made = check_draws(as_if_asked(draws, 2, 0, 1), list(REPORTS), 0.3)
    assert [check.holds for check in made] == [False, True]
    assert "effusion in 1 of 1, on the right, there alone, in 0" in made[0].found


def test_the_least_share_decides(draws):
    right, left, _ = draws
    some = as_if_asked([right, right, right, left], 0, 0, 0, 0)
    assert check_draws(some, [REPORTS[0]], 0.75)[0].holds
    assert not check_draws(some, [REPORTS[0]], 0.8)[0].holds


def test_a_body_without_anatomy_fails(tmp_path):
    z, y, x = np.meshgrid(np.arange(60), np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0).astype(np.float32) + 0 * z
    path = tmp_path / "blob.nii.gz"
    write_nifti(path, HUVolume(hu.astype(np.float32), (4.0, 3.5, 3.5)))
    draw = measured(2, 1, path)
    assert {"left lung", "right lung", "trachea", "spine"} <= set(draw.missing)
    assert not check_draws([draw], list(REPORTS), 0.75)[-1].holds


@pytest.mark.parametrize("report", ["The heart is enlarged.", "There is a pleural effusion."])
def test_a_report_without_a_sided_effusion_is_refused(report):
    with pytest.raises(CTFlowError, match="a pleural effusion and its side"):
        asked_sides(report)


def test_sides_that_reports_state():
    asked = {
        "Bilateral pleural effusions.": {"left", "right"},
        **dict(zip(REPORTS, ({"right"}, {"left"}, set()), strict=True)),
    }
    assert {report: asked_sides(report) for report in asked} == asked


def test_a_failed_stage_is_an_error_that_names_it():
    with pytest.raises(CTFlowError, match="phantoms ended with status 2"):
        Stages().run("phantoms", "data_prep.phantom", ["nonsense=1"])


def test_demo_config_refuses_too_few_volumes():
    with pytest.raises(ValueError, match="volumes must be at least 20"):
        DemoConfig(volumes=5)


def test_stages_get_what_was_asked(tmp_path, monkeypatch):
    typed: dict[str, list[str]] = {}
    monkeypatch.setattr(Stages, "run", lambda self, name, module, arguments: typed.update({name: arguments}))
    config = DemoConfig(
        str(tmp_path), vae_minutes=0.5, flow_minutes=0.25, eval_cases=3, seeds=2, least_hits=1
    )
    stages = Stages()
    _data(config, tmp_path, stages)
    for stage in (_training, _generation, _evaluation):
        stage(config, tmp_path, tmp_path / "checkpoint", stages)
    assert "loop.max_minutes=0.5" in typed["A-VAE from scratch"]
    assert "loop.max_minutes=0.25" in typed["FMvT from scratch"]
    assert "cases=3" in typed["scores of a few cases"]
    assert "6 volumes" in typed
    rows = list(csv.DictReader((tmp_path / "reports.csv").open()))
    assert {(row["report"], row["seed"]) for row in rows} == {(r, s) for r in REPORTS for s in ("1", "2")}
    assert {row["noise_id"] for row in rows} == {"demo"}
    with pytest.raises(ValueError, match="least_hits"):
        DemoConfig(least_hits=2)
