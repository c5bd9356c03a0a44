"""The segmenters' frozen networks: transformers' models with preparation and post-processing in torch alone.

Shape suffixes: B pictures; N instances or boxes; Q queries of a network; H, W sides in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.precision import to_device
from masc_metrics.reading import (
    NotFiniteError,
    check_folder,
    check_token_ids,
    load_json,
    read_network,
    read_tokenizer,
    readable,
)
from masc_metrics.segmenters.preparation import (
    CLIP,
    HALF,
    IMAGENET,
    padded_pixels,
    read_processing,
    read_size,
    resized_pixels,
    shortest_edge_size,
)

_MIN_TRANSFORMERS = {
    "Sam3Model": "5.4.0",  # the class exists in 5.0, but imports torchvision
    "Sam2Model": "4.56.0",
    "MMGroundingDinoForObjectDetection": "4.55.0",
}

_HALF_PRECISION_DINO = "5.7.0"
"""First version of transformers in which Grounding DINO runs in half precision."""

_INSTANCES_PER_PASS = 16
"""Masks enlarged at a time: 4 MB each in float32 for a picture of 1024 x 1024 pixels."""

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Found:
    """What a network marks in one picture.

    Attributes:
        mask_HW: bool, the union of all instances, at the picture's size, on the network's device.
        score: highest score of all candidates, also of those that are not above the threshold.
        instances: number of candidates above the threshold.
    """

    mask_HW: Tensor
    score: float
    instances: int


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of what is to be marked in one picture.

    Attributes:
        corners_N4: left, top, right and bottom in pixels of the picture, not clipped to it.
        score: as in :class:`Found`.
        points_NK2: points in each box on what is to be marked, x and y in pixels of the picture; None for boxes alone.
    """

    corners_N4: Tensor
    score: float
    points_NK2: Tensor | None = None


def check_transformers(class_name: str) -> None:
    """Raise ImportError if the installed transformers has no such class that runs without torchvision."""
    needed, installed = _MIN_TRANSFORMERS.get(class_name), version("transformers")
    if needed is not None and Version(installed) < Version(needed):
        raise ImportError(
            f"{class_name} needs transformers {needed} or newer, and {installed} is installed; "
            f"pip install 'transformers>={needed}'"
        )


class Network(ABC):
    """A frozen network of one checkpoint on one device in one dtype, read when it is created.

    Args:
        source: hub id or folder.
        device: device of the network.
        dtype: dtype of the weights.

    Raises:
        OSError: if the checkpoint is not available, or lacks files.
        ValueError: if it is of another kind, or damaged.
        ImportError: if the installed transformers is too old.
    """

    class_of: ClassVar[Mapping[str, str]]
    """transformers class by the ``model_type`` of config.json. SAM's repositories have the type of the video model,
    whose weights contain the picture model's."""

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        try:
            self.folder, self.commit = source.locate("hf download")
        except PermissionError as error:
            raise PermissionError(
                f"{error}. The authors review requests and may refuse them; load_segmenter('grounded_sam2') and "
                "load_segmenter('clipseg') need none"
            ) from None
        check_folder(self.folder)
        model_type = str(load_json(self.folder / "config.json").get("model_type"))
        if model_type not in self.class_of:
            raise ValueError(
                f"{self.folder} is a checkpoint of type {model_type!r}; give one whose config.json says "
                f"{' or '.join(map(repr, self.class_of))}"
            )
        class_name = self.class_of[model_type]
        check_transformers(class_name)
        self.model = read_network(self.folder, class_name, device, dtype, kind=class_name, part=f"a {class_name}")


class TextNetwork(Network):
    """A network that takes texts."""

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        self.tokenizer = read_tokenizer(
            self.folder, _TOKENIZER_FILES, "copy the original checkpoint's tokenizer files into it"
        )

    @property
    def text_length(self) -> int:
        """Largest number of tokens."""
        return int(self.model.config.text_config.max_position_embeddings)

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, with those at its beginning and end."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def check_text(self, text: str, label: str) -> None:
        """Raise ValueError if the text is too long for the network; a tokenizer would cut it silently."""
        if (count := self.token_count(text)) > self.text_length:
            raise ValueError(
                f"{label} makes the text {text!r} of {count} tokens, and {type(self.model).__name__} reads at most "
                f"{self.text_length}; give a shorter noun"
            )

    def tokens(self, texts: Sequence[str], **options: Any) -> dict[str, Tensor]:
        """Arguments of the model for texts, padded to the length of the network so that batches are alike."""
        options = {"padding": "max_length", "max_length": self.text_length, **options}
        encoded = self.tokenizer(list(texts), return_tensors="pt", **options)  # check_text has seen them
        check_token_ids(encoded["input_ids"], int(self.model.config.text_config.vocab_size), self.folder)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: to_device(encoded[name], self.device) for name in names if name in encoded}

    def group(self, size: tuple[int, int], text: str) -> Hashable:
        """Pictures of equal groups may share a pass: nothing in it is padded."""
        return None


