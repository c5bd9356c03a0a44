"""Segmenters: recipes of networks, shared within a process, with a cache of masks.

Shape suffixes: H, W sides in pixels.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from masc_metrics.arguments import check_choice, check_number, check_positive, check_type
from masc_metrics.cache import FeatureCache, content_digests
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.images import Images, check_images
from masc_metrics.locks import Lock
from masc_metrics.precision import (
    DEFAULT_DTYPE,
    Dtype,
    check_device,
    check_dtype,
    default_dtype,
    eager,
    to_device,
    without_autocast,
)
from masc_metrics.prompts import check_texts
from masc_metrics.reading import NotFiniteError, usable
from masc_metrics.segmenters.networks import (
    Boxes,
    ClipSeg,
    Detecting,
    Found,
    GroundingDino,
    Network,
    Owlv2,
    Sam2,
    Sam3,
    Segmenting,
    TextNetwork,
    check_transformers,
)
from masc_metrics.settings import DEFAULT_SEGMENTER, DEFAULT_SEGMENTER_BATCH_SIZE, SEGMENTERS

_Network = TypeVar("_Network", bound=Network)

DEFAULT_MASK_CACHE_BYTES = 64 * 2**20
"""About 500 masks of 1024 x 1024 pixels."""

ALMOST_FULL = 0.95
"""Coverage above which a mask causes a warning."""

_HEADER = np.dtype([("score", "<f8"), ("instances", "<i8")])


@dataclass(frozen=True, slots=True)
class _Kind:
    """A source of masks, with the paper's checkpoints, threshold and text.

    Attributes:
        network: network that takes the text.
        checkpoint: its hub id.
        threshold: score above which an instance, or for CLIPSeg a pixel, counts.
        text: the text of a noun.
        mask_checkpoint: hub id of the SAM 2 that marks what is in the boxes; None if the network itself segments.
    """

    network: type[TextNetwork]
    checkpoint: str
    threshold: float
    text: Callable[[str], str] = str
    mask_checkpoint: str | None = None


def _sentence(noun: str) -> str:
    lowered = noun.lower()
    return lowered if lowered.endswith(".") else f"{lowered}."


def _photo(noun: str) -> str:
    return f"a photo of a {noun}"


_SAM2 = "facebook/sam2.1-hiera-large"

_KINDS: Mapping[str, _Kind] = {
    "sam3": _Kind(Sam3, "facebook/sam3", 0.5),
    "clipseg": _Kind(ClipSeg, "CIDAS/clipseg-rd64-refined", 0.5),
    "grounded_sam2": _Kind(GroundingDino, "IDEA-Research/grounding-dino-base", 0.3, _sentence, _SAM2),
    "owlv2_sam2": _Kind(Owlv2, "google/owlv2-base-patch16-ensemble", 0.2, _photo, _SAM2),
}


@dataclass(frozen=True, slots=True)
class SegmenterSettings:
    """What determines a segmenter's masks, and where it computes them.

    Attributes:
        name: "sam3", "clipseg", "grounded_sam2" or "owlv2_sam2".
        source: source of the checkpoint that takes the text.
        mask_source: source of the SAM 2 checkpoint; None for "sam3" and "clipseg".
        threshold: score above which an instance, or for "clipseg" a pixel, counts.
        device: device of the networks; None is the device of the first picture of a call.
        dtype: dtype of the networks.
        batch_size: maximum number of pictures in one pass.
    """

    name: str
    source: CheckpointSource
    mask_source: CheckpointSource | None
    threshold: float
    device: torch.device | None
    dtype: torch.dtype
    batch_size: int


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What a segmenter marks in one picture.

    Attributes:
        mask: (H, W) bool at the picture's size and on its device; the union of all instances, empty if there are none.
        score: highest score of all candidates, in [0, 1], also if it is not above the threshold. It is the score of
            an instance or box, or for "clipseg" the largest probability of a pixel.
        instances: number of instances or boxes above the threshold; for "clipseg", 1 if any pixel is, else 0.
        coverage: share of the picture that the mask covers, in [0, 1].
    """

    mask: Tensor
    score: float
    instances: int
    coverage: float


