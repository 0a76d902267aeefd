"""ctflow: a radiology report goes in, a whole 3D chest CT in Hounsfield units comes out."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctflow.pipeline import CTFlow

__all__ = ["CTFlow", "__version__"]
__version__ = "0.1.0"

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a container's user without an entry: libraries ask for the name when they are imported
    os.environ.setdefault("USER", f"uid{os.getuid()}")


def __getattr__(name: str) -> Any:
    """Import ``CTFlow`` when it is first used: it brings torch, which takes seconds."""
    if name == "CTFlow":
        from ctflow.pipeline import CTFlow

        return CTFlow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
