"""Validation of a model that generates images of concepts, without Lightning."""

from masc_metrics.validation.concepts import Concept
from masc_metrics.validation.loggers import log_validation
from masc_metrics.validation.rank_reports import Anchors
from masc_metrics.validation.steps import checkpoint_step
from masc_metrics.validation.training_report import add_to_report
from masc_metrics.validation.validate import ConceptValidation, ValidatedImage, validate_concepts

__all__ = [
    "Anchors",
    "Concept",
    "ConceptValidation",
    "ValidatedImage",
    "add_to_report",
    "checkpoint_step",
    "log_validation",
    "validate_concepts",
]
