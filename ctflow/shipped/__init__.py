"""The checkpoint and the configurations that come with the package.

The source tree keeps them at its top level, in ``checkpoints/`` and ``configs/``. ``setup.cfg`` maps both
into the wheel, as ``ctflow/shipped/checkpoints`` and ``ctflow/shipped/configs``, so that an installed package
has them without a checkout.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

CHECKPOINTS, CONFIGS = "checkpoints", "configs"

_INSTALLED = Path(str(files(__name__)))
_ROOT = _INSTALLED if (_INSTALLED / CONFIGS).is_dir() else _INSTALLED.parents[1]

EMBEDDED = _ROOT / CHECKPOINTS
"""The embedded checkpoint: trained on phantoms."""

SHIPPED_CONFIGS = _ROOT / CONFIGS
"""The folder of the shipped configurations."""


def shipped_path(name: Path | str) -> Path:
    """A path as the user gave it, or the shipped file of that name.

    ``configs/train/vae.yaml`` means the file below the current folder where there is one, else the file that
    came with the package: the commands of the README work in every folder.

    Args:
        name: A path; relative ones that begin with ``checkpoints`` or ``configs`` may be shipped.

    Returns:
        ``name`` where it exists or nothing shipped has that name, else the shipped file or folder.
    """
    given = Path(name)
    if given.exists() or given.parts[:1] not in ((CHECKPOINTS,), (CONFIGS,)):
        return given
    shipped = _ROOT / given
    return shipped if shipped.exists() else given
