"""Subjects of rendered scenes, with a shape, two colours and a pattern; held-out subjects and identity damage.

Shapes: H, W image sides in pixels; planes are (H, W), in units of the subject's radius.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from masc_metrics.scenes.backgrounds import Colour, Plane

ATTRIBUTES = 4
"""Number of attributes of a subject, which is the maximum identity damage."""

_RIM = 0.11
"""Width of the rim in the first colour, in units of the subject's radius."""


class _Point(NamedTuple):
    """Pixels in coordinates of the subject: u right, v down, about -1 to 1 inside it; r and a are polar coordinates."""

    u: Plane
    v: Plane

    @property
    def r(self) -> Plane:
        return np.hypot(self.u, self.v)

    @property
    def a(self) -> Plane:
        return np.arctan2(self.u, -self.v)


# Each function is approximately the signed distance to the outline, positive inside, in units of the subject's radius.


def _box(p: _Point, half_width: float, top: float, bottom: float) -> Plane:
    return np.minimum(half_width - np.abs(p.u), np.minimum(bottom - p.v, p.v - top))


def _wedge(p: _Point, tip: float, base: float, half_angle: float) -> Plane:
    """Triangle with its tip at the top."""
    sides = (p.v - tip) * np.float32(np.sin(half_angle)) - np.abs(p.u) * np.float32(np.cos(half_angle))
    return np.minimum(sides, base - p.v)


def _disc(p: _Point, radius: float, down: float = 0.0, right: float = 0.0) -> Plane:
    return radius - np.hypot(p.u - right, p.v - down)


def _star(p: _Point) -> Plane:
    fold = np.abs((p.a + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # angle to the nearest of five tips
    radius, (tip, notch) = p.r, (1.0, 0.42 * np.exp(1j * np.pi / 5))
    normal = (tip - notch) * 1j / abs(tip - notch)
    return -(radius * np.cos(fold) - tip) * np.float32(normal.real) - radius * np.sin(fold) * np.float32(normal.imag)


def _heart(p: _Point) -> Plane:
    side = _Point(np.abs(p.u), p.v)
    return np.maximum((0.78 - side.u - np.abs(p.v - 0.08)) * np.float32(0.7071), _disc(side, 0.55, -0.31, 0.39))


def _fish(p: _Point) -> Plane:
    body = 0.5 * (1 - np.hypot((p.u + 0.2) / 0.75, p.v / 0.52))
    return np.maximum(body, _wedge(_Point(p.v, p.u), 0.2, 0.95, 0.65))


_SHAPES: dict[str, Callable[[_Point], Plane]] = {
    "ball": lambda p: _disc(p, 0.88),
    "box": lambda p: _box(p, 0.76, -0.76, 0.76),
    "star": _star,
    "heart": _heart,
    "cross": lambda p: np.maximum(_box(p, 0.32, -0.92, 0.92), _box(p, 0.92, -0.32, 0.32)),
    "ring": lambda p: np.minimum(_disc(p, 0.92), -_disc(p, 0.42)),
    "moon": lambda p: np.minimum(_disc(p, 0.92), -_disc(p, 0.66, right=0.46)),
    "flower": lambda p: 0.7 + 0.22 * np.cos(5 * p.a) - p.r,
    "gear": lambda p: np.minimum(0.75 + 0.15 * np.clip(3 * np.sin(8 * p.a), -1, 1) - p.r, p.r - 0.2),
    "drop": lambda p: np.maximum(_disc(p, 0.6, 0.3), _wedge(p, -0.95, 0, 0.5)),
    "arrow": lambda p: np.maximum(_box(p, 0.3, -0.2, 0.92), _wedge(p, -0.95, 0.1, 0.7)),
    "house": lambda p: np.maximum(_box(p, 0.62, -0.15, 0.85), _wedge(p, -0.95, -0.1, 0.85)),
    "fish": _fish,
    "mushroom": lambda p: np.maximum(np.minimum(_disc(p, 0.9, 0.05), 0.1 - p.v), _box(p, 0.28, 0, 0.85)),
}

# Positive where the second colour is visible; the slope is about 1 in units of the subject's radius.
_PATTERNS: dict[str, Callable[[_Point], Plane]] = {
    "striped": lambda p: (np.sin(11 * p.u) - 0.1) / 11,
    "dotted": lambda p: 0.15 - np.hypot((p.u + 0.2) % 0.46 - 0.23, (p.v + 0.2) % 0.46 - 0.23),
    "checked": lambda p: np.sin(7.5 * p.u) * np.sin(7.5 * p.v) / 7.5,
    "ringed": lambda p: (np.sin(12 * p.r) - 0.1) / 12,
    "halved": lambda p: p.v - 0.05,
}

_COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.1, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.98, 0.9, 0.15),
    "green": (0.1, 0.6, 0.2),
    "blue": (0.1, 0.28, 0.85),
    "purple": (0.52, 0.15, 0.62),
    "white": (0.97, 0.97, 0.97),
    "black": (0.08, 0.08, 0.09),
}

