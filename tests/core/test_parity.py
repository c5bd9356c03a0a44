"""Parity with the authors' masc-metric package and with a readable float64 loop, on real photographs."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, masks, only
from support.photographs import PROMPTS, Photograph, array, pasted, photograph
from support.reference import Reference

from masc_metrics import load_backbone
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.grid import naflex_grid
from masc_metrics.images import patchify

PAIRS = [("cat", "coffee"), ("coffee", "rocket"), ("astronaut", "cat"), ("rocket", "astronaut")]
UNRESIZED = [(512, 512), (256, 1024), (1024, 256)]
RESIZED = [(300, 451), (427, 640), (640, 1024), (1024, 640), (601, 599), (333, 777), (120, 90), (180, 900), (768, 512)]
EXTREME = [(64, 900), (1500, 40), (17, 23)]

# masc-metric 0.3.0 requires transformers 5.6: older versions do not have its keyword for the padding mask.
masc_metric = pytest.mark.skipif(
    tuple(map(int, version("transformers").split(".")[:2])) < (5, 6), reason="masc-metric 0.3.0 needs transformers>=5.6"
)


def ours(folder: Path, generated: Photograph, reference: Photograph, **settings: int) -> tuple[float, float]:
    backbone = load_backbone(folder)
    cp = concept_preservation([generated.image], [reference.image], [reference.mask], backbone=backbone, **settings)
    pf = prompt_following(
        [generated.image], [generated.mask], [PROMPTS[generated.name]], [generated.name], backbone=backbone, **settings
    )
    return cp.item(), pf.item()


def theirs(
    folder: Path, generated: Photograph, reference: Photograph, prompt: str | None = None
) -> tuple[float, float]:
    from masc import MaSC

    scorer = MaSC(str(folder), device="cpu")
    result = scorer.score(
        reference.image,
        array(reference.mask),
        generated.image,
        array(generated.mask),
        prompt or PROMPTS[generated.name],
        generated.name,
    )
    return result.cp, result.pf


def on_its_grid(photo: Photograph) -> Photograph:
    """Resize an image by torch's uint8 kernel to the pixels of its patch grid, so that the processor keeps them."""
    height, width = photo.image.height, photo.image.width
    rows, columns = naflex_grid(height, width, patch_size=16)
    assert naflex_grid(rows * 16, columns * 16, patch_size=16) == (rows, columns)
    pixels = torch.from_numpy(np.array(photo.image)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, size=(rows * 16, columns * 16), mode="bilinear", antialias=True)
    return Photograph(photo.name, Image.fromarray(resized[0].permute(1, 2, 0).numpy()), photo.mask)


@masc_metric
@pytest.mark.parametrize("size", UNRESIZED, ids=str)
@pytest.mark.parametrize(("subject", "scene"), PAIRS)
def test_scores_equal_masc_metric_without_resampling(
    checkpoint: Path, subject: str, scene: str, size: tuple[int, int]
) -> None:
    generated, reference = pasted(subject, scene, *size), photograph(subject).resized(*size)
    assert ours(checkpoint, generated, reference) == pytest.approx(theirs(checkpoint, generated, reference), abs=1e-5)


@masc_metric
@pytest.mark.parametrize("size", [*RESIZED, *EXTREME], ids=str)
def test_scores_equal_masc_metric_on_pixels_of_torchs_kernel(checkpoint: Path, size: tuple[int, int]) -> None:
    """With torchvision, masc-metric resizes by torch's uint8 kernel; here, images are resized by it beforehand."""
    for subject, scene in PAIRS:
        generated, reference = pasted(subject, scene, *size), photograph(subject).resized(*size)
        expected = theirs(checkpoint, on_its_grid(generated), on_its_grid(reference))
        assert ours(checkpoint, generated, reference) == pytest.approx(expected, abs=1e-5, nan_ok=True)


@masc_metric
@pytest.mark.parametrize("size", RESIZED, ids=str)
def test_scores_are_close_to_masc_metric_resizing_with_pil(checkpoint: Path, size: tuple[int, int]) -> None:
    for subject, scene in PAIRS:
        generated, reference = pasted(subject, scene, *size), photograph(subject).resized(*size[::-1])
        expected = theirs(checkpoint, generated, reference)
        assert ours(checkpoint, generated, reference) == pytest.approx(expected, abs=2e-4)


