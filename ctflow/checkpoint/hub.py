"""Checkpoint folders from and to the Hugging Face hub: configurations, safetensors, tokenizers, cards."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ctflow.checkpoint.files import (
    AVAE_FOLDER,
    CARD_FILE,
    CLIP_FOLDER,
    CONFIG_FILE,
    FMVT_FOLDER,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
)
from ctflow.errors import WeightsError

log = logging.getLogger("ctflow")

_PARTS = (AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER)
_PART_FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, VOCABULARY_FILE)
FILES = [CARD_FILE, CONFIG_FILE, *(f"{part}/{name}" for part in _PARTS for name in _PART_FILES)]
"""All that a checkpoint consists of: nothing else is fetched or sent, nothing that is pickled above all."""
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name can be a repository's (``org/name``) and is not an existing path."""
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists()


def fetch(repository: str, revision: str | None = None) -> Path:
    """The folder of a repository's checkpoint in the hub's cache; fetched where online.

    Args:
        repository: ``org/name``.
        revision: Branch, tag or commit; None: the default branch.

    Raises:
        WeightsError: There is no such repository, it may not be read, or it is neither cached nor within
            reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except GatedRepoError:
        found, action = f"the hub lets only some read {repository}", "ask for access on its page, and log in"
    except RevisionNotFoundError:
        found, action = f"{repository} has no revision {revision}", "give another revision"
    except (RepositoryNotFoundError, HFValidationError):
        found, action = f"neither a folder nor a repository of the hub: {repository}", "check the name"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        log.debug("%s", error)
        found = f"no folder {repository}; the hub's repository is neither in the cache nor in reach"
        action = "check the path; or go online once (without HF_HUB_OFFLINE=1), and later use works offline"
    else:
        log.info("%s: %s", repository, path)
        return path
    raise WeightsError(found, "a checkpoint folder, or a repository org/name", action)


def send(folder: Path, repository: str, private: bool, message: str) -> str:
    """Upload a checkpoint folder; the repository is made where it is missing.

    Returns:
        Address of the commit.

    Raises:
        WeightsError: Not logged in, not allowed, or offline.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=FILES, commit_message=message
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{repository} cannot be written: {first}",
            "the hub in reach, and a token that may write to it",
            "log in by `hf auth login`",
        ) from None
    return str(commit.commit_url)