class Segmenting(TextNetwork):
    """A network that marks what texts name."""

    @abstractmethod
    def segment(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Found]:
        """Mark in each (3, H, W) picture what its text names; pictures and texts are of one group."""


class Detecting(TextNetwork):
    """A network that finds boxes of what texts name."""

    @abstractmethod
    def detect(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Boxes]:
        """Find in each (3, H, W) picture what its text names; pictures and texts are of one group."""


class Sam3(Segmenting):
    """SAM 3: instances whose score, sigmoid(query) * sigmoid(presence), exceeds the threshold; pixels above 0.5."""

    class_of: ClassVar = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        self._side = int(self.model.config.vision_config.image_size)
        self._processing = read_processing(self.folder, HALF)

    def segment(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Found]:
        """As :meth:`Segmenting.segment`."""
        pixels_B3HW = resized_pixels(images, [(self._side,) * 2] * len(images), self._processing, self.device)
        output = self.model(pixel_values=pixels_B3HW.to(self.dtype), **self.tokens(texts))
        scores_BQ = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
        for image, scores_Q, logits_QHW in zip(images, scores_BQ, output.pred_masks, strict=True):
            kept_Q = scores_Q > threshold
            mask_HW = _union(logits_QHW[kept_Q].float().sigmoid(), 0.5, _size(image))
            yield Found(mask_HW, float(scores_Q.max()), int(kept_Q.sum()))


class ClipSeg(Segmenting):
    """CLIPSeg: pixels whose probability exceeds the threshold, after it is enlarged. It has no instances."""

    class_of: ClassVar = {"clipseg": "CLIPSegForImageSegmentation"}

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        size = read_size(self.folder, 352)
        height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
        if type(height) is not int or height < 1 or height != width:
            raise ValueError(f"{self.folder} has an image processor of size {size}; CLIPSeg takes squares, such as 352")
        self._side = height
        self._processing = read_processing(self.folder, IMAGENET)

    def segment(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Found]:
        """As :meth:`Segmenting.segment`."""
        pixels_B3HW = resized_pixels(images, [(self._side,) * 2] * len(images), self._processing, self.device)
        logits = self.model(pixel_values=pixels_B3HW.to(self.dtype), **self.tokens(texts)).logits
        # Old versions of transformers drop the batch dimension of one picture.
        probabilities_BHW = logits.float().sigmoid().reshape(len(images), *logits.shape[-2:])
        for image, probabilities_HW in zip(images, probabilities_BHW, strict=True):
            enlarged_HW = _enlarged(probabilities_HW[None], _size(image))[0]
            mask_HW = enlarged_HW > threshold
            yield Found(mask_HW, float(enlarged_HW.max()), int(mask_HW.any()))


class GroundingDino(Detecting):
    """Grounding DINO or MM-Grounding-DINO: boxes whose best token's probability exceeds the threshold."""

    class_of: ClassVar = {
        "grounding-dino": "GroundingDinoForObjectDetection",
        "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
    }

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        if dtype != torch.float32 and Version(version("transformers")) < Version(_HALF_PRECISION_DINO):
            raise ValueError(
                f"dtype is {dtype}, in which Grounding DINO needs transformers {_HALF_PRECISION_DINO} or newer, and "
                f"{version('transformers')} is installed; give torch.float32"
            )
        super().__init__(source, device, dtype)
        size = read_size(self.folder, {"shortest_edge": 800, "longest_edge": 1333})
        if not isinstance(size, dict) or not {"shortest_edge", "longest_edge"} <= set(size):
            raise ValueError(
                f"{self.folder} has an image processor of size {size}; give shortest_edge and longest_edge, such as "
                "800 and 1333"
            )
        with readable(self.folder, "image processor"):
            self._edges = int(size["shortest_edge"]), int(size["longest_edge"])
        if min(self._edges) < 1:
            raise ValueError(f"{self.folder} has an image processor of size {size}; give numbers above 0")
        self._processing = read_processing(self.folder, IMAGENET)

    @property
    def text_length(self) -> int:
        """Largest number of tokens."""
        return int(self.model.config.max_text_len)

    def group(self, size: tuple[int, int], text: str) -> Hashable:
        """Size of the picture in the network, and number of tokens."""
        return shortest_edge_size(*size, *self._edges), self.token_count(text)

    def detect(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Boxes]:
        """As :meth:`Detecting.detect`."""
        sizes = [shortest_edge_size(*_size(image), *self._edges) for image in images]
        pixels_B3HW = resized_pixels(images, sizes, self._processing, self.device)
        tokens = self.tokens(texts, padding=False, max_length=None, return_token_type_ids=True)
        valid_BHW = torch.ones((len(images), *sizes[0]), dtype=torch.int64, device=self.device)
        output = self.model(pixel_values=pixels_B3HW.to(self.dtype), pixel_mask=valid_BHW, **tokens)
        scores_BQ = output.logits.float().sigmoid().amax(dim=2)
        for image, scores_Q, boxes_Q4 in zip(images, scores_BQ, output.pred_boxes, strict=True):
            height, width = _size(image)
            yield _boxes(scores_Q, boxes_Q4, threshold, (width, height))


