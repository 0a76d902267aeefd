"""Configuration of ``ctflow app``."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.config.commands import DEVICES, MAX_UNKNOWN, PRECISIONS

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine reaches."""

LEAST_TOKEN = 16
"""Fewest characters of a token."""


@dataclass
class AppConfig:
    """Keys of ``ctflow app``.

    Attributes:
        checkpoint: Checkpoint folder, ``run:NAME`` or ``latest``; empty: the embedded checkpoint.
        host: Address to listen on; one that other machines reach needs a token.
        port: Port to listen on; 0 takes a free one.
        token: Secret that a browser shows once (``/?token=…``); empty: none is needed.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16`` autocast: faster where the processor has it, fewer digits.
        max_unknown: Largest share of a report's words that the text encoder does not know (another language);
            1 refuses none.
        upload_gb: Largest file that may be opened; unpacked it may be four times as large.
        memory_gb: Most memory that reading it may take.
        library_gb: Most room that volumes may take in the temporary folder.
        open_minutes: Longest time that reading a file may take.
    """

    checkpoint: str = ""
    host: str = "127.0.0.1"
    port: int = 8042
    token: str = ""
    device: str = "auto"
    precision: str = "fp32"
    max_unknown: float = MAX_UNKNOWN
    upload_gb: float = 1.0
    memory_gb: float = 6.0
    library_gb: float = 8.0
    open_minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.device not in DEVICES or self.precision not in PRECISIONS:
            raise ValueError(
                f"device is one of {DEVICES}, precision one of {PRECISIONS}, found {self.device!r} and "
                f"{self.precision!r}"
            )
        if not 0 <= self.port <= 65535 or not 0 <= self.max_unknown <= 1:
            raise ValueError(
                f"port lies between 0 and 65535, max_unknown between 0 and 1, found {self.port} and "
                f"{self.max_unknown}"
            )
        if min(self.upload_gb, self.memory_gb, self.library_gb, self.open_minutes) <= 0:
            raise ValueError("upload_gb, memory_gb, library_gb and open_minutes are positive")
        if self.token and (len(self.token) < LEAST_TOKEN or not self.token.isascii() or " " in self.token):
            raise ValueError(f"a token has at least {LEAST_TOKEN} ASCII characters and no blank")
        if self.host not in LOOPBACK and not self.token:
            raise ValueError(
                f"host={self.host} lets other machines in: give a token of at least {LEAST_TOKEN} characters"
            )
