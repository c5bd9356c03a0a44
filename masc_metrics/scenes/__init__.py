"""Rendered scenes with exact masks and known ground truth: subjects with four attributes on textured backgrounds.

They test offline, in seconds, what a checkpoint or a metric can distinguish. A *subject* has a shape, two colours and a
pattern. *Identity damage* is the number of changed attributes; *prompt damage* is whether the scene differs from the
prompt. Rendering uses numpy and a seed: equal arguments give equal images, as (3, H, W) uint8 with an (H, W) bool mask,
which the metrics accept after ``torch.from_numpy``.

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
