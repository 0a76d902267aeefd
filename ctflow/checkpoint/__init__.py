"""Checkpoints to share: folders of networks and of whole systems, and the published layouts.

Nothing read here is ever unpickled.
"""

from ctflow.checkpoint.files import (
    AVAE_FOLDER,
    CARD_FILE,
    CLIP_FOLDER,
    CONFIG_FILE,
    FMVT_FOLDER,
    WEIGHTS_FILE,
    key_problems,
    load_exactly,
)
from ctflow.checkpoint.hub import fetch, is_repository, send
from ctflow.checkpoint.loading import (
    load_avae,
    load_ctclip,
    load_fmvt,
    load_text_encoder,
    load_tokenizer,
    read_weights,
)
from ctflow.checkpoint.system import (
    System,
    check_fit,
    folder_fingerprint,
    load_system,
    mix,
    mix_decoders,
    part_folder,
    save_avae,
    save_ctclip,
    save_fmvt,
    save_system,
    write_system_config,
)

__all__ = [
    "AVAE_FOLDER",
    "CARD_FILE",
    "CLIP_FOLDER",
    "CONFIG_FILE",
    "FMVT_FOLDER",
    "WEIGHTS_FILE",
    "System",
    "check_fit",
    "fetch",
    "folder_fingerprint",
    "is_repository",
    "key_problems",
    "load_avae",
    "load_ctclip",
    "load_exactly",
    "load_fmvt",
    "load_system",
    "load_text_encoder",
    "load_tokenizer",
    "mix",
    "mix_decoders",
    "part_folder",
    "read_weights",
    "save_avae",
    "save_ctclip",
    "save_fmvt",
    "save_system",
    "send",
    "write_system_config",
]