# Values of the attributes of a subject.
SHAPES, PATTERNS, COLOURS = tuple(_SHAPES), tuple(_PATTERNS), tuple(_COLOURS)


def with_article(name: str) -> str:
    """Prefix a name with its indefinite article, such as "a star" and "an arrow"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A rendered concept with four attributes.

    Attributes:
        shape: one of ``SHAPES``.
        primary: colour of the rim and the base, one of ``COLOURS``.
        secondary: colour of the pattern, different from ``primary``.
        pattern: one of ``PATTERNS``.

    Raises:
        ValueError: if an attribute is unknown, or both colours are equal.
    """

    shape: str
    primary: str
    secondary: str
    pattern: str

    def __post_init__(self) -> None:
        for name, known in (("shape", SHAPES), ("primary", COLOURS), ("secondary", COLOURS), ("pattern", PATTERNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(known)}")
        if self.primary == self.secondary:
            raise ValueError(f"primary and secondary are both {self.primary!r}; give two colours")

    @property
    def name(self) -> str:
        """Name of the subject, such as "red and blue striped star"."""
        return f"{self.primary} and {self.secondary} {self.pattern} {self.shape}"

    @property
    def held_out(self) -> bool:
        """Whether the bundled checkpoint was not trained on this shape in these colours: one triple in four."""
        return zlib.crc32(f"{self.shape} {self.primary} {self.secondary}".encode()) % 4 == 0

    @property
    def colours(self) -> tuple[Colour, Colour]:
        """Red, green and blue in [0, 1] of the primary and the secondary colour."""
        return _COLOURS[self.primary], _COLOURS[self.secondary]

    def outlines(self, u: Plane, v: Plane) -> tuple[Plane, Plane]:
        """Approximate signed distances to the outlines of the subject and of its pattern, positive inside.

        Args:
            u: horizontal coordinate, to the right, in units of the subject's radius from its centre.
            v: vertical coordinate, downwards.
        """
        inside = _SHAPES[self.shape](_Point(u, v))
        return inside, np.minimum(_PATTERNS[self.pattern](_Point(u, v)), inside - _RIM)

    def damaged(self, count: int, rng: np.random.Generator) -> Subject:
        """Random subject that differs in ``count`` attributes and is held out if and only if this subject is.

        A colour is replaced by a colour that this subject does not have.

        Raises:
            ValueError: if ``count`` is not in 0..4.
        """
        if not 0 <= count <= ATTRIBUTES:
            raise ValueError(f"count is {count}; a subject has {ATTRIBUTES} attributes to change")
        if count == 0:
            return self
        colours = [colour for colour in COLOURS if colour not in (self.primary, self.secondary)]
        choices = {"shape": SHAPES, "primary": colours, "secondary": colours, "pattern": PATTERNS}
        while True:  # some sets of attributes have no such result; the pattern always does
            names = rng.choice([field.name for field in fields(self)], size=count, replace=False).tolist()
            others = [[value for value in choices[name] if value != getattr(self, name)] for name in names]
            changes = [dict(zip(names, values, strict=True)) for values in product(*others)]
            subjects = [replace(self, **c) for c in changes if c.get("primary", "") != c.get("secondary")]
            subjects = [subject for subject in subjects if subject.held_out == self.held_out]
            if subjects:
                return subjects[rng.integers(len(subjects))]


def random_subject(rng: np.random.Generator, *, held_out: bool) -> Subject:
    """Random subject on which the bundled checkpoint was trained, or a held-out one."""
    while True:
        primary, secondary = rng.choice(COLOURS, size=2, replace=False)
        subject = Subject(str(rng.choice(SHAPES)), str(primary), str(secondary), str(rng.choice(PATTERNS)))
        if subject.held_out == held_out:
            return subject
