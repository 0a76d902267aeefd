"""Lightning's name for the arithmetic that this processor supports."""

from __future__ import annotations

from ctflow.errors import ConfigError
from ctflow.processes import bf16_supported


def resolve_precision(precision: str, device_type: str) -> str:
    """Lightning's precision string for ``auto``, ``bf16-mixed`` or ``32-true``.

    Raises:
        ConfigError: bfloat16 asked for where the processor lacks it.
    """
    supported = bf16_supported(device_type)
    if precision == "auto":
        return "bf16-mixed" if supported else "32-true"
    if precision == "bf16-mixed" and not supported:
        raise ConfigError(
            f"precision=bf16-mixed on a {device_type} device without bfloat16 arithmetic",
            "a processor with AVX512-BF16 or AMX, or a GPU of compute capability 8.0 or newer",
            "leave precision=auto, or give precision=32-true",
        )
    return precision
