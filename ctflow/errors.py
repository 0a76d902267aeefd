"""Errors for users: what was found, what was expected, what to do next."""

from __future__ import annotations


class CTFlowError(ValueError):
    """Bad input, said in full: the commands print it without a traceback and exit with status 2.

    Args:
        found: What is there.
        expected: What should have been there.
        action: What the user can do next.
    """

    def __init__(self, found: str, expected: str = "", action: str = "") -> None:
        self.found, self.expected, self.action = found, expected, action
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if action:
            parts.append(f"What to do: {action}")
        super().__init__("\n".join(parts))


class Stopped(Exception):
    """A command was asked to end and did: no fault, so no traceback.

    Args:
        message: What was saved.
        status: What the process ends with.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(CTFlowError):
    """An unknown key, a wrong type or an impossible value in a configuration."""


class WeightsError(CTFlowError):
    """A weight file that is missing, damaged or of another layout."""


class ScanError(CTFlowError):
    """A scan that cannot be read as a chest CT in Hounsfield units."""


class ShardError(CTFlowError):
    """A shard, manifest or checksum that does not hold."""


class EvaluationError(CTFlowError):
    """An evaluation that cannot be run, or would give a number that means nothing."""


class MetricError(CTFlowError):
    """Input from which no honest number can be computed."""
