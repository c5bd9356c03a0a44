"""Choices and defaults of settings that the command line shows: this module imports no torch, so that help is quick."""

from __future__ import annotations

from typing import Literal

DEFAULT_MODEL = "google/siglip2-so400m-patch16-naflex"

BUNDLED_MODEL = "tiny"
"""Name of the small bundled checkpoint, trained only on rendered scenes."""

DEFAULT_ENCODE_BATCH_SIZE = 16
"""Images or texts that pass the network together."""

Pooling = Literal["background", "full", "foreground"]
DEFAULT_POOLING: Pooling = "background"

Aggregation = Literal["masked", "weighted", "global", "mutual-recall"]
DEFAULT_AGGREGATION: Aggregation = "masked"

ReferenceReduction = Literal["mean", "max", "pool"]
DEFAULT_REFERENCE_REDUCTION: ReferenceReduction = "mean"

SEGMENTERS = ("sam3", "clipseg", "grounded_sam2", "owlv2_sam2")
DEFAULT_SEGMENTER = "sam3"
DEFAULT_SEGMENTER_BATCH_SIZE = 4

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the dtypes that networks support, by their short names; both are accepted."""
