"""MaSC for TorchMetrics: subject fidelity and prompt adherence of personalised text-to-image models."""

from masc_metrics import functional, scores
from masc_metrics.backbone import PatchFeatures, SigLIP2Backbone, load_backbone, release_backbones
from masc_metrics.checkpoint import DEFAULT_MODEL
from masc_metrics.identification import MaSCIdentification
from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.prompts import strip_subject

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_MODEL",
    "MaSCConceptPreservation",
    "MaSCIdentification",
    "MaSCPromptFollowing",
    "PatchFeatures",
    "SigLIP2Backbone",
    "functional",
    "load_backbone",
    "release_backbones",
    "scores",
    "strip_subject",
]
