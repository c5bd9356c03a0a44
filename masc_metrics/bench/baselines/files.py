"""The baselines' checkpoint folders: found or downloaded, their image processors read."""

from __future__ import annotations

from collections.abc import Callable
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

_SAFETENSORS_AT = {
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "facebook/dino-vits16": "a7a4d161f5c0bd70478c05ca5777ec7cd8848021",
}
"""Commits of the hub's own conversion to safetensors, where the main branch holds a pickle alone."""


@dataclass(frozen=True, slots=True)
class BaselineFiles:
    """A baseline's checkpoint that lies on this machine.

    Attributes:
        checkpoint: what was asked for: hub id or folder.
        folder: holds config.json, safetensors weights, the image processor's and, for CLIP, the tokenizer's files.
        commit: the hub's commit hash; None for a folder that did not come from the hub.
    """

    checkpoint: str
    folder: Path
    commit: str | None


@dataclass(frozen=True, slots=True)
class FloatProcessing:
    """Image preparation in floating point: scale, resize with antialiasing, normalise.

    Attributes:
        size: (height, width) in pixels that every image is squashed to.
        resample: "bilinear" or "bicubic".
        rescale_factor: multiplies the values 0..255 first.
        mean: subtracted from each channel after that.
        std: divides each channel at last.
    """

    size: tuple[int, int]
    resample: str
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_files(baseline: str, source: CheckpointSource, model_type: str) -> BaselineFiles:
    """The checkpoint's files on this machine, downloaded if they must be and may be.

    Args:
        baseline: whose checkpoint it is, for error texts.
        source: hub id or folder; of two hub ids a commit is known that holds safetensors.
        model_type: what config.json must say.

    Raises:
        OSError: if the checkpoint cannot be had (FileNotFoundError, PermissionError, ConnectionError by reason).
        ValueError: if it is of another type.
    """
    path = Path(source.model)
    if path.is_absolute():
        files = BaselineFiles(source.model, path, path.name if path.parent.name == "snapshots" else None)
    else:
        revision = _SAFETENSORS_AT.get(source.model)
        try:
            folder = fetch(source.model, revision, source.cache_dir, source.local_files_only)
        except OSError as error:
            # `masc-metrics prefetch`, which the text names, takes MaSC's own checkpoints alone.
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


def read_processor(files: BaselineFiles, class_name: str) -> Callable[[list[np.ndarray]], Tensor]:
    """The checkpoint's image processor, through Pillow in every transformers version, torchvision or not.

    Args:
        files: the checkpoint.
        class_name: of transformers' image processor.

    Returns:
        A function from (H, W, 3) uint8 images to normalised pixels, (B, 3, H, W) float32.

    Raises:
        OSError: if the checkpoint has no processor file.
    """
    import transformers

    if not (files.folder / PROCESSOR_FILES[0]).is_file():
        raise FileNotFoundError(f"{files.folder} holds no {PROCESSOR_FILES[0]}; copy it from the original checkpoint")
    # Since transformers 5 the plain name is torchvision's, which resizes to other pixels.
    pil_class = getattr(transformers, f"{class_name}Pil", None) or getattr(transformers, class_name)
    with quiet_transformers():
        processor = pil_class.from_pretrained(files.folder, local_files_only=True)

    def prepare(images: list[np.ndarray]) -> Tensor:
        # Named, because of an image 3 pixels high the side of the channels would be guessed wrong.
        pixels = processor(images, input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    return prepare


def read_float_processing(files: BaselineFiles) -> FloatProcessing:
    """The values of a checkpoint's preprocessor_config.json, for a processor that only torchvision has.

    Raises:
        OSError: if the checkpoint has no processor file.
        ValueError: if the file asks for something else than one size, bilinear or bicubic, and three channels.
    """
    values = read_processor_values(files.folder)
    if values.center_crop:
        raise ValueError(f"{values.file} has do_center_crop true, unlike DINOv3's own files; set it to false")
    if values.size is None:
        raise ValueError(f"{values.file} gives no size with height and width; copy it from the original checkpoint")
    return FloatProcessing(values.size, values.resample, values.rescale_factor, values.mean, values.std)
