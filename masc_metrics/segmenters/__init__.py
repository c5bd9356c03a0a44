"""Masks from text: frozen segmentation networks that mark what a noun names in a picture."""

from masc_metrics.segmenters.segmenter import Segmentation, Segmenter, load_segmenter, release_segmenters

__all__ = ["Segmentation", "Segmenter", "load_segmenter", "release_segmenters"]