@masc_metric
@pytest.mark.parametrize("size", [(300, 451), (512, 512), (601, 599)], ids=str)
def test_fixed_resolution_scores_are_close_to_masc_metric(fixed_checkpoint: Path, size: tuple[int, int]) -> None:
    for subject, scene in PAIRS:
        generated, reference = pasted(subject, scene, *size), photograph(subject).resized(*size)
        # SigLIP2 was trained on lower-cased text; masc-metric relies on the tokenizer, which does not lower-case for
        # these checkpoints.
        expected = theirs(fixed_checkpoint, generated, reference, PROMPTS[subject].lower())
        assert ours(fixed_checkpoint, generated, reference) == pytest.approx(expected, abs=2e-4)


@masc_metric
def test_degenerate_samples_are_nan_as_in_masc_metric(checkpoint: Path) -> None:
    image = photograph("cat").resized(256, 256).image
    empty = Photograph("cat", image, Image.new("L", (256, 256), 0))
    full = Photograph("cat", image, Image.new("L", (256, 256), 255))
    assert np.isnan(ours(checkpoint, full, empty)).all()
    assert np.isnan(theirs(checkpoint, full, empty)).all()


@pytest.mark.parametrize("size", [*UNRESIZED, *RESIZED], ids=str)
def test_pixels_equal_those_of_the_checkpoints_processor(checkpoint: Path, size: tuple[int, int]) -> None:
    from transformers import AutoImageProcessor

    image = photograph("astronaut").resized(*size).image
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    expected = processor(images=[image], return_tensors="pt", max_num_patches=1024)
    processing = load_backbone(checkpoint).checkpoint.processing
    grid = naflex_grid(*size, patch_size=16)
    assert grid == tuple(expected["spatial_shapes"][0].tolist())
    patches = patchify(torch.from_numpy(np.array(image)).permute(2, 0, 1), grid, processing)
    difference = (patches - torch.as_tensor(expected["pixel_values"][0])[: len(patches)]).abs().max()
    assert difference <= (1e-6 if size in UNRESIZED else 2 / 255 + 1e-6)  # one grey level is 2/255 after normalisation


@pytest.mark.parametrize("size", [(128, 128), (90, 170), (333, 200)], ids=str)
@pytest.mark.parametrize("kind", ["naflex", "fixed"])
def test_scores_equal_the_float64_loop(
    kind: str, size: tuple[int, int], checkpoint: Path, fixed_checkpoint: Path
) -> None:
    folder = {"naflex": checkpoint, "fixed": fixed_checkpoint}[kind]
    loop = Reference(folder, PATCHES)
    for subject, scene in PAIRS:
        generated, reference = pasted(subject, scene, *size), photograph(subject).resized(*size[::-1])
        expected_cp = loop.cp(array(generated.image), array(reference.image), array(reference.mask))
        expected_pf = loop.pf(array(generated.image), array(generated.mask), PROMPTS[subject], subject)
        cp, pf = ours(folder, generated, reference, max_num_patches=PATCHES)
        assert cp == pytest.approx(expected_cp, abs=2e-6, nan_ok=True)
        assert pf == pytest.approx(expected_pf, abs=2e-6, nan_ok=True)


def test_soft_masks_are_compared_with_the_threshold_in_float32(checkpoint: Path) -> None:
    """A coverage of exactly 0.5 is neither foreground of a reference nor background of a generated image."""
    arguments = batch(2)
    halves = torch.full(masks(2).shape, 0.5)
    backbone = load_backbone(checkpoint, dtype=torch.bfloat16)
    settings = {"backbone": backbone, "max_num_patches": PATCHES}
    cp = concept_preservation(**only(arguments, CP_ARGUMENTS) | {"reference_masks": halves}, **settings)
    pf = prompt_following(**only(arguments, PF_ARGUMENTS) | {"generated_masks": halves}, **settings)
    assert cp.isnan().all()
    assert pf.isnan().all()
    above = halves + 1e-4  # rounds to 0.5 in bfloat16
    cp = concept_preservation(**only(arguments, CP_ARGUMENTS) | {"reference_masks": above}, **settings)
    assert cp.isfinite().all()
