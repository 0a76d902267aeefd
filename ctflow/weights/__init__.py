"""Published weights: load them as they are, import them into checkpoint folders, export them again.

What the published files are, and what of their behaviour is reproduced: docs/published-weights.md.
"""

from ctflow.checkpoint.loading import load_avae, load_ctclip, load_fmvt, load_text_encoder, read_weights
from ctflow.weights.command import main
from ctflow.weights.inspection import inspect
from ctflow.weights.scoring import load_scorer
from ctflow.weights.transfer import ImportOptions, complete_system, export_weights, import_weights

__all__ = [
    "ImportOptions",
    "complete_system",
    "export_weights",
    "import_weights",
    "inspect",
    "load_avae",
    "load_ctclip",
    "load_fmvt",
    "load_scorer",
    "load_text_encoder",
    "main",
    "read_weights",
]
