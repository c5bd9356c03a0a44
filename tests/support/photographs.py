"""Photographs of scikit-image with hand-drawn subject masks, and subjects pasted into other photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

Outline = list[tuple[float, float]]

# Outlines in fractions of width and height; an ellipse is given by the corners of its box.
_POLYGONS: dict[str, list[Outline]] = {
    "cat": [
        [(0, 0.3), (0.08, 0.2), (0.08, 0), (0.88, 0), (0.8, 0.22), (0.81, 0.5), (0.72, 0.65), (0.66, 0.88),
         (0.55, 0.95), (0.5, 1), (0, 1)],
    ],
    "astronaut": [
        [(0.3, 0.1), (0.42, 0.02), (0.58, 0.08), (0.59, 0.25), (0.55, 0.32), (0.6, 0.47), (0.68, 0.53), (0.71, 0.68),
         (0.86, 0.66), (0.97, 0.75), (1, 0.93), (0.95, 1), (0.05, 1), (0.04, 0.7), (0.1, 0.53), (0.22, 0.42),
         (0.24, 0.33), (0.33, 0.3), (0.3, 0.2)],
    ],
    "rocket": [[(0.505, 0.28), (0.57, 0.35), (0.57, 0.97), (0.44, 0.97), (0.44, 0.35)]],
    "coffee": [],
}  # fmt: skip
_ELLIPSES: dict[str, list[Outline]] = {"coffee": [[(0.128, 0.2), (0.8, 0.975)], [(0.29, 0.05), (0.68, 0.7)]]}

PROMPTS = {
    "cat": "A photo of a cat at a brick wall",
    "coffee": "the coffee in a night sky",
    "astronaut": "an astronaut on a beach, astronaut smiling",
    "rocket": "Rocket in a sunny garden",
}


@dataclass(frozen=True)
class Photograph:
    """An RGB image and the mask of its subject, 0 or 255."""

    name: str
    image: Image.Image
    mask: Image.Image

    def resized(self, height: int, width: int) -> Photograph:
        size = (width, height)
        image = self.image.resize(size, Image.Resampling.BICUBIC)
        return Photograph(self.name, image, self.mask.resize(size, Image.Resampling.NEAREST))


@cache
def photograph(name: str) -> Photograph:
    image = Image.fromarray(getattr(skimage.data, name)())
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)

    def pixels(outline: Outline) -> list[tuple[float, float]]:
        return [(x * image.width, y * image.height) for x, y in outline]

    for polygon in _POLYGONS[name]:
        draw.polygon(pixels(polygon), fill=255)
    for ellipse in _ELLIPSES.get(name, []):
        draw.ellipse(pixels(ellipse), fill=255)
    return Photograph(name, image, mask)


def pasted(subject: str, scene: str, height: int, width: int) -> Photograph:
    """Simulated generated image: the subject, reduced in size, pasted into another photograph."""
    cut = photograph(subject).resized(round(height * 0.6), round(width * 0.6))
    background = photograph(scene).resized(height, width)
    image, mask = background.image.copy(), Image.new("L", (width, height))
    corner = (round(width * 0.3), round(height * 0.35))
    image.paste(cut.image, corner, cut.mask)
    mask.paste(cut.mask, corner)
    return Photograph(subject, image, mask)


def array(mask: Image.Image) -> np.ndarray:
    return np.array(mask)
