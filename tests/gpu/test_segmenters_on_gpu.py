"""Segmenters on a GPU: their masks agree with the CPU's, on the pictures' device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import segmenter_checkpoints as build
from support.batches import images

from masc_metrics.segmenters import Segmenter, load_segmenter, release_segmenters

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CPU = torch.device("cpu")
SHARE = 0.99
"""Share of pixels on which the masks of both devices agree: kernels differ in rounding."""


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed
    release_segmenters()


@pytest.fixture(params=["sam3", "clipseg", "grounded_sam2", "owlv2_sam2"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Segmenter]:
    settings: dict[str, Any] = {
        "sam3": lambda: {"checkpoint": build.build_sam3(tmp_path / "sam3")},
        "clipseg": lambda: {"checkpoint": build.build_clipseg(tmp_path / "clipseg")},
        "grounded_sam2": lambda: {"checkpoint": build.build_grounding_dino(tmp_path / "dino"), "threshold": 0.998},
        "owlv2_sam2": lambda: {"checkpoint": build.build_owlv2(tmp_path / "owlv2"), "threshold": 0.7},
    }[request.param]()
    if request.param.endswith("sam2"):
        settings["mask_checkpoint"] = build.build_sam2(tmp_path / "sam2")
    return lambda **more: load_segmenter(request.param, **settings, **more)


def test_masks_agree_with_the_cpus_and_are_on_the_pictures_device(
    gpu: torch.device, load: Callable[..., Segmenter]
) -> None:
    pictures, nouns = [*images(2), images(1, 128, 70, seed=3)[0]], ["dog", "cat", "cup"]
    on_gpu = [picture.to(gpu) for picture in pictures]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = load(device="cpu")(pictures, nouns)
        for given, settings in ((on_gpu, {}), (on_gpu, {"device": "cpu"}), (pictures, {"device": gpu})):
            found = load(**settings)(given, nouns)
            for mask, other, picture in zip(found, expected, given, strict=True):
                assert mask.device == picture.device
                assert (mask.cpu() == other).float().mean() >= SHARE
