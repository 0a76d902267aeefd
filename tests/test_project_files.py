"""Files around the code: containers, CI, hooks, guides and the notebook name what is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

DOCKERFILES = ("Dockerfile", "docker/vlm3d/Dockerfile")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of every step of a Dockerfile."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, rest in pairs]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_copies_what_is_there_and_ends_as_a_user(repo_root, name):
    steps = instructions(repo_root / name)
    known = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {step for step, _ in steps} <= known
    ignored = (repo_root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for step, rest in steps:
        if step == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            for source in sources:
                assert (repo_root / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored, f"{source} is kept out of the build"
    copied = {word for step, rest in steps if step == "COPY" for word in rest.split()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= copied, "what setup.cfg reads"
    assert {"ctflow", "data_prep", "configs", "checkpoints"} <= copied
    users = [rest for step, rest in steps if step == "USER"]
    assert users and users[-1] not in ("root", "0")
    for step, rest in steps:
        if step in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(rest))
        if step == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def test_the_challenge_container_has_the_contracts_folders(repo_root):
    script = repo_root / "docker" / "vlm3d" / "entrypoint.sh"
    subprocess.run(["sh", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    line = shlex.split(script.read_text(encoding="utf-8").splitlines()[-1])
    assert line[:3] == ["exec", "ctflow", "challenge"] and line[-1] == "$@"
    given = dict(zip(line[3:-1:2], line[4:-1:2], strict=True))
    assert given == {
        "--input": "/input/prompts.json",
        "--output": "/output",
        "--progress": "/checkpoint",
        "--checkpoint": "/weights",
    }
    text = (repo_root / "docker" / "vlm3d" / "Dockerfile").read_text(encoding="utf-8")
    assert "chown user /output /checkpoint" in text


def test_ci_and_hooks_call_the_makefile_and_its_tools(repo_root):
    flow = yaml.safe_load((repo_root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    targets = set(
        re.findall(r"^([a-z-]+):.*## ", (repo_root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    runs = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    made = {re.match(r"make ([a-z-]+)", run).group(1) for run in runs if run.startswith("make ")}
    assert {"setup", "lint", "test", "test-slow"} <= made <= targets
    assert all(run.startswith(("make ", "sudo apt-get")) for run in runs)
    hooks = yaml.safe_load((repo_root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    assert all(entry.startswith(".venv/bin/") for entry in entries)
    for entry in entries:
        for word in entry.split():
            if word.endswith(".py"):
                assert (repo_root / word).is_file()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/formats.md", "docs/challenge.md"])
def test_a_guide_names_files_that_are_there(repo_root, name):
    text = (repo_root / name).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:ctflow|data_prep|tests|configs|docs|docker|notebooks)/[\w./-]+)`", text)
    assert len(paths) >= 2
    for path in paths:
        assert (repo_root / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert ((repo_root / name).parent / link).exists(), link


def test_notebooks_hold_no_outputs(repo_root):
    notebooks = sorted((repo_root / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and all(not c["outputs"] and c["execution_count"] is None for c in code), path.name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(repo_root, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="make setup installs it")
    client = pytest.importorskip("nbclient", reason="make setup installs it").NotebookClient
    notebook = nbformat.read(repo_root / "notebooks" / "tour.ipynb", as_version=4)
    environment = os.environ.copy()
    os.environ["PYTHONPATH"] = str(repo_root)
    try:
        client(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [kind for out in outputs for kind in out.get("data", {})]
    assert shown.count("image/png") == 2
    assert "application/vnd.jupyter.widget-view+json" in shown
