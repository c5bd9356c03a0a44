"""The baselines' checkpoint folders: found or downloaded, with their image processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.hub import fetch
from masc_metrics.reading import (
    PROCESSOR_FILES,
    check_folder,
    load_json,
    quiet_transformers,
    read_processor_values,
)

_SAFETENSORS_COMMITS = {
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "facebook/dino-vits16": "a7a4d161f5c0bd70478c05ca5777ec7cd8848021",
}
"""Commits of the hub's own conversion to safetensors, for models whose main branch holds pickled weights only."""


@dataclass(frozen=True, slots=True)
class BaselineFiles:
    """A baseline's checkpoint on this machine.

    Attributes:
        checkpoint: hub id or folder, as given.
        folder: folder of config.json, safetensors weights, and the files of the image processor and, for CLIP, of the
            tokenizer.
        commit: commit hash on the hub; None for a folder that is not from the hub.
    """

    checkpoint: str
    folder: Path
    commit: str | None


@dataclass(frozen=True, slots=True)
class FloatProcessing:
    """Image preparation in floating point: scale, resize with antialiasing, normalise.

    Attributes:
        size: (height, width) in pixels that every image is resized to, whatever its aspect ratio.
        resample: "bilinear" or "bicubic".
        rescale_factor: multiplies the values 0..255 first.
        mean: subtracted from each channel after resizing.
        std: divides each channel after that.
    """

    size: tuple[int, int]
    resample: str
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_files(baseline: str, source: CheckpointSource, model_type: str) -> BaselineFiles:
    """Find a checkpoint on this machine, or download it.

    Args:
        baseline: name of the baseline, for error texts.
        source: hub id or folder; two hub ids have a known commit with safetensors.
        model_type: ``model_type`` that its config.json must have.

    Raises:
        OSError: if the checkpoint is not available (FileNotFoundError, PermissionError or ConnectionError).
        ValueError: if it has another model type.
    """
    path = Path(source.model)
    if path.is_absolute():
        files = BaselineFiles(source.model, path, path.name if path.parent.name == "snapshots" else None)
    else:
        revision = _SAFETENSORS_COMMITS.get(source.model)
        try:
            folder = fetch(source.model, revision, source.cache_dir, source.local_files_only)
        except OSError as error:
            # `masc-metrics prefetch`, which the text names, is for MaSC's own checkpoints only.
            download = f"hf download {source.model}" + (f" --revision {revision}" if revision else "")
            text = str(error).replace(f"masc-metrics prefetch {source.model}", download)
            raise type(error)(f"baseline {baseline}: {text}") from error
        files = BaselineFiles(source.model, folder, folder.name)
    try:
        check_folder(files.folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"baseline {baseline}: {error}") from None
    found = load_json(files.folder / "config.json").get("model_type")
    if found != model_type:
        raise ValueError(
            f"baseline {baseline}: {files.folder} is a checkpoint of type {found!r}; give one whose config.json says "
            f"{model_type!r}"
        )
    return files


def read_processor(files: BaselineFiles, class_name: str) -> Callable[[Sequence[Tensor]], Tensor]:
    """Read the checkpoint's image processor; it uses Pillow in every transformers version, with or without torchvision.

    Args:
        files: the checkpoint.
        class_name: class of transformers' image processor.

    Returns:
        A function from (3, H, W) images, uint8 in 0..255 or float in [0, 1], to normalised pixels, (B, 3, H, W)
        float32. Float images are rounded to uint8, which Pillow needs.

    Raises:
        OSError: if the checkpoint has no processor file.
    """
    import transformers

    if not (files.folder / PROCESSOR_FILES[0]).is_file():
        raise FileNotFoundError(f"{files.folder} holds no {PROCESSOR_FILES[0]}; copy it from the original checkpoint")
    # Since transformers 5 the plain name is torchvision's class, which resizes to other pixels.
    pil_class = getattr(transformers, f"{class_name}Pil", None) or getattr(transformers, class_name)
    with quiet_transformers():
        processor = pil_class.from_pretrained(files.folder, local_files_only=True)

    def prepare(images: Sequence[Tensor]) -> Tensor:
        arrays = [np.ascontiguousarray(_to_uint8(image).permute(1, 2, 0).cpu().numpy()) for image in images]
        # Stated, because the channel dimension of an image 3 pixels high is ambiguous.
        pixels = processor(arrays, input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    return prepare


def _to_uint8(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8) if image.is_floating_point() else image


def read_float_processing(files: BaselineFiles) -> FloatProcessing:
    """Read the values of a checkpoint's image processor whose transformers class needs torchvision.

    Raises:
        OSError: if the checkpoint has no processor file.
        ValueError: if the file has a center crop, no height and width, or malformed values.
    """
    values = read_processor_values(files.folder)
    if values.center_crop:
        raise ValueError(
            f"{values.file} has do_center_crop true, which is not supported; set it to false as in DINOv3's own files"
        )
    if values.size is None:
        raise ValueError(f"{values.file} gives no size with height and width; copy it from the original checkpoint")
    return FloatProcessing(values.size, values.resample, values.rescale_factor, values.mean, values.std)
