"""A HU grid in patient millimetres and soft-edged shapes drawn on the sub-boxes they touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.spec import Acquisition

Array = NDArray[np.floating[Any]]
"""Float arrays; whole volumes are float32."""

Box = tuple[slice, slice, slice]
Point = Sequence[float] | NDArray[np.floating[Any]]
"""A point as (x, y, z) in mm: to the patient's right, to the back, upwards from the carina."""

Path = Sequence[Point] | NDArray[np.floating[Any]]
"""Points of a centre line."""


@dataclass
class Canvas:
    """HU array ``[S, R, C]`` (S,P,R) with the coordinates of its voxels.

    Attributes:
        hu: The image so far.
        z: Heights ``[S, 1, 1]``, mm.
        y: Depths ``[1, R, 1]``, mm.
        x: To the patient's right ``[1, 1, C]``, mm.
        pixel: In-plane spacing; the width over which edges are smoothed.
        step: Slice spacing.
    """

    hu: Array
    z: Array
    y: Array
    x: Array
    pixel: float
    step: float

    @classmethod
    def blank(cls, acquisition: Acquisition) -> Canvas:
        """An empty (air) grid for a scan."""
        pixel = acquisition.field_of_view / acquisition.size
        across = (np.arange(acquisition.size, dtype=np.float32) + 0.5) * pixel - acquisition.field_of_view / 2
        heights = (
            acquisition.bottom_z + np.arange(acquisition.slices, dtype=np.float32) * acquisition.slice_spacing
        )
        return cls(
            hu=np.full((acquisition.slices, acquisition.size, acquisition.size), -1000.0, np.float32),
            z=heights.astype(np.float32)[:, None, None],
            y=(across + np.float32(acquisition.center_y))[None, :, None],
            x=(across + np.float32(acquisition.center_x))[None, None, :],
            pixel=pixel,
            step=acquisition.slice_spacing,
        )

    @property
    def voxel_ml(self) -> float:
        """Millilitres of one voxel."""
        return self.pixel**2 * self.step / 1000.0

    def box(self, low: Point, high: Point) -> Box:
        """Index box that covers the mm box (x, y, z) ``low`` … ``high`` and one voxel more."""
        parts = []
        for axis, (start, stride) in enumerate(
            ((self.x[0, 0, 0], self.pixel), (self.y[0, 0, 0], self.pixel), (self.z[0, 0, 0], self.step))
        ):
            count = self.hu.shape[2 - axis]
            first = int(np.floor((low[axis] - start) / stride)) - 1
            last = int(np.ceil((high[axis] - start) / stride)) + 2
            parts.append(slice(min(max(first, 0), count), min(max(last, 0), count)))
        return parts[2], parts[1], parts[0]

    def around(self, center: Point, radius: float | Point) -> Box:
        """Index box around a point."""
        radii = np.broadcast_to(np.asarray(radius, float), (3,))
        return self.box(np.asarray(center) - radii, np.asarray(center) + radii)

    def axes(self, box: Box) -> tuple[Array, Array, Array]:
        """Coordinates (x, y, z) of a box, broadcastable."""
        return self.x[:, :, box[2]], self.y[:, box[1]], self.z[box[0]]

    def soft(self, distance: Array, width: float | None = None) -> Array:
        """Share of a voxel that lies inside, from its signed distance in mm (negative inside)."""
        return np.clip(0.5 - distance / np.float32(width or self.pixel), 0.0, 1.0)

    def paint(self, box: Box, alpha: Array, hu: float | np.floating[Any] | Array) -> None:
        """Blend a tissue in: ``hu·alpha`` over what is there."""
        view = self.hu[box]
        view += alpha * (np.asarray(hu, np.float32) - view)

    def index_of(self, point: Point) -> list[float]:
        """Voxel index (slice, row, column) of a point."""
        return [
            round(float((point[2] - self.z[0, 0, 0]) / self.step), 1),
            round(float((point[1] - self.y[0, 0, 0]) / self.pixel), 1),
            round(float((point[0] - self.x[0, 0, 0]) / self.pixel), 1),
        ]


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with orthonormal axes.

    Attributes:
        center: (x, y, z), mm.
        radii: Half-axes, mm.
        axes: Rows are the directions of the half-axes; None: the coordinate axes.
    """

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    axes: NDArray[np.float64] | None = None

    @property
    def extent(self) -> NDArray[np.float64]:
        """Half-size of the bounding box (x, y, z)."""
        if self.axes is None:
            return np.asarray(self.radii, float)
        return np.sqrt(((self.axes * np.asarray(self.radii)[:, None]) ** 2).sum(0))

    def grown(self, margin: float) -> Ellipsoid:
        """The ellipsoid with half-axes longer by ``margin`` mm."""
        return Ellipsoid(self.center, tuple(r + margin for r in self.radii), self.axes)  # type: ignore[arg-type]

    def distance(self, canvas: Canvas, box: Box) -> Array:
        """Signed distance in mm, first order, over a box."""
        x, y, z = canvas.axes(box)
        dx, dy, dz = (c - np.float32(o) for c, o in zip((x, y, z), self.center, strict=True))
        total: Array | float = 0.0
        directions = np.eye(3) if self.axes is None else self.axes
        for direction, radius in zip(directions, self.radii, strict=True):
            u, v, w = (direction / radius).astype(np.float32)
            total = total + (u * dx + v * dy + w * dz) ** 2
        level = np.sqrt(total)
        return (level - 1.0) * np.float32(np.cbrt(np.prod(self.radii)))


def tube_distance(canvas: Canvas, box: Box, start: Point, end: Point, radius: tuple[float, float]) -> Array:
    """Signed distance to a capsule whose radius runs linearly from start to end, over a box."""
    x, y, z = canvas.axes(box)
    sx, sy, sz = (float(v) for v in start)
    dx, dy, dz = (float(e) - float(s) for s, e in zip(start, end, strict=True))
    length2 = dx * dx + dy * dy + dz * dz + 1e-6
    along = ((x - sx) * dx + (y - sy) * dy + (z - sz) * dz) * np.float32(1.0 / length2)
    np.clip(along, 0.0, 1.0, out=along)
    square = (x - sx - along * np.float32(dx)) ** 2
    square += (y - sy - along * np.float32(dy)) ** 2
    square += (z - sz - along * np.float32(dz)) ** 2
    np.sqrt(square, out=square)
    square -= np.float32(radius[0]) + along * np.float32(radius[1] - radius[0])
    return square


def path_boxes(canvas: Canvas, points: Path, radii: Point, margin: float) -> list[tuple[Box, Array]]:
    """(box, signed distance) of every piece of a polyline tube; empty boxes are left out."""
    pieces = []
    for (start, r0), (end, r1) in zip(
        zip(points, radii, strict=True), list(zip(points, radii, strict=True))[1:], strict=False
    ):
        reach = max(r0, r1) + margin
        box = canvas.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if all(part.stop > part.start for part in box):
            pieces.append((box, tube_distance(canvas, box, start, end, (r0, r1))))
    return pieces


def draw_path(canvas: Canvas, points: Path, radii: Point, hu: float, mask: Array | None = None) -> None:
    """Draw a polyline tube; thin ones keep their mass by partial volume."""
    for box, distance in path_boxes(canvas, points, radii, canvas.pixel):
        alpha = canvas.soft(distance)
        canvas.paint(box, alpha if mask is None else alpha * mask[box], hu)


def draw_ellipsoid(canvas: Canvas, shape: Ellipsoid, hu: float, mask: Array | None = None) -> float:
    """Draw an ellipsoid and give the millilitres drawn."""
    box = canvas.around(shape.center, shape.extent + canvas.pixel)
    alpha = canvas.soft(shape.distance(canvas, box))
    if mask is not None:
        alpha = alpha * mask[box]
    canvas.paint(box, alpha, hu)
    return float(alpha.sum()) * canvas.voxel_ml


def smooth_curve(points: Path, count: int) -> NDArray[np.float64]:
    """Points of a smooth curve (Catmull-Rom) through ``points``, ``count`` per piece."""
    knots = np.asarray(points, float)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0.0, 1.0, count, endpoint=False)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5
            * (
                2 * p1
                + (p2 - p0) * t
                + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
                + (3 * p1 - p0 - 3 * p2 + p3) * t**3
            )
        )
    return np.vstack([*pieces, knots[-1:]])
