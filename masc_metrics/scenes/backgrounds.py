"""Textured backgrounds of rendered scenes, each identified by its phrase in captions.

Shapes: H, W image sides in pixels; planes are (H, W) and images (3, H, W), float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.floating[Any]]
Colour: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Pixel coordinates and random number generator of one image.

    Attributes:
        rng: random number generator.
        down: (H, 1), 0 at the top and 1 at the bottom.
        x, y: (1, W) and (H, 1), in units of the shorter side, with a random shift and scale.
    """

    rng: np.random.Generator
    down: Plane
    x: Plane
    y: Plane

    @classmethod
    def create(cls, height: int, width: int, rng: np.random.Generator) -> _Canvas:
        shift, stretch = rng.uniform(0, 5, size=2), rng.uniform(0.85, 1.2)
        short = min(height, width)
        rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
        return cls(
            rng,
            (rows[:, None] / height).astype(np.float32),
            (columns[None, :] / short * stretch + shift[0]).astype(np.float32),
            (rows[:, None] / short * stretch + shift[1]).astype(np.float32),
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]

    def noise(self, cells: int, across: int | None = None) -> Plane:
        """Smooth noise in [0, 1]: random values on a coarse lattice, interpolated bilinearly."""
        height, width = self.shape
        rows, low_y, part_y = _lattice(height, cells)
        columns, low_x, part_x = _lattice(width, across or cells)
        values = self.rng.random((rows, columns), dtype=np.float32)
        lines = values[low_y] + (values[low_y + 1] - values[low_y]) * part_y[:, None]
        return lines[:, low_x] + (lines[:, low_x + 1] - lines[:, low_x]) * part_x

    def grain(self) -> Plane:
        """White noise: an independent value in [0, 1) for each pixel."""
        return self.rng.random(self.shape, dtype=np.float32)

    def speckles(self, count: int, size: float) -> Plane:
        """1 in small squares at random positions, 0 elsewhere; ``size`` is their side relative to the shorter side."""
        height, width = self.shape
        side = max(1, round(size * min(height, width)))
        plane = np.zeros((height + side, width + side), np.float32)
        for row, column in zip(self.rng.integers(0, height, count), self.rng.integers(0, width, count), strict=True):
            plane[row : row + side, column : column + side] = 1
        return plane[:height, :width]

    def pick(self, *cells: Plane) -> Plane:
        """One random value for each cell of a tiling, given by the row and column of each pixel's cell."""
        row, column = (cell.astype(np.int64) for cell in cells)
        table = self.rng.random((int(row.max()) + 1, int(column.max()) + 1), dtype=np.float32)
        return table[row, column]


def _lattice(pixels: int, cells: int) -> tuple[int, NDArray[np.int64], Plane]:
    position = np.linspace(0, cells, pixels, endpoint=False, dtype=np.float32)
    low = position.astype(np.int64)
    return cells + 2, low, position - low


def mix(first: Colour | Plane, second: Colour | Plane, share: Plane | NDArray[np.bool_]) -> Plane:
    """Blend two colours: the first where the share is 0, the second where it is 1."""
    a, b = (np.asarray(c, np.float32).reshape(3, *np.shape(c)[1:] or (1, 1)) for c in (first, second))
    return a + (b - a) * share.astype(np.float32, copy=False)


def _wave(plane: Plane) -> Plane:
    return np.sin(2 * np.pi * plane) * 0.5 + 0.5


def _fraction(plane: Plane) -> Plane:
    return plane - np.floor(plane)


def _beach(c: _Canvas) -> Plane:
    shore = c.rng.uniform(0.3, 0.45)
    sea = mix((0.1, 0.5, 0.65), (0.45, 0.8, 0.85), _wave(9 * c.y + 0.3 * _wave(2 * c.x)))
    land = mix((0.8, 0.68, 0.42), (0.97, 0.9, 0.68), 0.5 * c.noise(6) + 0.5 * c.grain())
    picture = mix(sea, land, c.down > shore + 0.2 + 0.03 * _wave(1.3 * c.x))
    return mix((0.55, 0.8, 0.98), picture, c.down + 0 * c.x > shore)


