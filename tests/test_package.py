"""The package as a user installs it: the wheel, the console script, the shipped files."""

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

import ctflow
from ctflow.cli import COMMANDS, main
from ctflow.config import load_config
from ctflow.config.training import TrainConfig
from ctflow.shipped import EMBEDDED, SHIPPED_CONFIGS, shipped_path

SOURCES = ("ctflow", "data_prep", "checkpoints", "configs")
SHIPPED = {"checkpoints": "ctflow/shipped/checkpoints", "configs": "ctflow/shipped/configs"}


def source_files(root: Path) -> list[Path]:
    """Every file of the sources, relative to the checkout."""
    files = (path for folder in SOURCES for path in (root / folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(root) for path in files if "__pycache__" not in path.parts)


def in_package(path: Path) -> str:
    """Where a source file lies in the installed package."""
    return str(Path(SHIPPED.get(path.parts[0], path.parts[0]), *path.parts[1:]))


def test_setup_lists_every_package(repo_root):
    setup = configparser.ConfigParser()
    setup.read(repo_root / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    folders = {p.parent for p in source_files(repo_root) if p.name == "__init__.py"}
    assert listed == {".".join(folder.parts) for folder in folders} | {
        target.replace("/", ".") for target in SHIPPED.values()
    }


def test_every_required_package_is_used(repo_root):
    setup = configparser.ConfigParser()
    setup.read(repo_root / "setup.cfg", encoding="utf-8")
    used_by_others = {"tensorboard": "Lightning's logger", "torch-fidelity": "torchmetrics' Inception"}
    names = {line.split(">")[0] for line in setup["options"]["install_requires"].split()}
    code = "\n".join(p.read_text("utf-8") for f in SOURCES[:2] for p in (repo_root / f).rglob("*.py"))
    assert {n for n in names if f"import {n}" not in code and f"from {n}" not in code} == set(used_by_others)


def test_the_help_fits_a_screen_and_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    assert all(f"  {name} " in text for name in COMMANDS)
    for name in ("generate", "train", "eval", "prepare", "encode", "check", "phantom", "weights"):
        assert name in COMMANDS
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"ctflow {ctflow.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "near"), [("genrate", "generate"), ("evaluate", "eval"), ("wieghts", "weights")]
)
def test_an_unknown_command_names_the_nearest(capsys, typed, near):
    assert main([typed, "--seed", "1"]) == 2
    assert f"did you mean `ctflow {near}`?" in capsys.readouterr().err


def test_import_and_help_are_light():
    code = "import sys, ctflow, ctflow.cli; ctflow.cli.main(['--help']); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8")
    assert not any(f"'{heavy}'" in result.stdout for heavy in ("torch", "numpy", "lightning", "data_prep"))


def test_the_api_is_one_import_away():
    from ctflow.pipeline import CTFlow

    assert ctflow.CTFlow is CTFlow
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ctflow.Nothing  # noqa: B018


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()])
def test_every_command_has_its_module(module):
    assert importlib.util.find_spec(module) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_started_under_its_name(name):
    run = [sys.executable, "-m", "ctflow", name, "--help"]
    result = subprocess.run(run, check=True, capture_output=True, encoding="utf-8")
    assert result.stdout.startswith(f"usage: ctflow {name}")


def test_a_command_ends_with_its_own_status():
    run = [sys.executable, "-m", "ctflow", "prepare", "--source", "x"]
    result = subprocess.run(run, check=False, capture_output=True, encoding="utf-8")
    assert result.returncode == 2 and result.stderr.startswith("error: no --source or no --output")


def test_shipped_files_are_found_from_any_folder(repo_root, tmp_path, monkeypatch):
    assert (EMBEDDED / "config.yaml").is_file() and (SHIPPED_CONFIGS / "train" / "vae.yaml").is_file()
    monkeypatch.chdir(tmp_path)
    assert load_config(TrainConfig, "configs/train/vae.yaml").task == "autoencoder"
    assert shipped_path("checkpoints/avae") == EMBEDDED / "avae"
    assert shipped_path("configs/none.yaml") == Path("configs/none.yaml")
    mine = tmp_path / "configs" / "train" / "vae.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("task: clip\n", encoding="utf-8")
    assert load_config(TrainConfig, "configs/train/vae.yaml").task == "clip"  # the user's own file goes first


@pytest.fixture(scope="module")
def prefix(repo_root, tmp_path_factory) -> Path:
    """The wheel of a copy of the sources, installed alone into a clean folder."""
    folder = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        shutil.copytree(repo_root / name, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, folder / "src")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", folder / "wheel", folder / "src"], check=True
    )
    (wheel,) = (folder / "wheel").glob("ctflow-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "prefix", wheel], check=True)
    return folder / "prefix"


@pytest.mark.slow
def test_the_wheel_holds_every_file(prefix, repo_root):
    missing = [path for path in source_files(repo_root) if not (prefix / in_package(path)).is_file()]
    assert not missing


@pytest.mark.slow
def test_an_installed_package_generates_from_any_folder(prefix, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(prefix)}
    where = "import ctflow, data_prep; print(ctflow.__file__, data_prep.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", where],
        check=True,
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment,
    )
    assert all(path.startswith(str(prefix)) for path in told.stdout.split())
    arguments = ["--report", "There is a large right pleural effusion.", "--output", "x.nii.gz"]
    command = [prefix / "bin" / "ctflow", "generate", *arguments, "device=cpu"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    volume = nib.load(tmp_path / "x.nii.gz")
    assert volume.shape[:2] == (128, 128)
    # A chest of about 30 cm at 4 mm. How many slices exactly, the model decides.
    assert 50 <= volume.shape[2] <= 100
    record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert record["checkpoint"] == str(prefix / "ctflow" / "shipped" / "checkpoints")
