"""Metrics on a GPU: equal to the CPU's, independent of the batch, without hidden synchronization, memory given back."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, counted_encodings, images, only, rows
from support.gpu import (
    KERNEL_TOLERANCE,
    RESIZE_TOLERANCE,
    allocated_bytes,
    counted_synchronizations,
    no_synchronization,
)
from torch import Tensor

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing, functional, load_backbone, release_backbones
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.cache import content_digests
from masc_metrics.images import check_images, resize
from masc_metrics.scores import embedding_cosine, masked_max_cosine

# Versions on a GPU machine are not pinned, so third-party warnings are not errors there.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

GRID = {"height": 128, "width": 128}
"""Sides of an image that 64 patches of 16 pixels cover without a resize."""

Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding of fixed-resolution checkpoints is a convolution
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture(params=["tiny", "random", "fixed"])
def model(request: pytest.FixtureRequest, checkpoint: Path, fixed_checkpoint: Path) -> str | Path:
    return {"tiny": "tiny", "random": checkpoint, "fixed": fixed_checkpoint}[request.param]


def scores(backbone: SigLIP2Backbone, arguments: dict[str, Any], **settings: Any) -> Tensor:
    """(2, B): CP and PF, on the CPU."""
    settings = {"backbone": backbone, "max_num_patches": PATCHES, **settings}
    cp = functional.concept_preservation(**only(arguments, CP_ARGUMENTS), **settings)
    pf = functional.prompt_following(**only(arguments, PF_ARGUMENTS), **settings)
    return torch.stack([cp, pf]).cpu()


def mixed_batch() -> dict[str, Any]:
    """Samples of several sizes, some of which need a resize."""
    parts = [batch(2, seed=10 * index, **size) for index, size in enumerate(({}, GRID, {"height": 61, "width": 200}))]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def moved(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: [value.to(device) if isinstance(value, Tensor) else value for value in values]
        for name, values in arguments.items()
    }


def deviation(record_property: Record, name: str, ours: Tensor, expected: Tensor) -> float:
    """Largest difference, kept in the junit file under the name."""
    assert torch.equal(ours.isnan(), expected.isnan())
    largest = (ours - expected).abs().nan_to_num().max().item()
    record_property(name, f"{largest:.2e}")
    print(f"{name}: {largest:.2e}")
    return largest


def test_scores_of_images_given_on_the_cpu_equal_the_cpus(
    model: str | Path, gpu: torch.device, record_property: Record
) -> None:
    arguments = mixed_batch()
    expected = scores(load_backbone(model), arguments)
    ours = scores(load_backbone(model, device=gpu), arguments)
    assert deviation(record_property, "uint8 on the CPU", ours, expected) <= 1e-5


def test_scores_of_float_images_given_on_the_device_equal_the_cpus(
    model: str | Path, gpu: torch.device, record_property: Record
) -> None:
    arguments = mixed_batch()
    for name in ("generated_images", "reference_images"):
        arguments[name] = [image / 255 for image in arguments[name]]
    expected = scores(load_backbone(model), arguments)
    ours = scores(load_backbone(model, device=gpu), moved(arguments, gpu))
    assert deviation(record_property, "float on the device", ours, expected) <= KERNEL_TOLERANCE


def test_uint8_images_given_on_the_device_differ_by_one_gray_level_at_most(
    model: str | Path, gpu: torch.device, record_property: Record
) -> None:
    arguments = mixed_batch()
    on_cpu, on_gpu = load_backbone(model), load_backbone(model, device=gpu)
    processing = on_cpu.checkpoint.processing
    for image in arguments["generated_images"]:
        grid = processing.grid(image.shape[1], image.shape[2], PATCHES)
        levels = resize(image.to(gpu), grid, processing).cpu().int() - resize(image, grid, processing).int()
        assert levels.abs().max() <= 1
    ours = scores(on_gpu, moved(arguments, gpu))
    largest = deviation(record_property, "uint8 on the device", ours, scores(on_cpu, arguments))
    assert largest <= RESIZE_TOLERANCE


def test_content_digests_are_the_same_on_both_devices(gpu: torch.device) -> None:
    for width in (128, 61):
        pixels = images(5, 48, width)
        for values in (pixels, pixels / 255):
            assert torch.equal(content_digests(values.to(gpu)).cpu(), content_digests(values))


def test_reference_met_on_the_cpu_is_recognized_on_the_device(checkpoint: Path, gpu: torch.device) -> None:
    backbone = load_backbone(checkpoint, device=gpu)
    reference = images(1, **GRID)
    backbone.encode_images(reference, max_num_patches=PATCHES)
    with counted_encodings() as counts:
        backbone.encode_images(reference.to(gpu), max_num_patches=PATCHES)
    assert counts["images"] == 0


def test_batch_composition_does_not_change_a_float32_score(
    model: str | Path, gpu: torch.device, record_property: Record
) -> None:
    arguments = mixed_batch()
    count = len(arguments["prompts"])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        backbone = load_backbone(model, device=gpu, dtype=dtype)
        together = scores(backbone, arguments)
        backbone.cache.clear()
        backbone.text_cache.clear()
        separate = torch.cat([scores(backbone, rows(arguments, index)) for index in range(count)], dim=1)
        assert deviation(record_property, f"batch composition, {dtype}", separate, together) <= tolerance


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_metric_moved_in_mid_epoch_keeps_its_samples(reduction: Any, checkpoint: Path, gpu: torch.device) -> None:
    arguments = batch(4, **GRID)
    expected = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, reduction=reduction)
    expected.update(**only(arguments, CP_ARGUMENTS), sample_ids=torch.arange(4))
    metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, reduction=reduction)
    metric.update(**only(rows(arguments, 0, 1), CP_ARGUMENTS), sample_ids=torch.arange(2))
    metric = metric.to(gpu)
    metric.update(**only(rows(arguments, 2, 3), CP_ARGUMENTS), sample_ids=torch.arange(2, 4, device=gpu))
    value = metric.compute()
    assert value.device.type == gpu.type
    assert metric.backbone.device.type == gpu.type
    assert torch.allclose(value.cpu(), expected.compute(), atol=1e-5)
    metric = metric.cpu()
    metric.update(**only(rows(arguments, 0), CP_ARGUMENTS), sample_ids=[9])
    assert metric.compute().device.type == "cpu"


def test_release_text_tower_gives_its_memory_back(checkpoint: Path, gpu: torch.device) -> None:
    backbone = load_backbone(checkpoint, device=gpu).load(text_tower=True)
    weights = sum(parameter.nbytes for parameter in backbone._text.network.parameters())
    before = allocated_bytes(gpu)
    backbone.release_text_tower()
    if gpu.type == "cuda":
        assert before - allocated_bytes(gpu) >= weights
    assert not backbone.text_tower_loaded


def test_release_backbones_gives_all_memory_back(checkpoint: Path, gpu: torch.device) -> None:
    def evaluate() -> None:
        arguments = batch(2, **GRID)
        for metric, names in ((MaSCConceptPreservation, CP_ARGUMENTS), (MaSCPromptFollowing, PF_ARGUMENTS)):
            evaluation = metric(checkpoint, max_num_patches=PATCHES).to(gpu)
            evaluation.update(**only(arguments, names))
            evaluation.compute()
        del evaluation
        release_backbones()
        gc.collect()

    evaluate()  # constants of the digest and of the libraries stay
    before = allocated_bytes(gpu)
    evaluate()
    assert allocated_bytes(gpu) == before


def test_each_stage_runs_without_synchronization(checkpoint: Path, gpu: torch.device) -> None:
    """The stages between the wait for the digests of a part and the one look at the scores of an update."""
    backbone = load_backbone(checkpoint, device=gpu).load(text_tower=True)
    arguments = batch(3, **GRID)
    expected = scores(backbone, arguments)  # constants reach the device here
    features = backbone.encode_images(arguments["generated_images"], max_num_patches=PATCHES)
    foreground_BN = features.valid_BN.clone()
    pictures = check_images(arguments["generated_images"], "generated_images").images
    pixels = torch.stack(pictures).to(gpu)
    texts = [text.lower() for text in arguments["prompts"]]
    metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES).to(gpu)
    scores_B = expected[0].to(gpu)
    with torch.no_grad(), no_synchronization(gpu):
        digests = content_digests(pixels)
        tokens_BND = backbone._vision.encode(pixels)
        pooled_BD = backbone.pool(features, foreground_BN)
        cp_B = masked_max_cosine(features.tokens_BND, foreground_BN, tokens_BND, features.valid_BN)
        text_BD = backbone._text.encode(texts)
        pf_B = embedding_cosine(pooled_BD, text_BD)
        metric.accumulate(scores_B, None)
    assert torch.isfinite(cp_B).all()
    assert torch.isfinite(pf_B).all()
    assert len(digests) == 3


@pytest.mark.parametrize("known", [False, True], ids=["new images", "known images"])
def test_update_synchronizes_once_at_its_end(known: bool, checkpoint: Path, gpu: torch.device) -> None:
    arguments = batch(6, **GRID)
    settings: dict[str, Any] = {"max_num_patches": PATCHES, "encode_batch_size": 2}
    for metric, names in (
        (MaSCConceptPreservation(checkpoint, **settings).to(gpu), CP_ARGUMENTS),
        (MaSCPromptFollowing(checkpoint, **settings).to(gpu), PF_ARGUMENTS),
    ):
        metric.update(**only(arguments, names))  # reads the towers
        if not known:
            metric.backbone.cache.clear()
            metric.backbone.text_cache.clear()
        with counted_synchronizations(gpu) as synchronizations:
            metric.update(**only(arguments, names))
        if gpu.type == "cuda":
            # Waiting for the digests of a part is not counted: it does not wait for what was queued after them.
            assert len(synchronizations) == 1, synchronizations


def test_compute_waits_for_the_device_once(checkpoint: Path, gpu: torch.device) -> None:
    arguments = batch(3, **GRID)
    for metric, names in (
        (MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES).to(gpu), CP_ARGUMENTS),
        (MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES).to(gpu), PF_ARGUMENTS),
    ):
        metric.update(**only(arguments, names))
        with counted_synchronizations(gpu) as synchronizations:
            metric.compute()
        if gpu.type == "cuda":
            assert len(synchronizations) == 1, synchronizations


def evaluated_under_nccl(rank: int, world: int, checkpoint: str, device: str) -> list[Tensor]:
    arguments = batch(3, **GRID)
    results = []
    for reduction in ("mean", "none"):
        metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, reduction=reduction).to(device)  # type: ignore[arg-type]
        for row in (0, 1):
            metric.update(**only(rows(arguments, row), CP_ARGUMENTS), sample_ids=torch.tensor([4], device=device))
        metric.update(**only(rows(arguments, 2), CP_ARGUMENTS))
        results.append(metric.compute().cpu())
        empty = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, reduction=reduction).to(device)  # type: ignore[arg-type]
        results.append(empty.compute().cpu())
    return results


def test_states_and_ids_gather_under_nccl(checkpoint: Path, gpu: torch.device, tmp_path: Path) -> None:
    backend = "nccl" if gpu.type == "cuda" else "gloo"
    (results,) = processes.run(
        evaluated_under_nccl, 1, tmp_path, str(checkpoint), gpu.type, limit_s=110, backend=backend
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of an empty metric
        expected = evaluated_under_nccl(0, 1, str(checkpoint), "cpu")
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, equal_nan=True)
