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

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import Sample
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


def _received(
    pixels: np.ndarray, mask: np.ndarray | None, coverage: float | None, patches: int, subject_patches: int | None
) -> LoadedImage:
    mask_tensor = None if mask is None else torch.from_numpy(mask)
    return LoadedImage(torch.from_numpy(pixels), mask_tensor, coverage, patches, subject_patches)


@dataclass(frozen=True, slots=True)
class LoadedSample:
    """A sample's images, or the reason why they cannot be scored.

    Attributes:
        number: the sample's position in its list, from 0.
        generated: the generated image; None if there is an error.
        reference: the image of the subject; None if there is an error.
        error: why it cannot be scored; empty if it can.
    """

    number: int
    generated: LoadedImage | None
    reference: LoadedImage | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads samples.

    Attributes:
        samples: the sample list.
        processing: the checkpoint's image processing, which determines patch grids.
        run: the settings.
    """

    samples: Sequence[Sample]
    processing: ImageProcessing
    run: Run

    def load(self, number: int, references: dict[tuple[str, str | None], LoadedImage]) -> LoadedSample:
        """Read, decode and check one sample's files.

        Args:
            number: the sample's position in the list.
            references: references loaded already, by image and mask file; a new one is added.
        """
        sample = self.samples[number]
        try:
            if sample.error:
                raise ValueError(sample.error)
            _check_prompt(sample)
            key = (sample.reference_image, sample.reference_mask)
            if key not in references:
                references[key] = self._image("reference", *key)
            generated = self._image("generated", sample.generated_image, sample.generated_mask)
            return LoadedSample(number, generated, references[key])
        except (OSError, ValueError, TypeError) as error:
            return LoadedSample(number, None, None, str(error))

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


def _check_prompt(sample: Sample) -> None:
    if sample.prompt is None:
        return
    if not sample.prompt.strip():
        raise ValueError(f"prompt is empty; give the text that generated_image {sample.generated_image} was made from")
    if not is_unicode(sample.prompt):
        raise ValueError(f"prompt {sample.prompt!a} holds half of a surrogate pair; repair its encoding")


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


class _Batches(Dataset[list[LoadedSample]]):
    """Batches of samples, loaded on access."""

    def __init__(self, loader: Loader, batches: Sequence[Sequence[int]]) -> None:
        self._loader, self._batches = loader, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> list[LoadedSample]:
        # A reference is decoded, and sent to the parent, once per batch.
        references: dict[tuple[str, str | None], LoadedImage] = {}
        return [self._loader.load(number, references) for number in self._batches[index]]


def loaded_batches(loader: Loader, numbers: Sequence[int]) -> Iterator[list[LoadedSample]]:
    """Load samples in batches, in order, ahead of their use.

    Args:
        loader: loads a sample.
        numbers: positions of the samples to load, in order.

    Returns:
        An iterator whose worker processes have started, so that they are forked before the parent has tokenizers and
        GPU contexts.
    """
    size = loader.run.batch_size
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return iter(
        DataLoader(
            _Batches(loader, batches),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=min(loader.run.workers, len(batches)),
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


def _unchanged(batch: list[LoadedSample]) -> list[LoadedSample]:
    return batch
