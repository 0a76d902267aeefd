"""The hub's conventions without the hub: cache, refusals, cards, and what would be sent."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard

from ctflow.checkpoint import hub
from ctflow.checkpoint.card import with_metadata
from ctflow.config.system import SystemConfig
from ctflow.errors import WeightsError
from ctflow.pipeline import CTFlow
from ctflow.shipped import EMBEDDED

REPORT = "Small right pleural effusion."


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path, tiny_checkpoint, monkeypatch) -> Path:
    """A cache that holds ``someone/chest``, as the hub's library lays it out."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = folder / "models--someone--chest", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    return folder


def test_a_repository_in_the_cache_is_read_offline(cache, tiny_checkpoint, no_network):
    model = CTFlow.from_pretrained("someone/chest", device="cpu")
    assert model.name.startswith(str(cache))
    local = CTFlow.from_pretrained(tiny_checkpoint, device="cpu")
    assert model.fingerprint == local.fingerprint


def test_what_is_not_in_the_cache_is_said_when_offline(cache, no_network):
    with pytest.raises(WeightsError, match=r"no folder someone/other; .*neither in the cache nor in reach"):
        CTFlow.from_pretrained("someone/other", device="cpu")
    with pytest.raises(WeightsError, match="neither in the cache"):
        CTFlow.from_pretrained("someone/chest", device="cpu", revision="v9")


def test_a_folder_never_touches_the_network(tmp_path, tiny_checkpoint, monkeypatch, no_network):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / "someone" / "chest")
    assert CTFlow.from_pretrained("someone/chest", device="cpu").name == "someone/chest"
    (tmp_path / "an" / "empty").mkdir(parents=True)
    with pytest.raises(WeightsError, match="no checkpoint at an/empty"):
        CTFlow.from_pretrained("an/empty", device="cpu")


@pytest.mark.parametrize("name", ["nowhere", "/a/b", "./a/b", "../b", "a/b/c", "run:x/y", "~/a"])
def test_names_that_are_no_repository(name):
    assert not hub.is_repository(name)


def test_saved_and_loaded_the_model_is_the_same(tmp_path, tiny_checkpoint):
    model = CTFlow.from_pretrained(tiny_checkpoint, device="cpu")
    folder = model.save_pretrained(tmp_path / "saved")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert set(files) <= set(hub.FILES)
    assert sum(name.endswith(".safetensors") for name in files) == 3
    again = CTFlow.from_pretrained(folder, device="cpu")
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.generate(REPORT, slices=16).hu, model.generate(REPORT, slices=16).hu)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "other", "its provenance names no training"
    assert card.data.pipeline_tag == "text-to-3d" and card.data.library_name == "ctflow"
    assert "from_pretrained" in card.text


def test_what_is_pushed(tiny_checkpoint, monkeypatch):
    sent = {}

    def create(self, repo_id, *, private, exist_ok):
        sent["repository"] = (repo_id, private, exist_ok)

    def upload(self, *, repo_id, folder_path, allow_patterns, commit_message):
        sent["files"] = {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*.*")}
        sent["card"] = ModelCard.load(Path(folder_path) / "README.md")

        class Commit:
            commit_url = "there"

        return Commit()

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = CTFlow.from_pretrained(tiny_checkpoint, device="cpu")
    assert model.push_to_hub("someone/chest", card="# Mine", private=True) == "there"
    assert sent["repository"] == ("someone/chest", True, True)
    assert sent["files"] <= set(hub.FILES) and "fmvt/model.safetensors" in sent["files"]
    assert sent["card"].text.strip() == "# Mine"


def test_pushing_offline_is_an_error_in_words(tiny_checkpoint, monkeypatch, cache, no_network):
    model = CTFlow.from_pretrained(tiny_checkpoint, device="cpu")
    with pytest.raises(WeightsError, match=r"someone/chest cannot be written(.|\n)*hf auth login"):
        model.push_to_hub("someone/chest")


def test_licence_and_data_follow_from_the_training():
    def card(training: str) -> ModelCard:
        config = SystemConfig(image_size=64, provenance={"training": training})
        return ModelCard(with_metadata("# A card", config))

    assert card("1200 procedural phantoms").data.datasets == ["ctflow-phantoms"]
    assert card("CT-RATE, 20k volumes").data.license == "cc-by-nc-sa-4.0"
    assert card("CT-RATE, 20k volumes").data.datasets == ["ibrahimhamamci/CT-RATE"]
    own = "---\nlicense: mit\n---\n# Own"
    assert with_metadata(own, SystemConfig(image_size=64)) == own


def test_the_embedded_checkpoints_card_has_metadata():
    data = ModelCard.load(EMBEDDED / "README.md").data
    assert data.license == "apache-2.0" and data.pipeline_tag == "text-to-3d"
    assert data.datasets == ["ctflow-phantoms"] and data.metrics and data.tags
