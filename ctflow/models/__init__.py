"""Networks: the FMvT, the A-VAE and CT-CLIP. Plain PyTorch; no Lightning, no files."""

from ctflow.models.avae import AVAE, Posterior
from ctflow.models.conditions import Conditions, TextCondition
from ctflow.models.ctclip import CTCLIP, TextEncoding, VolumeEncoding
from ctflow.models.fmvt import FMvT
from ctflow.models.text import TextEmbedding, TextEncoder, clean_text
from ctflow.models.tokenizer import ReportTokenizer, train_wordpiece

__all__ = [
    "AVAE",
    "CTCLIP",
    "Conditions",
    "FMvT",
    "Posterior",
    "ReportTokenizer",
    "TextCondition",
    "TextEmbedding",
    "TextEncoder",
    "TextEncoding",
    "VolumeEncoding",
    "clean_text",
    "train_wordpiece",
]
