"""How many solver steps the time that is left allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MARGIN = 0.9
"""Share of the time left that is planned with."""


@dataclass
class Pace:
    """Seconds that generation takes on this machine, as measured.

    Attributes:
        block: Seconds per block of slices, whatever the steps.
        step: Seconds per block and step.
        scale: What volumes really took over what these two say, mended by every volume.
    """

    block: float
    step: float
    scale: float = 1.0

    @classmethod
    def measured(cls, low: tuple[int, float], high: tuple[int, float]) -> Pace:
        """From the seconds of one block at two numbers of steps."""
        step = max((high[1] - low[1]) / (high[0] - low[0]), 1e-6)
        return cls(max(low[1] - low[0] * step, 0.0), step)

    def seconds(self, steps: int, blocks: int) -> float:
        """Time of a volume."""
        return self.scale * blocks * (self.block + steps * self.step)

    def steps(self, left: float, blocks: list[int], wanted: int) -> int:
        """Steps for the next volume: as many as all that remain can have.

        Args:
            left: Seconds until the end.
            blocks: Expected blocks of every volume that remains, the next one's first.
            wanted: Most steps.

        Returns:
            1 to ``wanted``; 1 too where not even that fits.
        """
        affordable = (_MARGIN * left / (self.scale * sum(blocks)) - self.block) / self.step
        return max(1, min(wanted, math.floor(affordable)))

    def learn(self, steps: int, blocks: int, seconds: float) -> None:
        """Take note of what a volume took."""
        self.scale *= seconds / self.seconds(steps, blocks)
