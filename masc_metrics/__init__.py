"""MaSC for TorchMetrics: subject fidelity and prompt adherence of personalised text-to-image models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masc_metrics import functional, scores
    from masc_metrics.backbone import PatchFeatures, SigLIP2Backbone, load_backbone, release_backbones
    from masc_metrics.identification import MaSCIdentification
    from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
    from masc_metrics.prompts import strip_subject
    from masc_metrics.settings import DEFAULT_MODEL

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

# Imported when they are first used, because the command line shows its help without torch.
_HOMES = {
    "DEFAULT_MODEL": "settings",
    "MaSCConceptPreservation": "metrics",
    "MaSCIdentification": "identification",
    "MaSCPromptFollowing": "metrics",
    "PatchFeatures": "backbone",
    "SigLIP2Backbone": "backbone",
    "load_backbone": "backbone",
    "release_backbones": "backbone",
    "strip_subject": "prompts",
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "scores"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
