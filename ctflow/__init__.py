"""ctflow: a radiology report goes in, a whole 3D chest CT in Hounsfield units comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctflow.pipeline import CTFlow

__all__ = ["CTFlow", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``CTFlow`` when it is first used: it brings torch, which takes seconds."""
    if name == "CTFlow":
        from ctflow.pipeline import CTFlow

        return CTFlow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