class Owlv2(Detecting):
    """OWLv2: boxes whose probability exceeds the threshold; a box refers to the picture padded to a square."""

    class_of: ClassVar = {"owlv2": "Owlv2ForObjectDetection"}

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        self._side = int(self.model.config.vision_config.image_size)
        self._processing = read_processing(self.folder, CLIP)

    def detect(self, images: Sequence[Tensor], texts: Sequence[str], threshold: float) -> Iterator[Boxes]:
        """As :meth:`Detecting.detect`."""
        pixels_B3HW = padded_pixels(images, self._side, self._processing, self.device)
        output = self.model(pixel_values=pixels_B3HW.to(self.dtype), **self.tokens(texts))
        scores_BQ = output.logits.float().amax(dim=2).sigmoid()
        for image, scores_Q, boxes_Q4 in zip(images, scores_BQ, output.pred_boxes, strict=True):
            longer = max(_size(image))
            yield _boxes(scores_Q, boxes_Q4, threshold, (longer, longer))


class Sam2(Network):
    """SAM 2: masks of what is in boxes; pixels whose logit is above 0."""

    class_of: ClassVar = {"sam2": "Sam2Model", "sam2_video": "Sam2Model"}

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype)
        self._side = int(self.model.config.prompt_encoder_config.image_size)
        self._processing = read_processing(self.folder, IMAGENET)

    def segment(self, images: Sequence[Tensor], boxes: Sequence[Boxes]) -> Iterator[Found]:
        """Mark in each (3, H, W) picture what is in its boxes; pictures without boxes are not encoded."""
        chosen = [image for image, found in zip(images, boxes, strict=True) if len(found.corners_N4)]
        embeddings: list[Tensor] = []
        if chosen:
            pixels_B3HW = resized_pixels(chosen, [(self._side,) * 2] * len(chosen), self._processing, self.device)
            embeddings = self.model.get_image_embeddings(pixels_B3HW.to(self.dtype))
        row = 0
        for image, found in zip(images, boxes, strict=True):
            height, width = _size(image)
            mask_HW = torch.zeros((height, width), dtype=torch.bool, device=self.device)
            scale_2 = torch.tensor([self._side / width, self._side / height], dtype=torch.float32, device="cpu")
            scale_2 = to_device(scale_2, self.device)
            corners_N4 = found.corners_N4 * scale_2.repeat(2)
            points_NK2 = None if found.points_NK2 is None else found.points_NK2 * scale_2
            for start in range(0, len(corners_N4), _INSTANCES_PER_PASS):
                part = slice(start, start + _INSTANCES_PER_PASS)
                logits = self.model(
                    image_embeddings=[level[row : row + 1] for level in embeddings],
                    input_boxes=corners_N4[None, part],
                    input_points=None if points_NK2 is None else points_NK2[None, part],
                    multimask_output=False,
                ).pred_masks
                mask_HW |= _union(logits[0, :, 0].float(), 0.0, (height, width))
            row += len(corners_N4) > 0
            yield Found(mask_HW, found.score, len(corners_N4))


def _boxes(scores_Q: Tensor, boxes_Q4: Tensor, threshold: float, scale: tuple[int, int]) -> Boxes:
    """Boxes above the threshold, from centre, width and height in units of ``scale``."""
    centres_N2, sides_N2 = boxes_Q4[scores_Q > threshold].float().chunk(2, dim=1)
    corners_N4 = torch.cat([centres_N2 - 0.5 * sides_N2, centres_N2 + 0.5 * sides_N2], dim=1)
    units = to_device(torch.tensor(scale * 2, dtype=torch.float32, device="cpu"), corners_N4.device)
    return Boxes(corners_N4 * units, float(scores_Q.max()))


def _union(values_NHW: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    """Pixels of a picture in which any of the enlarged maps is above the threshold."""
    if values_NHW.isnan().any():
        raise NotFiniteError(
            "the segmenter gave masks that are not finite; run it in torch.bfloat16 or torch.float32, and check its "
            "weights"
        )
    union_HW = torch.zeros(size, dtype=torch.bool, device=values_NHW.device)
    for start in range(0, len(values_NHW), _INSTANCES_PER_PASS):
        part_NHW = values_NHW[start : start + _INSTANCES_PER_PASS]
        union_HW |= (_enlarged(part_NHW, size) > threshold).any(dim=0)
    return union_HW


def _enlarged(values_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values_NHW[None], size, mode="bilinear", align_corners=False)[0]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]
