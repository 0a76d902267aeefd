"""Sharing folders of networks and of whole systems; nothing in them needs unpickling."""

from ctflow.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE, key_problems, load_exactly
from ctflow.checkpoint.parts import (
    CARD_FILE,
    load_avae,
    load_ctclip,
    load_fmvt,
    load_text_encoder,
    load_tokenizer,
    save_avae,
    save_ctclip,
    save_fmvt,
)
from ctflow.checkpoint.system import (
    AVAE_FOLDER,
    CLIP_FOLDER,
    FMVT_FOLDER,
    System,
    check_fit,
    folder_fingerprint,
    load_system,
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
    "folder_fingerprint",
    "key_problems",
    "load_avae",
    "load_ctclip",
    "load_exactly",
    "load_fmvt",
    "load_system",
    "load_text_encoder",
    "load_tokenizer",
    "save_avae",
    "save_ctclip",
    "save_fmvt",
    "save_system",
    "write_system_config",
]