def _night_sky(c: _Canvas) -> Plane:
    sky = mix((0.02, 0.02, 0.1), (0.13, 0.1, 0.32), c.noise(3))
    return mix(sky, (1, 1, 0.9), c.speckles(70, 0.012))


def _brick_wall(c: _Canvas) -> Plane:
    rows = 7 * c.y
    columns = 3.5 * c.x + 0.5 * (np.floor(rows) % 2)
    bricks = mix((0.5, 0.18, 0.12), (0.75, 0.38, 0.26), c.pick(np.floor(rows) + 0 * columns, np.floor(columns)))
    mortar = (_fraction(rows) < 0.14) | (_fraction(columns) < 0.07)
    return mix(bricks, (0.78, 0.75, 0.7), mortar)


def _forest(c: _Canvas) -> Plane:
    leaves = mix((0.04, 0.2, 0.06), (0.25, 0.5, 0.15), 0.6 * c.noise(14) + 0.4 * c.grain())
    trunks = _wave(3.2 * c.x + 0.1 * c.noise(2)) > 0.82
    return mix(leaves, (0.3, 0.2, 0.12), trunks * (0.7 + 0.3 * c.noise(20)))


def _snow(c: _Canvas) -> Plane:
    drift = mix((0.78, 0.84, 0.93), (1, 1, 1), _wave(2 * c.y + 0.4 * c.noise(3)))
    hills = c.down > c.rng.uniform(0.25, 0.4) + 0.1 * _wave(0.7 * c.x)
    sky = mix((0.58, 0.63, 0.7), (1, 1, 1), c.speckles(60, 0.02))
    return mix(sky, drift, hills)


def _wooden_table(c: _Canvas) -> Plane:
    planks = c.pick(np.floor(4.5 * c.y), np.floor(0 * c.x))
    rings = _wave(20 * c.y + 4 * c.noise(3, 2))
    wood = mix((0.42, 0.25, 0.11), (0.72, 0.48, 0.25), 0.55 * planks + 0.45 * rings)
    return mix(wood, (0.2, 0.11, 0.05), (_fraction(4.5 * c.y) < 0.06) + 0 * c.x)


def _flower_meadow(c: _Canvas) -> Plane:
    grass = mix((0.2, 0.48, 0.1), (0.5, 0.78, 0.25), 0.5 * c.noise(25, 60) + 0.5 * c.grain())
    for petal in ((0.98, 0.85, 0.2), (0.95, 0.45, 0.7), (0.98, 0.98, 0.95)):
        grass = mix(grass, petal, c.speckles(22, 0.035))
    return grass


def _desert(c: _Canvas) -> Plane:
    dunes = _fraction(2.4 * c.y + 0.35 * _wave(0.9 * c.x) + 0.1 * c.noise(3))
    sand = mix((0.72, 0.4, 0.16), (0.95, 0.72, 0.4), dunes)
    return mix((0.98, 0.9, 0.75), sand, c.down + 0 * c.x > c.rng.uniform(0.12, 0.28))


def _tiled_floor(c: _Canvas) -> Plane:
    rows, columns = 5 * c.y, 5 * c.x
    tiles = mix((0.62, 0.74, 0.74), (0.9, 0.93, 0.92), (np.floor(rows) + np.floor(columns)) % 2)
    return mix(tiles, (0.35, 0.4, 0.4), (_fraction(rows) < 0.07) | (_fraction(columns) < 0.07))


def _city(c: _Canvas) -> Plane:
    columns, rows = 5 * c.x, c.y
    lot = np.floor(columns)
    roof = 0.1 + 0.45 * c.pick(0 * lot, lot)
    lit = (c.pick(np.floor(16 * rows), np.floor(20 * c.x)) > 0.35) & (_fraction(16 * rows) > 0.4)
    lit &= (_fraction(20 * c.x) > 0.45) & (_fraction(columns) > 0.1)
    towers = mix(mix((0.2, 0.22, 0.27), (0.42, 0.43, 0.47), c.pick(0 * lot, lot)), (0.98, 0.86, 0.5), lit)
    return mix((0.7, 0.72, 0.78), towers, c.down > roof)