class Segmenter:
    """Marks what nouns name in pictures; created by :func:`load_segmenter`.

    It is a recipe, not a ``torch.nn.Module``: it holds no weights, so that a metric, callback or LightningModule that
    holds it gains no parameters, state_dict keys or hyperparameters. The networks are read at the first call, once per
    process, device and dtype. A copy is the same object, and a pickle contains the settings.

    Attributes:
        settings: the settings.
        cache: masks by the content of the picture and the text, packed as bits; ``cache.max_bytes`` bounds their size.
    """

    def __init__(self, settings: SegmenterSettings) -> None:
        self.settings = settings
        self.cache = FeatureCache(DEFAULT_MASK_CACHE_BYTES)
        self._warned = False

    def __repr__(self) -> str:
        settings = self.settings
        return f"Segmenter({settings.name!r}, {settings.source.model!r}, device={str(settings.device)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Segmenter:
        return self

    def __copy__(self) -> Segmenter:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_segmenter, (self.settings,)

    def __call__(self, images: Images, nouns: Sequence[str]) -> list[Tensor]:
        """Mask of each picture, (H, W) bool on its device; arguments and errors as in :meth:`details`."""
        return [segmentation.mask for segmentation in self._segment(images, nouns)]

    def details(self, images: Images, nouns: Sequence[str]) -> list[Segmentation]:
        """Mask of each picture with its score, number of instances and coverage.

        A mask does not depend on the other pictures of the call.

        Args:
            images: any form that :func:`masc_metrics.images.check_images` accepts, of any sizes.
            nouns: what to mark in each picture, such as "dog" or "backpack with a red strap".

        Raises:
            TypeError, ValueError: if images or nouns are not accepted, or a noun is too long for the tokenizer.
            OSError: if a checkpoint is not available; the error text says how to get it.
            ImportError: if the installed transformers is too old.

        Warns:
            UserWarning: once per segmenter, if masks cover more than 95 % of their pictures.
        """
        return self._segment(images, nouns)

    @eager
    def masks_in_boxes(
        self, images: Images, boxes: Sequence[Tensor], points: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Mark what is in boxes, with SAM 2 alone: the other network is not read.

        Args:
            images: as for :meth:`details`.
            boxes: for each picture an (N, 4) tensor of left, top, right and bottom in its pixels; N may be 0.
            points: for each picture an (N, K, 2) tensor of K points on what is to be marked in each box, x and y in its
                pixels. SAM 2 gets them together with the box.

        Returns:
            For each picture the union of the masks of its boxes, (H, W) bool on its device.

        Raises:
            TypeError, ValueError: if the segmenter has no SAM 2; images, boxes or points are not accepted.
            OSError, ImportError: as :meth:`details`.
        """
        if self.settings.mask_source is None:
            able = " or ".join(repr(name) for name, kind in _KINDS.items() if kind.mask_checkpoint is not None)
            raise ValueError(
                f"segmenter {self.settings.name!r} has no SAM 2, which marks what is in boxes; give {able}"
            )
        pictures = check_images(images, "images").images
        if len(boxes) != len(pictures):
            raise ValueError(f"boxes holds {len(boxes)} tensors for {len(pictures)} images; give one for each")
        for index, corners in enumerate(boxes):
            check_type(f"boxes[{index}]", corners, Tensor, "an (N, 4) tensor")
            if corners.ndim != 2 or corners.shape[1] != 4:
                raise ValueError(f"boxes[{index}] has shape {tuple(corners.shape)}; give (N, 4)")
        if points is not None and len(points) != len(pictures):
            raise ValueError(f"points holds {len(points)} tensors for {len(pictures)} images; give one for each")
        for index, (inside, corners) in enumerate(zip(points or (), boxes, strict=False)):
            check_type(f"points[{index}]", inside, Tensor, "an (N, K, 2) tensor")
            if inside.ndim != 3 or inside.shape[0] != len(corners) or inside.shape[1] == 0 or inside.shape[2] != 2:
                raise ValueError(
                    f"points[{index}] has shape {tuple(inside.shape)} for {len(corners)} boxes; give ({len(corners)}, "
                    "K, 2) with K of at least 1"
                )
        device = self.settings.device or pictures[0].device
        prompts = [
            Boxes(
                to_device(corners.float(), device),
                1.0,
                None if points is None else to_device(points[index].float(), device),
            )
            for index, corners in enumerate(boxes)
        ]
        masks: list[Tensor] = []
        with _frozen({str(place): place for place in (device, torch.device("cpu"))}.values()):
            sam2 = shared_network(Sam2, self.settings.mask_source, device, self.settings.dtype)
            for start in range(0, len(pictures), self.settings.batch_size):
                part = pictures[start : start + self.settings.batch_size]
                found = sam2.segment(part, prompts[start : start + self.settings.batch_size])
                masks += [to_device(each.mask_HW, image.device) for each, image in zip(found, part, strict=True)]
        return masks

    @eager
    def load(self) -> Mapping[str, str | None]:
        """Read the networks now instead of at the first call, on the device of the settings.

        Returns:
            Commit on the hub of each checkpoint; None for a folder that is not from the hub.

        Raises:
            OSError, ValueError, ImportError: as :meth:`details`; ValueError also if the settings have no device.
        """
        if self.settings.device is None:
            raise ValueError("device is None, the device of the pictures; give load_segmenter the device to load onto")
        with _frozen([self.settings.device]):
            network, sam2 = self._shared_networks(self.settings.device)
        commits = {self.settings.source.model: network.commit}
        if self.settings.mask_source is not None and sam2 is not None:
            commits[self.settings.mask_source.model] = sam2.commit
        return commits

    def _shared_networks(self, device: torch.device) -> tuple[TextNetwork, Sam2 | None]:
        settings = self.settings
        network = shared_network(_KINDS[settings.name].network, settings.source, device, settings.dtype)
        if settings.mask_source is None:
            return network, None
        return network, shared_network(Sam2, settings.mask_source, device, settings.dtype)

    def _segment(self, images: Images, nouns: Sequence[str]) -> list[Segmentation]:
        results = self._marked(images, nouns)
        self._warn_of_full_masks(results, nouns)
        return results

    @eager
    def _marked(self, images: Images, nouns: Sequence[str]) -> list[Segmentation]:
        pictures = check_images(images, "images").images
        texts = self._texts(nouns, len(pictures))
        device = self.settings.device or pictures[0].device
        contexts = {str(place): place for place in (device, torch.device("cpu"))}.values()
        with _frozen(contexts), usable(self.settings.source.model):
            network, sam2 = self._shared_networks(device)
            for index, (text, noun) in enumerate(zip(texts, nouns, strict=True)):
                network.check_text(text, f"nouns[{index}] {noun!r}")
            keys = [_key(picture, text) for picture, text in zip(pictures, texts, strict=True)]
            packed = {key: known for key in keys if (known := self.cache.get(key)) is not None}
            groups: dict[Hashable, list[int]] = {}
            for key in dict.fromkeys(keys):
                if key not in packed:
                    index = keys.index(key)
                    size = (pictures[index].shape[1], pictures[index].shape[2])
                    groups.setdefault(network.group(size, texts[index]), []).append(index)
            for group in groups.values():
                for start in range(0, len(group), self.settings.batch_size):
                    part = group[start : start + self.settings.batch_size]
                    found = _found(
                        network,
                        sam2,
                        [pictures[index] for index in part],
                        [texts[index] for index in part],
                        self.settings.threshold,
                    )
                    for index, result in zip(part, found, strict=True):
                        if not math.isfinite(result.score):
                            raise NotFiniteError(
                                f"segmenter {self.settings.name!r} gave scores for images[{index}] that are not "
                                "finite; run it in torch.bfloat16 or torch.float32, and check its weights"
                            )
                        packed[keys[index]] = _packed(result)
                        self.cache.put(keys[index], packed[keys[index]])
            return [_unpacked(packed[key], picture) for key, picture in zip(keys, pictures, strict=True)]

    def _texts(self, nouns: Sequence[str], count: int) -> list[str]:
        check_texts(nouns, "nouns")
        if len(nouns) != count:
            raise ValueError(f"nouns holds {len(nouns)} nouns for {count} images; give one for each")
        for index, noun in enumerate(nouns):
            if not noun.strip():
                raise ValueError(f"nouns[{index}] is {noun!r}; give what to mark in images[{index}], such as 'dog'")
        return [_KINDS[self.settings.name].text(noun.strip()) for noun in nouns]

    def _warn_of_full_masks(self, results: Sequence[Segmentation], nouns: Sequence[str]) -> None:
        full = [index for index, result in enumerate(results) if result.coverage > ALMOST_FULL]
        if full and not self._warned:
            self._warned = True
            first = f"images[{full[0]}] with noun {nouns[full[0]]!r}"
            warnings.warn(
                f"{len(full)} of {len(results)} masks of segmenter {self.settings.name!r} cover more than "
                f"{ALMOST_FULL * 100:.0f} % of their picture, first {first}; they leave little or no background, so "
                "look at the masks and check the nouns (shown once per segmenter)",
                UserWarning,
                stacklevel=4,
            )


@contextmanager
def _frozen(devices: Iterable[torch.device]) -> Iterator[None]:
    """Run networks without gradients, outside the surrounding autocast, inference mode and defaults of new tensors."""
    with ExitStack() as stack:
        stack.enter_context(_lock)  # transformers collects hidden states by patching a model's layers during a call
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))  # tokenizers create tensors on the default device
        stack.enter_context(default_dtype(torch.float32))  # Grounding DINO's scores would take the surrounding one
        for device in devices:
            stack.enter_context(without_autocast(device))
        yield


def _found(
    network: TextNetwork, sam2: Sam2 | None, images: Sequence[Tensor], texts: Sequence[str], threshold: float
) -> Iterator[Found]:
    if isinstance(network, Segmenting):
        return network.segment(images, texts, threshold)
    assert isinstance(network, Detecting)
    assert sam2 is not None
    return sam2.segment(images, list(network.detect(images, texts, threshold)))


def _key(picture: Tensor, text: str) -> Hashable:
    return picture.shape, picture.dtype, tuple(content_digests(picture[None])[0].tolist()), text


def _packed(found: Found) -> Tensor:
    """Score, number of instances and mask as bytes, eight pixels in one."""
    header = np.array([(found.score, found.instances)], _HEADER).view(np.uint8)
    return torch.from_numpy(np.concatenate([header, np.packbits(found.mask_HW.cpu().numpy())]))


def _unpacked(packed: Tensor, picture: Tensor) -> Segmentation:
    values = packed.numpy()
    score, instances = values[: _HEADER.itemsize].view(_HEADER)[0].tolist()
    _, height, width = picture.shape
    pixels = np.unpackbits(values[_HEADER.itemsize :], count=height * width).view(np.bool_).reshape(height, width)
    return Segmentation(to_device(torch.from_numpy(pixels), picture.device), score, instances, float(pixels.mean()))


_lock = Lock()
_segmenters: dict[SegmenterSettings, Segmenter] = {}
_networks: dict[Hashable, Network] = {}


def shared_network(
    kind: type[_Network], source: CheckpointSource, device: torch.device, dtype: torch.dtype
) -> _Network:
    """Network of this kind, source, device and dtype, read at first use and shared within the process."""
    with _lock:
        key = (kind, source, device, dtype)
        network = _networks.get(key)
        if not isinstance(network, kind):
            network = _networks[key] = kind(source, device, dtype)
        return network


def shared_segmenter(settings: SegmenterSettings) -> Segmenter:
    """Segmenter of these settings, shared within the process; no file is read.

    Raises:
        ImportError: if the installed transformers is too old.
        ValueError: if the device is not available.
    """
    if settings.device is not None:
        settings = replace(settings, device=check_device(settings.device))
    networks = [_KINDS[settings.name].network] + ([Sam2] if settings.mask_source else [])
    for network in networks:
        check_transformers(next(iter(network.class_of.values())))
    with _lock:
        return _segmenters.setdefault(settings, Segmenter(settings))


def load_segmenter(
    name: str = DEFAULT_SEGMENTER,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    mask_checkpoint: str | os.PathLike[str] | None = None,
    threshold: float | None = None,
    device: str | int | torch.device | None = None,
    dtype: Dtype = DEFAULT_DTYPE,
    batch_size: int = DEFAULT_SEGMENTER_BATCH_SIZE,
    revision: str | None = None,
    mask_revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Segmenter:
    """Create a segmenter, a function ``segment(images, nouns)`` that returns the mask of each picture.

    No file is read and nothing is downloaded before its first call.

    Args:
        name: "sam3" (the paper's default), "clipseg", "grounded_sam2" (Grounding DINO's boxes, marked by SAM 2) or
            "owlv2_sam2" (OWLv2's).
        checkpoint: hub id or local folder of the network that takes the text; by default the paper's. "grounded_sam2"
            also takes MM-Grounding-DINO.
        mask_checkpoint: hub id or local folder of SAM 2; by default the paper's, ``facebook/sam2.1-hiera-large``.
        threshold: score in (0, 1) above which an instance, or for "clipseg" a pixel, counts; by default the paper's:
            0.5 for "sam3" and "clipseg", 0.3 for "grounded_sam2", 0.2 for "owlv2_sam2".
        device: device of the networks; by default the device of the pictures, so that under several GPUs each process
            uses its own. PIL images are on the CPU.
        dtype: precision of the networks, a torch.dtype or its name; independent of autocast and of the default dtype.
        batch_size: maximum number of pictures in one pass.
        revision: branch, tag or commit of ``checkpoint`` on the hub.
        mask_revision: branch, tag or commit of ``mask_checkpoint``.
        cache_dir: folder for downloads.
        local_files_only: never use the network.

    Returns:
        The same object for the same arguments, until :func:`release_segmenters` is called.

    Raises:
        TypeError, ValueError: if an argument is not accepted, or the device is not available.
        ImportError: if the installed transformers is too old.

    Source: the masks of MaSC, arXiv 2605.22469. SAM 3's masks are not equal to the paper's bit for bit: the paper ran
    Meta's own package in bfloat16 autocast and enlarged logits, where transformers enlarges probabilities.
    """
    check_choice("name", name, SEGMENTERS)
    kind = _KINDS[name]
    if kind.mask_checkpoint is None and (mask_checkpoint is not None or mask_revision is not None):
        raise ValueError(f"segmenter {name!r} has no second network; omit mask_checkpoint and mask_revision")
    if threshold is not None:
        check_number("threshold", threshold, "a number in (0, 1)")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; give a number in (0, 1)")
    check_positive("batch_size", batch_size)
    checked_dtype = check_dtype(dtype)

    for argument, given in (("checkpoint", checkpoint), ("mask_checkpoint", mask_checkpoint)):
        if given is not None:
            check_type(argument, given, (str, os.PathLike), "a hub id or a local folder")
            if not os.fspath(given).strip():
                raise ValueError(f"{argument} is empty; give a hub id or a local folder")
    source = CheckpointSource.of(checkpoint or kind.checkpoint, revision, cache_dir, local_files_only)
    mask_source = None
    if kind.mask_checkpoint is not None:
        mask_source = CheckpointSource.of(
            mask_checkpoint or kind.mask_checkpoint, mask_revision, cache_dir, local_files_only
        )
    return shared_segmenter(
        SegmenterSettings(
            name=name,
            source=source,
            mask_source=mask_source,
            threshold=kind.threshold if threshold is None else float(threshold),
            device=None if device is None else check_device(device),
            dtype=checked_dtype,
            batch_size=batch_size,
        )
    )


def release_segmenters() -> None:
    """Drop all networks and shared segmenters so that their memory can be freed; the next call reads them again."""
    with _lock:
        for segmenter in _segmenters.values():
            segmenter.cache.clear()
        _segmenters.clear()
        _networks.clear()
