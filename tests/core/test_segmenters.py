"""Masks from text: equal to transformers' own, batches, precision, recipes, the cache and errors."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from PIL import Image
from support import segmenter_checkpoints as build
from support.batches import images
from support.segmenter_checkpoints import BUILDERS, PARTS, THRESHOLDS, requires
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio

import masc_metrics.segmenters.networks as networks_module
import masc_metrics.segmenters.segmenter as segmenter_module
from masc_metrics import load_backbone
from masc_metrics.functional import transfer_masks
from masc_metrics.segmenters import Segmentation, Segmenter, load_segmenter, release_segmenters
from masc_metrics.segmenters.networks import Boxes, Network, Sam2
from masc_metrics.segmenters.preparation import HALF, padded_pixels, read_processing, resized_pixels, shortest_edge_size
from masc_metrics.settings import DEFAULT_SEGMENTER, SEGMENTERS

CPU = torch.device("cpu")
NOUNS = ["dog", "a cat", "cup", "dog", "pig"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("segmenters")

    def folder(part: str) -> Path:
        requires(part)
        return root / part if (root / part).is_dir() else BUILDERS[part](root / part)

    return folder


@pytest.fixture
def tiny(folder_of: Callable[[str], Path]) -> Callable[..., Segmenter]:
    """Loads a segmenter of tiny networks by its name."""

    def load(name: str, **settings: Any) -> Segmenter:
        requires(*PARTS[name])
        checkpoint, *mask = (folder_of(part) for part in PARTS[name])
        settings = {"checkpoint": checkpoint, "threshold": THRESHOLDS.get(name), **settings}
        return load_segmenter(name, **({"mask_checkpoint": mask[0]} if mask else {}), **settings)

    return load


@pytest.fixture(params=PARTS)
def name(request: pytest.FixtureRequest) -> str:
    requires(*PARTS[request.param])
    return str(request.param)


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    release_segmenters()
    yield
    release_segmenters()


@pytest.fixture(autouse=True)
def _remark_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cover more than 95 %.*")
        yield


def pictures() -> list[Tensor]:
    """Pictures of several sizes, uint8 and float, two of one size."""
    sizes = [(96, 128), (128, 70), (96, 128), (200, 180), (50, 60)]
    made = [images(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]
    return [*made[:3], made[3].float() / 255, made[4]]


def networks() -> dict[str, Network]:
    return {type(network).__name__: network for network in segmenter_module._networks.values()}


@contextmanager
def recorded(network: Network) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """Arguments and outputs of a network's calls."""
    arguments: list[dict[str, Any]] = []
    calls: list[tuple[dict[str, Any], Any]] = []

    def before(_: object, __: object, given: dict[str, Any]) -> None:
        """Copy the arguments, which some versions of SAM 2 change in place."""
        arguments.append({name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()})

    hooks = [
        network.model.register_forward_pre_hook(before, with_kwargs=True),
        network.model.register_forward_hook(lambda _, __, output: calls.append((arguments.pop(), output))),
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@contextmanager
def torchvision_pretended() -> Iterator[None]:
    """Let the modules of SAM's processors, which hold the post-processing, be imported without torchvision."""
    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms")
    stubs = {
        name: ModuleType(name) for name in (*names, "torchvision.transforms.v2", "torchvision.transforms.v2.functional")
    }
    stubs["torchvision.ops.boxes"].batched_nms = None  # type: ignore[attr-defined]
    stubs["torchvision.transforms.v2"].functional = None  # type: ignore[attr-defined]
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for stub in stubs:
            sys.modules.pop(stub, None)


def processor_class(module: str, name: str) -> Any:
    with torchvision_pretended():
        return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_sam3_masks_equal_transformers_post_processing(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("sam3")
    segment(pictures()[:1], ["x"])
    with recorded(networks()["Sam3"]) as calls:
        found = segment.details(pictures()[:4], NOUNS[:4])
    (arguments, output), *rest = calls
    assert not rest, "one pass"
    assert arguments["pixel_values"].shape == (4, 3, 112, 112)
    assert arguments["input_ids"].shape == (4, 32)
    processor = processor_class("sam3.image_processing_sam3", "Sam3ImageProcessor")
    sizes = [tuple(picture.shape[1:]) for picture in pictures()[:4]]
    expected = processor.post_process_instance_segmentation(
        None, output, threshold=0.5, mask_threshold=0.5, target_sizes=sizes
    )
    assert [result.instances for result in found] == [len(theirs["masks"]) for theirs in expected]
    assert max(result.instances for result in found) > 1
    for result, theirs in zip(found, expected, strict=True):
        assert torch.equal(result.mask, theirs["masks"].bool().any(0))
        assert result.score == theirs["scores"].max()
        assert 0 < result.coverage < 1
        assert result.coverage == pytest.approx(result.mask.float().mean().item(), abs=1e-7)


def test_clipseg_masks_are_enlarged_probabilities_above_the_threshold(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("clipseg")
    segment(pictures()[:1], ["x"])
    with recorded(networks()["ClipSeg"]) as calls:
        found = segment.details(pictures()[:2], NOUNS[:2])
    ((arguments, output),) = calls
    assert arguments["pixel_values"].shape == (2, 3, 64, 64)
    for picture, logits, result in zip(pictures(), output.logits, found, strict=False):
        size = (picture.shape[1], picture.shape[2])
        enlarged = F.interpolate(torch.sigmoid(logits)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        assert torch.equal(result.mask, enlarged > 0.5)
        assert result.score == enlarged.max()
        assert 0 < result.coverage < 1
        assert result.instances == 1


@pytest.mark.parametrize(
    ("name", "part", "text"),
    [
        ("grounded_sam2", "grounding_dino", "big dog."),
        ("grounded_sam2", "mm_grounding_dino", "big dog."),
        ("owlv2_sam2", "owlv2", "a photo of a Pig"),
    ],
)
def test_boxes_equal_transformers_post_processing(
    name: str, part: str, text: str, folder_of: Callable[[str], Path]
) -> None:
    kind = segmenter_module._KINDS[name]
    noun = {"big dog.": " Big dog ", "a photo of a Pig": "Pig"}[text]
    assert kind.text(noun.strip()) == text
    network: Any = kind.network(segmenter_module.CheckpointSource.of(folder_of(part)), CPU, torch.float32)
    chosen = pictures()[:1] + pictures()[2:3]
    threshold = 0.04 if part == "mm_grounding_dino" else THRESHOLDS[name]
    with recorded(network) as calls, torch.no_grad():
        found = list(network.detect(chosen, [text, text], threshold))
    ((arguments, output),) = calls
    assert network.tokenizer.decode(arguments["input_ids"][0], skip_special_tokens=True).replace(" ", "").rstrip(
        "!"
    ) == text.lower().replace(" ", "")
    sizes = [(96, 128)] * 2
    if name == "grounded_sam2":
        assert arguments["token_type_ids"].shape == arguments["input_ids"].shape
        expected = transformers.GroundingDinoProcessor.post_process_grounded_object_detection(
            SimpleNamespace(batch_decode=lambda ids: ids), output, arguments["input_ids"], threshold, target_sizes=sizes
        )
    else:
        processor = getattr(transformers, "Owlv2ImageProcessorPil", None) or transformers.Owlv2ImageProcessor
        expected = processor.post_process_object_detection(None, output, threshold, torch.tensor(sizes))
    for boxes, theirs in zip(found, expected, strict=True):
        assert 0 < len(boxes.corners_N4) < output.pred_boxes.shape[1]
        assert torch.equal(boxes.corners_N4, theirs["boxes"])
        assert boxes.score == theirs["scores"].max()


@pytest.mark.parametrize("name", ["grounded_sam2", "owlv2_sam2"])
def test_sam2_masks_are_the_union_of_transformers_masks_of_all_boxes(
    name: str, tiny: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masc_metrics.segmenters.networks._INSTANCES_PER_PASS", 4)
    threshold = 0.3
    segment = tiny(name, threshold=threshold)
    picture, side = pictures()[1], 64
    segment([picture], ["x"])
    detector, sam2 = networks()[PARTS[name][0].title().replace("_", "")], networks()["Sam2"]
    with recorded(detector) as detections, recorded(sam2) as calls:
        (found,) = segment.details([picture], ["pig"])
    ((_, output),) = detections
    logits = torch.cat([output.pred_masks for _, output in calls], dim=1)
    assert found.instances == logits.shape[1] > 1
    assert len(calls) > 1
    assert all(arguments["multimask_output"] is False for arguments, _ in calls)
    boxes = torch.cat([arguments["input_boxes"] for arguments, _ in calls], dim=1)[0]
    scores = output.logits.sigmoid().amax(-1)[0]
    centre_x, centre_y, width, height = output.pred_boxes[0][scores > threshold].unbind(1)
    # OWLv2's boxes are in units of the padded square of 128 pixels, Grounding DINO's in units of the picture.
    unit_x, unit_y = (128, 128) if name == "owlv2_sam2" else (70, 128)
    expected = [
        (centre_x - width / 2) * unit_x * side / 70,
        (centre_y - height / 2) * unit_y * side / 128,
        (centre_x + width / 2) * unit_x * side / 70,
        (centre_y + height / 2) * unit_y * side / 128,
    ]
    torch.testing.assert_close(boxes, torch.stack(expected, dim=1), atol=1e-4, rtol=0)
    new = Version(version("transformers")) >= Version("5")
    processor = processor_class(
        *(
            ("sam2.image_processing_sam2", "Sam2ImageProcessor")
            if new
            else ("sam2.image_processing_sam2_fast", "Sam2ImageProcessorFast")
        )
    )
    (masks,) = processor.post_process_masks(None, [logits[0]], [(128, 70)], mask_threshold=0.0, binarize=True)
    assert masks.shape == (found.instances, 1, 128, 70)
    assert torch.equal(found.mask, masks[:, 0].any(0))


def test_a_mask_does_not_depend_on_its_batch(name: str, tiny: Callable[..., Segmenter]) -> None:
    alone = tiny(name, batch_size=1)
    expected = [alone.details([picture], [noun])[0] for picture, noun in zip(pictures(), NOUNS, strict=True)]
    together = tiny(name, batch_size=8)
    assert together.cache is not alone.cache
    found = together.details(pictures(), NOUNS)
    assert equal([result.mask for result in found], [result.mask for result in expected])
    assert [result.instances for result in found] == [result.instances for result in expected]
    assert any(0 < result.coverage < 1 for result in found)
    for result, picture in zip(found, pictures(), strict=True):
        assert result.mask.shape == picture.shape[1:]
        assert result.mask.dtype == torch.bool
    backwards = tiny(name, batch_size=2)(pictures()[::-1], NOUNS[::-1])
    assert equal(backwards, [result.mask for result in expected[::-1]])


def test_pictures_without_boxes_do_not_move_the_masks_of_others(folder_of: Callable[[str], Path]) -> None:
    """They are not encoded, so that rows of the encoder's output are not rows of the batch."""
    sam2 = Sam2(segmenter_module.CheckpointSource.of(folder_of("sam2")), CPU, torch.float32)
    corners = torch.tensor([[10.0, 20.0, 60.0, 80.0]])
    boxes = [Boxes(corners[:count], 1.0) for count in (0, 1, 0, 1)]
    given = list(images(4, seed=7))
    with torch.no_grad():
        together = list(sam2.segment(given, boxes))
        alone = [next(sam2.segment([picture], [box])) for picture, box in zip(given, boxes, strict=True)]
    assert equal([found.mask_HW for found in together], [found.mask_HW for found in alone])
    assert [found.instances for found in together] == [0, 1, 0, 1]
    assert together[1].mask_HW.any()
    assert not torch.equal(together[1].mask_HW, together[3].mask_HW)


def test_grounding_dino_shares_a_pass_only_among_one_size_and_one_text_length(tiny: Callable[..., Segmenter]) -> None:
    """The first and the third picture are of one size, and "dog" and "cup" of one length."""
    segment = tiny("grounded_sam2", batch_size=8)
    segment(pictures()[:1], ["x"])
    with recorded(networks()["GroundingDino"]) as calls:
        segment(pictures(), ["dog", "dog", "cup", "dog", "dog"])
        segment([pictures()[0], pictures()[2]], ["horse", "bed"])
    shapes = [tuple(arguments["pixel_values"].shape) for arguments, _ in calls]
    assert shapes[:4] == [(2, 3, 96, 128), (1, 3, 175, 96), (1, 3, 106, 96), (1, 3, 96, 115)]
    assert shapes[4:] == [(1, 3, 96, 128)] * 2
    assert all(arguments["attention_mask"].all() and arguments["pixel_mask"].all() for arguments, _ in calls)


def test_nothing_found_is_an_empty_mask_without_instances(name: str, tiny: Callable[..., Segmenter]) -> None:
    for result in tiny(name, threshold=1 - 1e-12).details(pictures()[:2], ["dog", "cat"]):
        assert (result.instances, result.coverage) == (0, 0)
        assert not result.mask.any()
        assert 0 < result.score <= 1
    assert result.mask.shape == (128, 70)


def test_precision_and_default_device_of_the_surrounding_program_do_not_change_a_mask(
    name: str, tiny: Callable[..., Segmenter]
) -> None:
    expected = tiny(name)(pictures(), NOUNS)
    release_segmenters()
    states = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            segment, given = tiny(name), pictures()
            with torch.device("meta"):  # in place of a default device that a CPU has not
                found = segment(given, NOUNS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(found, expected)
    assert torch.equal(torch.get_rng_state(), states)
    for network in networks().values():
        parameters = list(network.model.parameters())
        assert not network.model.training
        assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in parameters)
        assert not any(weight.is_inference() for weight in parameters)


def test_bfloat16_networks_segment(name: str, tiny: Callable[..., Segmenter]) -> None:
    if name == "grounded_sam2" and Version(version("transformers")) < Version("5.7.0"):
        pytest.skip("Grounding DINO runs in half precision since transformers 5.7.0")
    found = tiny(name, dtype=torch.bfloat16).details(pictures()[:2], NOUNS[:2])
    assert all(0 <= result.score <= 1 for result in found)
    assert all(next(network.model.parameters()).dtype == torch.bfloat16 for network in networks().values())


def test_compiled_code_gives_equal_masks_and_reads_the_checkpoints(name: str, tiny: Callable[..., Segmenter]) -> None:
    picture = pictures()[:1]
    expected = tiny(name)(picture, ["dog"])
    release_segmenters()
    segment = tiny(name)
    compiled = torch.compile(lambda: segment(picture, ["dog"]), backend="aot_eager")
    assert equal(compiled(), expected)


def test_files_of_a_checkpoint_load_no_code_and_fit_together(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    def error(name: str, values: dict[str, object]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder_of("clipseg"), folder)
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))
        with pytest.raises(ValueError, match=str(folder)) as caught:
            load_segmenter("clipseg", checkpoint=folder, dtype="float32")(pictures()[:1], ["dog"])
        return str(caught.value)

    kernel = {"_attn_implementation": "owner/kernel"}
    assert "_attn_implementation 'owner/kernel', code that is not transformers' own" in error("config.json", kernel)
    assert "image_std above 0" in error("preprocessor_config.json", {"image_std": [0, 1, 1]})
    folder = tmp_path / "small"
    shutil.copytree(folder_of("clipseg"), folder)
    segment = load_segmenter("clipseg", checkpoint=folder)
    segment(pictures()[:1], ["dog"])
    (network,) = networks().values()
    network.model.config.text_config.vocab_size = 4  # as if the tokenizer were another checkpoint's
    with pytest.raises(ValueError, match=r"has a tokenizer that gives the id .*, but its network has 4 embeddings"):
        segment(pictures()[:1], ["cat"])


def test_a_segmenter_is_a_recipe(tiny: Callable[..., Segmenter], tmp_path: Path) -> None:
    segment = tiny("clipseg")
    masks = segment(pictures(), NOUNS)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segment = segment

    module = Module().train()
    assert list(module.state_dict()) == list(module.parameters()) == []
    assert not networks()["ClipSeg"].model.training
    assert copy.deepcopy(segment) is copy.copy(segment) is segment
    assert tiny("clipseg") is segment
    pickled = pickle.dumps(segment)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) is segment
    release_segmenters()
    assert len(segment.cache) == 0
    again = pickle.loads(pickled)
    assert again is not segment
    assert again.settings == segment.settings
    assert equal(again(pictures(), NOUNS), masks)
    assert equal(segment(pictures(), NOUNS), masks), "reads its network again"
    assert len(networks()) == 1


def test_nothing_is_read_before_the_first_call(tmp_path: Path) -> None:
    segment = load_segmenter("clipseg", checkpoint=tmp_path / "later")
    assert networks() == {}
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder at .*later; check the path"):
        segment(pictures(), NOUNS)
    build.build_clipseg(tmp_path / "later")
    assert len(segment(pictures(), NOUNS)) == len(NOUNS)


def test_segmenters_share_networks(tiny: Callable[..., Segmenter]) -> None:
    first, second = tiny("grounded_sam2"), tiny("owlv2_sam2")
    stricter = tiny("owlv2_sam2", threshold=0.9)
    for segment in (first, second, stricter):
        segment(pictures()[:1], ["pig"])
    assert sorted(networks()) == ["GroundingDino", "Owlv2", "Sam2"]
    assert len(segmenter_module._networks) == 3


def test_a_picture_is_segmented_once_for_each_noun(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("clipseg")
    first = segment.details(pictures()[:1], ["dog"])[0]
    with recorded(networks()["ClipSeg"]) as calls:
        again = segment.details([pictures()[0].clone()], [" dog"])[0]
        assert calls == []
        assert again.mask is not first.mask
        assert torch.equal(again.mask, first.mask)
        assert dataclasses.astuple(again)[1:] == dataclasses.astuple(first)[1:]
        first.mask.zero_()
        assert torch.equal(segment(pictures()[:1], ["dog"])[0], again.mask), "a caller cannot change kept masks"
        segment([pictures()[0]] * 3, ["cat"] * 3)
        assert [len(arguments["pixel_values"]) for arguments, _ in calls] == [1]
        edited = pictures()[0]
        edited[0, 0, 0] += 1
        segment([edited], ["dog"])
        assert len(calls) == 2
        segment.cache.max_bytes = 0
        assert torch.equal(segment(pictures()[:1], ["dog"])[0], again.mask)
        assert len(calls) == 3
    assert len(segment.cache) == 0


def test_kept_masks_take_an_eighth_of_a_byte_a_pixel(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("clipseg")
    segment(images(1, 801, 803), ["dog"])
    assert segment.cache.nbytes == 16 + -(-801 * 803 // 8)


def test_pil_images_and_float_images_are_accepted(tiny: Callable[..., Segmenter]) -> None:
    segment, picture = tiny("clipseg"), pictures()[0]
    pil = Image.fromarray(picture.permute(1, 2, 0).numpy())
    assert equal(segment([pil, picture], ["dog", "dog"]), segment([picture] * 2, ["dog"] * 2))
    assert segment((picture.double() / 255)[None], ["dog"])[0].shape == picture.shape[1:]


def test_almost_full_masks_are_remarked_once_with_their_number(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("grounded_sam2", threshold=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = segment.details(pictures(), NOUNS)
        full = [index for index, result in enumerate(found) if result.coverage > 0.95]
        segment(pictures(), NOUNS)
    (warning,) = [warning for warning in caught if "95 %" in str(warning.message)]
    assert str(warning.message).startswith(
        f"{len(full)} of 5 masks of segmenter 'grounded_sam2' cover more than 95 % of their picture, first "
        f"images[{full[0]}] with noun {NOUNS[full[0]]!r};"
    )
    assert warning.category is UserWarning
    assert warning.filename == __file__


def test_folders_of_the_hubs_video_layout_give_the_same_masks(
    tiny: Callable[..., Segmenter], folder_of: Callable[[str], Path]
) -> None:
    requires("sam3", "sam2")
    assert equal(tiny("sam3")(pictures(), NOUNS), tiny("sam3", checkpoint=folder_of("sam3_video"))(pictures(), NOUNS))
    video = load_segmenter(
        "owlv2_sam2", checkpoint=folder_of("owlv2"), mask_checkpoint=folder_of("sam2_video"), threshold=0.7
    )
    assert equal(tiny("owlv2_sam2")(pictures(), NOUNS), video(pictures(), NOUNS))


def test_weights_saved_with_position_ids_are_read(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The hub's CLIPSeg was saved by a version of transformers that kept them."""
    from safetensors.torch import load_file, save_file

    folder = build.build_clipseg(tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    for part, positions in (("text", 77), ("vision", 5)):
        weights[f"clip.{part}_model.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    old = load_segmenter("clipseg", checkpoint=folder)
    assert equal(old(pictures(), NOUNS), load_segmenter("clipseg", checkpoint=folder_of("clipseg"))(pictures(), NOUNS))


@pytest.mark.parametrize("size", [(300, 200), (40, 70), (96, 96), (31, 257)])
def test_pixels_equal_transformers_pillow_processors_to_a_grey_level(
    size: tuple[int, int], folder_of: Callable[[str], Path]
) -> None:
    if not hasattr(transformers, "Owlv2ImageProcessorPil"):
        pytest.skip("the Pillow processor of OWLv2 pads with grey before transformers 5")
    picture = F.interpolate(images(1, *size, seed=3).float(), size, mode="bilinear")[0].to(torch.uint8)
    array = picture.permute(1, 2, 0).numpy()

    def theirs(name: str, part: str, **settings: Any) -> Tensor:
        processor = getattr(transformers, f"{name}Pil").from_pretrained(folder_of(part), **settings)
        return torch.from_numpy(np.asarray(processor(array, return_tensors="np")["pixel_values"])).float()

    def level(part: str, mean_std: Any) -> tuple[Any, float]:
        processing = read_processing(folder_of(part), mean_std)
        return processing, 1.01 / 255 / min(processing.std)

    processing, one = level("clipseg", HALF)
    ours = resized_pixels([picture], [(64, 64)], processing, CPU)
    assert (ours - theirs("ViTImageProcessor", "clipseg", size={"height": 64, "width": 64})).abs().max() <= one
    processing, one = level("grounding_dino", HALF)
    ours = resized_pixels([picture], [shortest_edge_size(*size, 96, 192)], processing, CPU)
    reference = theirs("GroundingDinoImageProcessor", "grounding_dino")
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= one
    processing, one = level("owlv2", HALF)
    ours = padded_pixels([picture], 96, processing, CPU)
    reference = theirs("Owlv2ImageProcessor", "owlv2")
    assert (ours - reference).abs()[..., 1:-1, 1:-1].max() <= one


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (800, 800)), ((1500, 900), (1333, 800)), ((480, 640), (800, 1066)), ((800, 1000), (800, 1000))],
)
def test_grounding_dino_sizes_equal_transformers(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shortest_edge_size(*size, 800, 1333) == get_size_with_aspect_ratio(size, 800, 1333)
    assert shortest_edge_size(*size, 800, 1333) == expected


def test_wrong_images_and_nouns_are_errors_that_name_them(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("clipseg")

    def error(kind: type[Exception], given: Any, nouns: Any) -> str:
        with pytest.raises(kind) as caught:
            segment(given, nouns)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    two = pictures()[:2]
    assert error(ValueError, two, ["dog"]) == "nouns holds 1 nouns for 2 images; give one for each"
    assert error(TypeError, two, "dog") == "nouns is a str; give a list of strings"
    assert error(TypeError, two, ["dog", None]) == "nouns[1] is a NoneType; give a string"
    assert error(ValueError, two, ["dog", " "]) == "nouns[1] is ' '; give what to mark in images[1], such as 'dog'"
    assert "surrogate" in error(ValueError, two, ["dog", "\ud800"])
    assert "images[1] has shape (1, 128, 70)" in error(ValueError, [two[0], two[1][:1]], ["dog", "cat"])
    assert networks() == {}, "checked before a network is read"
    long = "x" * 80
    assert error(ValueError, two, ["dog", long]) == (
        f"nouns[1] {long!r} makes the text {long!r} of 82 tokens, and CLIPSegForImageSegmentation reads at most 77; "
        "give a shorter noun"
    )
    assert len(segment.cache) == 0


def test_wrong_settings_are_errors_that_name_them() -> None:
    def error(kind: type[Exception], *name: Any, **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            load_segmenter(*name, **settings)
        return str(caught.value)

    assert error(ValueError, "sam") == "name is 'sam'; give 'sam3', 'clipseg', 'grounded_sam2' or 'owlv2_sam2'"
    assert "segmenter 'clipseg' has no second network" in error(ValueError, "clipseg", mask_checkpoint="a/b")
    assert error(ValueError, "clipseg", threshold=1.5) == "threshold is 1.5; give a number in (0, 1)"
    assert error(TypeError, "clipseg", threshold="high") == "threshold is a str; give a number in (0, 1)"
    assert "batch_size is 0" in error(ValueError, "clipseg", batch_size=0)
    assert "dtype is torch.float64" in error(ValueError, "clipseg", dtype=torch.float64)
    assert "device 'meta'" in error(ValueError, "clipseg", device="meta")
    assert error(TypeError, "clipseg", checkpoint=3) == "checkpoint is an int; give a hub id or a local folder"
    assert error(ValueError, "clipseg", checkpoint=" ") == "checkpoint is empty; give a hub id or a local folder"


def test_too_old_transformers_is_an_error_that_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """At creation, not at the first call, which may be hours later."""
    monkeypatch.setattr("masc_metrics.segmenters.networks.version", lambda _: "5.3.0")
    with pytest.raises(
        ImportError, match=r"^Sam3Model needs transformers 5.4.0 or newer, and 5.3.0 is installed; pip "
    ):
        load_segmenter("sam3")
    load_segmenter("grounded_sam2")
    monkeypatch.setattr("masc_metrics.segmenters.networks.version", lambda _: "4.51.3")
    for name in ("grounded_sam2", "owlv2_sam2"):
        with pytest.raises(ImportError, match=r"^Sam2Model needs transformers 4.56.0 or newer, and 4.51.3 is"):
            load_segmenter(name)
    load_segmenter("clipseg")


def test_half_precision_of_grounding_dino_needs_a_new_transformers(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masc_metrics.segmenters.networks.version", lambda _: "5.6.2")
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16, in which Grounding DINO needs transformers 5.7.0"):
        load_segmenter("grounded_sam2", checkpoint=folder_of("grounding_dino"), dtype=torch.bfloat16)(pictures(), NOUNS)


def test_unusable_folders_are_errors_that_name_them(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    def error(folder: Path, kind: type[Exception]) -> str:
        with pytest.raises(kind) as caught:
            load_segmenter("clipseg", checkpoint=folder)(pictures(), NOUNS)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    only_processor = tmp_path / "processor"
    only_processor.mkdir()
    (only_processor / "preprocessor_config.json").write_text("{}")
    assert "holds no config.json, so it is not a checkpoint" in error(only_processor, FileNotFoundError)
    other = error(folder_of("owlv2"), ValueError)
    assert "is a checkpoint of type 'owlv2'; give one whose config.json says 'clipseg'" in other
    silent = build.build_clipseg(tmp_path / "silent")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (silent / file).unlink()
    assert "has no readable tokenizer" in error(silent, OSError)
    odd = build.build_clipseg(tmp_path / "odd")
    (odd / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 352}}')
    assert "CLIPSeg takes squares" in error(odd, ValueError)


def test_a_gated_checkpoint_is_an_error_that_names_its_page_and_open_segmenters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requires("sam3")
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(PermissionError) as caught:
        load_segmenter("sam3")(pictures(), NOUNS)
    assert "\n" not in str(caught.value)
    for part in (
        "'facebook/sam3' is gated",
        "https://huggingface.co/facebook/sam3",
        "review requests and may refuse",
        "load_segmenter('grounded_sam2')",
        "load_segmenter('clipseg')",
    ):
        assert part in str(caught.value)


def test_defaults_are_the_papers() -> None:
    kinds = segmenter_module._KINDS
    assert {name: (kind.checkpoint, kind.threshold, kind.mask_checkpoint) for name, kind in kinds.items()} == {
        "sam3": ("facebook/sam3", 0.5, None),
        "clipseg": ("CIDAS/clipseg-rd64-refined", 0.5, None),
        "grounded_sam2": ("IDEA-Research/grounding-dino-base", 0.3, "facebook/sam2.1-hiera-large"),
        "owlv2_sam2": ("google/owlv2-base-patch16-ensemble", 0.2, "facebook/sam2.1-hiera-large"),
    }
    texts = {name: kind.text("Piggy_bank") for name, kind in kinds.items()}
    assert texts == {
        "sam3": "Piggy_bank",
        "clipseg": "Piggy_bank",
        "grounded_sam2": "piggy_bank.",
        "owlv2_sam2": "a photo of a Piggy_bank",
    }
    assert kinds["grounded_sam2"].text("Dog.") == "dog."


def test_segmentations_are_frozen() -> None:
    for kind in (Segmentation, segmenter_module.SegmenterSettings):
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert re.match(r"Segmenter\('sam3', 'facebook/sam3'", repr(Segmenter(_sam3_settings())))


def _sam3_settings() -> Any:
    source = segmenter_module.CheckpointSource.of("facebook/sam3")
    return segmenter_module.SegmenterSettings("sam3", source, None, 0.5, None, torch.float32, 4)


def test_sam2_marks_given_boxes_without_the_detector(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("grounded_sam2", threshold=0.3)
    shown = pictures()[1:3]
    segment(shown, ["pig", "pig"])
    with recorded(networks()["Sam2"]) as calls:
        segment.cache.clear()
        (expected,) = segment(shown[:1], ["pig"])
    boxes = torch.cat([arguments["input_boxes"] for arguments, _ in calls], dim=1)[0]
    release_segmenters()
    corners = boxes * torch.tensor([70 / 64, 128 / 64] * 2)
    first, second = segment.masks_in_boxes(shown, [corners, torch.zeros(0, 4)])
    assert set(networks()) == {"Sam2"}
    assert torch.equal(first, expected)
    assert expected.any()
    assert second.shape == (96, 128)
    assert not second.any()


def test_sam2_gets_the_points_of_each_box_in_its_own_pixels(tiny: Callable[..., Segmenter]) -> None:
    segment = tiny("grounded_sam2")
    shown = pictures()[1:3]
    height, width = shown[0].shape[1:]
    boxes = [torch.tensor([[0.0, 0.0, width / 2, height / 2], [4.0, 4.0, width - 4, height - 4]]), torch.zeros(0, 4)]
    points = [torch.tensor([[[8.0, 8.0], [20.0, 16.0]], [[width / 2, height / 2]] * 2]), torch.zeros(0, 2, 2)]
    alone = segment.masks_in_boxes(shown, boxes)
    with recorded(networks()["Sam2"]) as calls:
        first, second = segment.masks_in_boxes(shown, boxes, points)
    ((arguments, output),) = calls
    in_64 = torch.tensor([64 / width, 64 / height])
    torch.testing.assert_close(arguments["input_points"], points[0][None] * in_64)
    torch.testing.assert_close(arguments["input_boxes"], boxes[0][None] * in_64.repeat(2))
    assert arguments["input_points"].dtype == torch.float32
    enlarged = F.interpolate(output.pred_masks[0].float(), (height, width), mode="bilinear", align_corners=False)
    assert torch.equal(first, (enlarged > 0).any(dim=(0, 1)))
    assert not torch.equal(first, alone[0]), "points matter"
    assert not second.any()


def test_boxes_need_sam2_and_the_right_form(tiny: Callable[..., Segmenter]) -> None:
    shown = pictures()[:1]
    with pytest.raises(ValueError, match=r"'clipseg' has no SAM 2, .*give 'grounded_sam2' or 'owlv2_sam2'"):
        tiny("clipseg").masks_in_boxes(shown, [torch.zeros(0, 4)])
    segment = tiny("grounded_sam2")
    with pytest.raises(ValueError, match="boxes holds 0 tensors for 1 images"):
        segment.masks_in_boxes(shown, [])
    with pytest.raises(ValueError, match=r"boxes\[0\] has shape \(4,\); give \(N, 4\)"):
        segment.masks_in_boxes(shown, [torch.zeros(4)])
    with pytest.raises(ValueError, match="points holds 0 tensors for 1 images"):
        segment.masks_in_boxes(shown, [torch.zeros(1, 4)], [])
    for wrong in (torch.zeros(1, 2), torch.zeros(2, 3, 2), torch.zeros(1, 0, 2), torch.zeros(1, 3, 3)):
        with pytest.raises(ValueError, match=r"points\[0\] has shape .* for 1 boxes; give \(1, K, 2\)"):
            segment.masks_in_boxes(shown, [torch.zeros(1, 4)], [wrong])


def test_transferred_masks_are_refined_by_sam2(tiny: Callable[..., Segmenter]) -> None:
    shown, references = images(2, 96, 128, seed=1), images(2, 64, 64, seed=2)
    marked = torch.zeros(2, 64, 64, dtype=torch.bool)
    marked[:, 16:48, 16:48] = True
    encoder = {"backbone": load_backbone("tiny"), "max_num_patches": 64}
    rough = transfer_masks(shown, references, marked, **encoder)
    segment = tiny("owlv2_sam2")
    refined = transfer_masks(shown, references, marked, **encoder, refine=segment)
    torch.testing.assert_close(refined.confidence_B, rough.confidence_B, rtol=0, atol=0, equal_nan=True)
    changed = [not torch.equal(mask, other) for mask, other in zip(refined.masks, rough.masks, strict=True)]
    assert any(changed)
    with pytest.raises(ValueError, match="'clipseg' has no SAM 2"):
        transfer_masks(shown, references, marked, **encoder, refine=tiny("clipseg"))


def test_names_on_the_command_line_are_those_of_the_segmenters() -> None:
    assert tuple(segmenter_module._KINDS) == SEGMENTERS
    assert DEFAULT_SEGMENTER in SEGMENTERS


def test_scores_and_masks_that_are_not_finite_are_an_error_and_no_empty_mask(
    tiny: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = tiny("clipseg")
    found = networks_module.Found(torch.zeros(24, 36, dtype=torch.bool), float("nan"), 0)
    monkeypatch.setattr(networks_module.ClipSeg, "segment", lambda *_: iter([found]))
    with pytest.raises(RuntimeError, match=r"'clipseg' gave scores for images\[0\] that are not finite; run it in"):
        segmenter(images(1, 24, 36), ["cat"])
    with pytest.raises(RuntimeError, match="gave masks that are not finite"):
        networks_module._union(torch.full((1, 4, 4), torch.nan), 0.5, (8, 8))


def test_value_of_a_wrong_type_is_an_error_that_names_the_folder(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder_of("clipseg"), tmp_path / "clipseg"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] = None
    (folder / "config.json").write_text(json.dumps(config))
    segmenter = load_segmenter("clipseg", checkpoint=folder, device="cpu")
    with pytest.raises(
        ValueError, match=rf"{folder} cannot be used \(TypeError: .*eps.*\); values in its JSON files"
    ) as caught:
        segmenter(images(1, 24, 36), ["cat"])
    assert "\n" not in str(caught.value)
