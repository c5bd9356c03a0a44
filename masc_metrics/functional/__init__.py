"""Scores of images, masks and prompts: one for each sample, as accumulated by the metric classes."""

from masc_metrics.functional.following import (
    PromptScores,
    background_maps,
    check_pooling,
    cut_prompt,
    prompt_following,
    prompt_following_variants,
)
from masc_metrics.functional.gallery import ConceptAnchors, concept_anchors, concept_matrix
from masc_metrics.functional.preservation import (
    concept_preservation,
    concept_preservation_variants,
    match_maps,
)
from masc_metrics.functional.sensitivity import MaskSensitivity, mask_sensitivity
from masc_metrics.functional.transferring import Refiner, check_transfer, transfer_masks
from masc_metrics.settings import DEFAULT_AGGREGATION, DEFAULT_POOLING, Aggregation, Pooling

__all__ = [
    "DEFAULT_AGGREGATION",
    "DEFAULT_POOLING",
    "Aggregation",
    "ConceptAnchors",
    "MaskSensitivity",
    "Pooling",
    "PromptScores",
    "Refiner",
    "background_maps",
    "check_pooling",
    "check_transfer",
    "concept_anchors",
    "concept_matrix",
    "concept_preservation",
    "concept_preservation_variants",
    "cut_prompt",
    "mask_sensitivity",
    "match_maps",
    "prompt_following",
    "prompt_following_variants",
    "transfer_masks",
]
