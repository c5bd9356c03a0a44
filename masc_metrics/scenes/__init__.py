"""Rendered concept scenes with exact masks and known truth: subjects of four attributes before textured backgrounds.

They show in seconds, offline, what a checkpoint or a metric can tell apart. A *subject* is a shape, two colours and a
pattern; *identity damage* is how many of these four were changed, *prompt damage* whether another scene was painted
than the prompt asks for. Everything is numpy and seeded: the same arguments give the same picture, as (3, H, W) uint8
with an (H, W) bool mask, which the metrics take after ``torch.from_numpy``.

Example:
    >>> from masc_metrics.scenes import Subject, render
    >>> picture = render(Subject("star", "red", "blue", "striped"), "on a beach", seed=0)
    >>> picture.caption, picture.image.shape
    ('a red and blue striped star on a beach', (3, 128, 128))
"""

from masc_metrics.scenes.backgrounds import SCENES
from masc_metrics.scenes.pictures import ConceptBenchmark, Picture, caption, concept_benchmark, render
from masc_metrics.scenes.subjects import ATTRIBUTES, COLOURS, PATTERNS, SHAPES, Subject, random_subject

__all__ = [
    "ATTRIBUTES",
    "COLOURS",
    "PATTERNS",
    "SCENES",
    "SHAPES",
    "ConceptBenchmark",
    "Picture",
    "Subject",
    "caption",
    "concept_benchmark",
    "random_subject",
    "render",
]
