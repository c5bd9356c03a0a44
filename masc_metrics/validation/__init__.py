"""Validation of a model that generates images of concepts, without Lightning."""

from masc_metrics.validation.concepts import Concept
from masc_metrics.validation.validate import ConceptValidation, ValidatedImage, validate_concepts

__all__ = ["Concept", "ConceptValidation", "ValidatedImage", "validate_concepts"]
