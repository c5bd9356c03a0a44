"""Loads and checks the files of samples, in worker processes that run ahead of the device."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import Sample, SampleResult
from masc_metrics.images import ImageProcessing, check_image
from masc_metrics.masks import FOREGROUND_THRESHOLD, check_mask, grid_coverage
from masc_metrics.prompts import is_unicode

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file can declare a size that fills the memory."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image and the subject's mask in it.

    Between processes it travels as numpy arrays through a pipe: torch would move tensors through shared memory, of
    which containers have little.

    Attributes:
        pixels: (3, H, W) uint8.
        mask: (H', W') float32 in [0, 1], of the image's aspect ratio; None if the sample has none.
        coverage: share of the mask's pixels that are not zero, in [0, 1].
        patches: number of patches of the grid that the image is encoded on.
        subject_patches: number of those that belong to the subject: more than half covered in a reference image, at
            least half covered in a generated image. None without a mask.
    """

    pixels: Tensor
    mask: Tensor | None
    coverage: float | None
    patches: int
    subject_patches: int | None

    def __reduce__(self) -> tuple[Callable[..., LoadedImage], tuple[object, ...]]:
        mask = None if self.mask is None else self.mask.numpy()
        return _received, (self.pixels.numpy(), mask, self.coverage, self.patches, self.subject_patches)


def _received(pixels: np.ndarray, mask: np.ndarray | None, *measures: Any) -> LoadedImage:
    return LoadedImage(torch.from_numpy(pixels), None if mask is None else torch.from_numpy(mask), *measures)


@dataclass(frozen=True, slots=True)
class LoadedSample:
    """A sample, its position in its list, from 0, and its images."""

    number: int
    sample: Sample
    generated: LoadedImage
    reference: LoadedImage


Loaded = LoadedSample | SampleResult
"""A sample to score, or the result of one that cannot be scored."""


@dataclass(frozen=True)
class Loader(Dataset[list[Loaded]]):
    """Batches of samples, given by their positions in the list, loaded on access."""

    samples: Sequence[Sample]
    processing: ImageProcessing
    run: Run
    batches: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Loaded]:
        # A reference is decoded, and sent to the parent, once per batch.
        references: dict[tuple[str, str | None], LoadedImage] = {}
        return [self.load(number, references) for number in self.batches[index]]

    def load(self, number: int, references: dict[tuple[str, str | None], LoadedImage]) -> Loaded:
        """Read, decode and check one sample's files; loaded references are kept by image and mask file."""
        sample = self.samples[number]
        try:
            if sample.error:
                raise ValueError(sample.error)
            if sample.prompt is not None and not sample.prompt.strip():
                file = sample.generated_image
                raise ValueError(f"prompt is empty; give the text that generated_image {file} was made from")
            if sample.prompt is not None and not is_unicode(sample.prompt):
                raise ValueError(f"prompt {sample.prompt!a} holds half of a surrogate pair; repair its encoding")
            key = (sample.reference_image, sample.reference_mask)
            if key not in references:
                references[key] = self._image("reference", *key)
            generated = self._image("generated", sample.generated_image, sample.generated_mask)
            return LoadedSample(number, sample, generated, references[key])
        except (OSError, ValueError, TypeError) as error:
            return SampleResult(number, dict.fromkeys(self.run.columns), {}, error=str(error))

    def _image(self, which: str, image_file: str, mask_file: str | None) -> LoadedImage:
        label = f"{which}_image"
        pixels = check_image(open_image(Path(image_file), label), f"{label} {image_file}").contiguous()
        size = (pixels.shape[1], pixels.shape[2])
        grid = self.processing.grid(*size, self.run.max_num_patches)
        if mask_file is None:
            return LoadedImage(pixels, None, None, grid[0] * grid[1], None)
        mask = _mask(Path(mask_file), f"{which}_mask", size)
        coverage_N = grid_coverage(mask, grid)
        is_reference = which == "reference"
        subject_N = coverage_N > FOREGROUND_THRESHOLD if is_reference else coverage_N >= FOREGROUND_THRESHOLD
        return LoadedImage(
            pixels, mask, int(mask.count_nonzero()) / mask.numel(), grid[0] * grid[1], int(subject_N.sum())
        )


def _mask(file: Path, label: str, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a label map marks nothing: here it is an error
        try:
            return check_mask(open_image(file, label), f"{label} {file}", size)
        except UserWarning as warning:
            raise ValueError(str(warning)) from None


def open_image(file: Path, label: str) -> Image.Image:
    """Read and decode an image or mask file, rotated as its EXIF orientation says, as viewers show it.

    Raises:
        OSError: if it cannot be read, is not an image, or has more than ``MAX_PIXELS``; the text holds label and file.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is lower, and a warning; ours is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if file.exists() and not file.is_file():
                raise OSError("it is not a regular file")  # reading a pipe would block
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise OSError(f"{height} x {width} pixels are more than {MAX_PIXELS}; make it smaller")
                return ImageOps.exif_transpose(image) or image
    except FileNotFoundError:
        raise FileNotFoundError(f"{label} {file}: no such file") from None
    except Exception as error:  # decoders raise any exception for a damaged file
        raise OSError(f"{label} {file}: cannot be read as an image ({error})") from error


def loaded_batches(
    samples: Sequence[Sample], numbers: Sequence[int], processing: ImageProcessing, run: Run
) -> Iterator[list[Loaded]]:
    """Load the samples at some positions of a list, in batches, in order, ahead of their use.

    Returns:
        An iterator whose worker processes have started, so that they are forked before the parent has tokenizers and
        GPU contexts.
    """
    batches = [numbers[start : start + run.batch_size] for start in range(0, len(numbers), run.batch_size)]
    return iter(
        DataLoader(
            Loader(samples, processing, run, batches),
            batch_size=None,
            collate_fn=list,
            num_workers=min(run.workers, len(batches)),
            worker_init_fn=functools.partial(_follow_parent, os.getpid()),
        )
    )


def _follow_parent(parent: int, worker: int) -> None:
    # A worker that ends waits until its last batch is read: forever if its parent is dead, and long if both are
    # interrupted. So it leaves Ctrl-C to its parent, and ends when the parent is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