def _under_water(c: _Canvas) -> Plane:
    light = _wave(3 * c.x + 0.8 * c.noise(4)) * _wave(2.5 * c.y + 0.8 * c.noise(4))
    water = mix((0.02, 0.3, 0.45), (0.1, 0.62, 0.68), np.clip(1 - c.down + 0.5 * light, 0, 1))
    rise = c.x - c.x[0, 0]
    for across, depth, radius in zip(c.rng.random(9), c.rng.random(9), c.rng.uniform(0.02, 0.06, 9), strict=True):
        distance = np.hypot(rise - across * rise[0, -1], c.down - depth)
        water = mix(water, (0.8, 0.95, 0.98), np.abs(distance - radius) < 0.009)
    return water


def _sunset(c: _Canvas) -> Plane:
    height = c.rng.uniform(0.55, 0.7)
    sky = mix((0.36, 0.14, 0.42), (1, 0.6, 0.2), np.clip(c.down / height, 0, 1) + 0.15 * (c.noise(8, 2) - 0.5))
    sun = np.hypot(c.x - c.x[0, c.rng.integers(c.x.shape[1])], c.down - height) < 0.14
    sea = mix((0.2, 0.1, 0.25), (0.95, 0.5, 0.25), (_wave(11 * c.y + 0.5 * c.noise(3)) > 0.75))
    return mix(mix(sky, (1, 0.93, 0.6), sun), sea, c.down + 0 * c.x > height)


def _lava(c: _Canvas) -> Plane:
    rock = mix((0.08, 0.05, 0.05), (0.26, 0.2, 0.19), 0.5 * c.grain() + 0.5 * c.noise(10))
    heat = np.clip(1 - np.abs(c.noise(5) - 0.5) / 0.09, 0, 1)
    return mix(rock, (1, 0.42, 0.05), heat)


def _curtain(c: _Canvas) -> Plane:
    folds = _wave(4.5 * c.x + 0.15 * c.noise(2))
    return mix((0.3, 0.02, 0.08), (0.72, 0.1, 0.2), folds * folds + 0 * c.y)


def _clouds(c: _Canvas) -> Plane:
    puffs = 0.6 * c.noise(4) + 0.4 * c.noise(9)
    return mix((0.3, 0.58, 0.92), (1, 1, 1), np.clip(5 * (puffs - 0.42), 0, 1))


def _tablecloth(c: _Canvas) -> Plane:
    bands = ((_fraction(4 * c.x) < 0.5).astype(np.float32) + (_fraction(4 * c.y) < 0.5)) / 2
    return mix((0.98, 0.97, 0.95), (0.25, 0.4, 0.72), bands * (0.92 + 0.08 * c.grain()))


_PAINTERS: dict[str, Callable[[_Canvas], Plane]] = {
    "on a beach": _beach,
    "in a night sky": _night_sky,
    "at a brick wall": _brick_wall,
    "in a forest": _forest,
    "in the snow": _snow,
    "on a wooden table": _wooden_table,
    "in a flower meadow": _flower_meadow,
    "in a desert": _desert,
    "on a tiled floor": _tiled_floor,
    "in a city": _city,
    "under water": _under_water,
    "at sunset": _sunset,
    "over glowing lava": _lava,
    "before a red curtain": _curtain,
    "among the clouds": _clouds,
    "on a checked tablecloth": _tablecloth,
}

SCENES = tuple(_PAINTERS)
"""The scenes, as phrases in captions."""


def paint(scene: str, height: int, width: int, rng: np.random.Generator) -> Plane:
    """Background of a scene, (3, height, width) float32 in [0, 1].

    Raises:
        ValueError: if the scene is unknown.
    """
    if scene not in _PAINTERS:
        raise ValueError(f"scene is {scene!r}; give one of {', '.join(map(repr, SCENES))}")
    return _PAINTERS[scene](_Canvas.create(height, width, rng))
