"""A sample's files, decoded and checked: the part of the work that runs ahead of the device, in worker processes."""

from __future__ import annotations

import functools
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from masc_metrics.bench.sample import COLUMNS, Sample
from masc_metrics.grid import Grid
from masc_metrics.images import ImageProcessing, check_images
from masc_metrics.masks import FOREGROUND_THRESHOLD, check_masks, grid_coverage

MAX_PIXELS = 100_000_000
"""A picture with more is refused before it is decoded: a small file can claim to be one that fills the memory."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image and the subject's mask in it.

    Attributes:
        pixels: (3, H, W) uint8.
        mask: (H', W') float32 in [0, 1], of the image's aspect ratio; None if none is asked for.
        coverage: share of the mask's pixels that are not zero, in [0, 1].
        patches: of the grid on which it is encoded.
        subject_patches: those that belong to the subject: more than half covered in a reference, at least half in a
            generated image. None without a mask.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    coverage: float | None
    patches: int
    subject_patches: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A sample, opened.

    Attributes:
        number: its place in the sample list, from 0.
        generated: the generated image; None if there is an error.
        reference: the subject's picture; None if there is an error.
        error: why it cannot be scored; empty if it can.
    """

    number: int
    generated: Picture | None
    reference: Picture | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Opening:
    """How files are opened.

    Attributes:
        processing: the checkpoint's, which knows the grids.
        max_num_patches: patch budget of one image.
    """

    processing: ImageProcessing
    max_num_patches: int

    def open(self, number: int, sample: Sample, known: dict[str, Picture]) -> Opened:
        """Read, decode and check one sample's files.

        Args:
            number: its place in the list.
            sample: the sample.
            known: references opened already, by file; a new one is added.
        """
        try:
            if sample.error:
                raise ValueError(sample.error)
            if sample.prompt is not None and not sample.prompt.strip():
                raise ValueError(
                    f"prompt is empty; give the text that generated_image {sample.generated_image} was made from"
                )
            reference_key = f"{sample.reference_image}\n{sample.reference_mask}"
            if reference_key not in known:
                known[reference_key] = self._picture(sample, "reference")
            return Opened(number, self._picture(sample, "generated"), known[reference_key])
        except (OSError, ValueError, TypeError) as error:
            return Opened(number, None, None, in_columns(str(error), sample))

    def _picture(self, sample: Sample, which: str) -> Picture:
        image = open_picture(Path(getattr(sample, f"{which}_image")), f"{which}_image")
        batch = check_images([image], f"{which}_images")
        (size,) = batch.sizes
        grid = self.processing.grid(*size, self.max_num_patches)
        mask_file = getattr(sample, f"{which}_mask")
        pixels = np.ascontiguousarray(batch.images[0].numpy())
        if mask_file is None:
            return Picture(pixels, None, None, grid[0] * grid[1], None)
        mask = self._mask(Path(mask_file), which, size)
        return Picture(
            pixels=pixels,
            mask=mask,
            coverage=float(np.count_nonzero(mask)) / mask.size,
            patches=grid[0] * grid[1],
            subject_patches=self._subject_patches(mask, grid, which),
        )

    def _mask(self, file: Path, which: str, size: tuple[int, int]) -> np.ndarray:
        mask = open_picture(file, f"{which}_mask")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a label map marks nothing: the row is wrong
            try:
                checked: np.ndarray = check_masks([mask], f"{which}_masks", [size]).masks[0].numpy()
            except UserWarning as warning:
                raise ValueError(str(warning)) from None
        return checked

    def _subject_patches(self, mask: np.ndarray, grid: Grid, which: str) -> int:
        coverage_N = grid_coverage(torch.from_numpy(mask), grid)
        kept_N = coverage_N > FOREGROUND_THRESHOLD if which == "reference" else coverage_N >= FOREGROUND_THRESHOLD
        return int(kept_N.sum())


def in_columns(error: str, sample: Sample) -> str:
    """An error about arguments, which are the columns' plurals, in terms of the row: its columns and files."""

    def column(match: re.Match[str]) -> str:
        value = getattr(sample, match[1]) if match[1] in COLUMNS[:4] else None
        return match[1] if value is None else f"{match[1]} {value}"

    return re.sub(rf"\b({'|'.join(COLUMNS)})s\[0\]", column, error)


def open_picture(file: Path, column: str) -> Image.Image:
    """Read and decode an image or mask file, turned the way its EXIF orientation says, as viewers show it.

    Raises:
        OSError: if it cannot be read, is no image, or has more than ``MAX_PIXELS``; the text names column and file.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit for what it calls a bomb is lower, and a warning; ours is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if file.exists() and not file.is_file():
                raise OSError("it is no regular file")  # a pipe would be waited for
            with Image.open(file) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise OSError(f"{height} x {width} pixels are more than {MAX_PIXELS}; make it smaller")
                return ImageOps.exif_transpose(picture) or picture
    except FileNotFoundError:
        raise FileNotFoundError(f"{column} {file}: no such file") from None
    except Exception as error:  # a damaged file makes the decoders raise whatever they like
        raise OSError(f"{column} {file}: cannot be read as an image ({error})") from error


class _Batches(Dataset[list[Opened]]):
    """Batches of samples, opened when they are asked for, in whatever process asks."""

    def __init__(self, samples: Sequence[Sample], numbers: Sequence[Sequence[int]], opening: Opening) -> None:
        self._samples, self._numbers, self._opening = samples, numbers, opening

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> list[Opened]:
        known: dict[str, Picture] = {}  # a reference is decoded, and sent to the parent, once a batch
        return [self._opening.open(number, self._samples[number], known) for number in self._numbers[index]]


def opened_batches(
    samples: Sequence[Sample], numbers: Sequence[int], opening: Opening, *, batch_size: int, workers: int
) -> Iterator[list[Opened]]:
    """Open samples a batch at a time, in order, ahead of whoever asks.

    Args:
        samples: the whole list.
        numbers: places of those to open, in the order in which to open them.
        opening: how.
        batch_size: samples in a batch.
        workers: processes that open; 0 opens when asked, in this process.

    Returns:
        An iterator whose workers have started already, so that they are forked off a process without tokenizers and
        GPU contexts.
    """
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    loader = DataLoader(
        _Batches(samples, batches, opening),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(batches)),
        worker_init_fn=functools.partial(_end_with_the_parent, os.getpid()),
    )
    return iter(loader)


def _end_with_the_parent(parent: int, worker: int) -> None:
    # At its end a worker waits until its last batch has been read, which is for ever if its parent is dead, and long
    # if both are interrupted. So it leaves Control-C to its parent, and looks after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(batch: list[Opened]) -> list[Opened]:
    # The arrays go through a pipe: as tensors they would need shared memory, of which containers have little.
    return batch
