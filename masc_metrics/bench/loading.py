"""Loads and checks the files of samples, in worker processes that run ahead of the device."""

from __future__ import annotations

import functools
import io
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import WHICH, Sample, SampleResult
from masc_metrics.bench.tables import LONGEST_QUOTE, quoted, stored_picture
from masc_metrics.grid import Grid
from masc_metrics.images import (
    ImageProcessing,
    check_image,
    decode_picture,
    holds_several,
    is_one_colour,
    open_picture,
)
from masc_metrics.masks import FOREGROUND_THRESHOLD, check_mask, grid_coverage, looks_inverted, same_aspect
from masc_metrics.prompts import check_unicode
from masc_metrics.settings import SEGMENTERS

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file can declare a size that fills the memory."""


LONGEST_PROMPT = 2**17
"""Longer prompts and subjects are refused before they are split into tokens, which takes hundreds of bytes a character.
CSV cells cannot be longer either."""

BYTES_A_SAMPLE = 2**26
"""Memory for the decoded files of a sample, on average over a batch.

64 MiB are enough for two images of 4.7 megapixels with their masks."""

_SMALLEST_BATCH = 8  # samples whose memory a batch may take, so that workers load large pictures at any --batch-size

_IMAGE_BYTES, _MASK_BYTES = 3, 4  # of a decoded pixel; masks with other values than black and white are float32


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image and the subject's mask in it.

    Between processes it travels as numpy arrays through a pipe: torch would move tensors through shared memory, of
    which containers have little.

    Attributes:
        pixels: (3, H, W) uint8.
        mask: (H', W'), bool or float32 in [0, 1], of the image's aspect ratio; None if the sample has none.
        coverage: share of the mask's pixels that are not zero, in [0, 1].
        patches: number of patches of the grid that the image is encoded on.
        subject_patches: number of those that belong to the subject: more than half covered in a reference image, at
            least half covered in a generated image. None without a mask.
        noticed: what is probably wrong with it: "orientation" if only one of image and mask has an
            EXIF orientation, and they fit with and without it; "one_colour" for a generated image, see
            :func:`masc_metrics.images.is_one_colour`; "inverted_mask", see :func:`masc_metrics.masks.looks_inverted`;
            "several_pictures" if the file of image or mask holds several, of which the first is taken.
    """

    pixels: Tensor
    mask: Tensor | None
    coverage: float | None
    patches: int
    subject_patches: int | None
    noticed: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Callable[..., LoadedImage], tuple[object, ...]]:
        mask = None if self.mask is None else self.mask.numpy()
        measures = (self.coverage, self.patches, self.subject_patches, self.noticed)
        return _received, (self.pixels.numpy(), mask, *measures)


def _received(pixels: np.ndarray, mask: np.ndarray | None, *measures: Any) -> LoadedImage:
    return LoadedImage(torch.from_numpy(pixels), None if mask is None else torch.from_numpy(mask), *measures)


@dataclass(frozen=True, slots=True)
class LoadedSample:
    """A sample and its images.

    Attributes:
        number: its position in its list, from 0.
        sample: the sample.
        generated: its generated image.
        reference: its reference image; None without one, or if one of several cannot be read.
        more_references: its further references.
        lacks: why it does not have an input, by column of the input. It has the others.
    """

    number: int
    sample: Sample
    generated: LoadedImage
    reference: LoadedImage | None
    more_references: tuple[LoadedImage, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)

    def mask_of(self, which: str) -> Tensor | None:
        """The mask of its "reference" or "generated" image, if it has one."""
        image: LoadedImage | None = getattr(self, which)
        unmarked = which == "reference" and any(reference.mask is None for reference in self.more_references)
        return None if image is None or unmarked else image.mask

    @property
    def references(self) -> tuple[LoadedImage, ...]:
        """All its references; none if one of them is missing."""
        return () if self.reference is None else (self.reference, *self.more_references)


def _decoded_files(sample: Sample, pixels: Callable[[str], int]) -> dict[tuple[str, int], int]:
    """Bytes that each of a sample's files takes when it is decoded, by file and bytes a pixel."""
    images = [sample.generated_image, *(image for image, _ in sample.references)]
    masks = [sample.generated_mask or sample.orientation_mask, *(mask for _, mask in sample.references)]
    files = [(file, _IMAGE_BYTES) for file in images if file] + [(file, _MASK_BYTES) for file in masks if file]
    return {(file, each): pixels(file) * each for file, each in files}


def _pixels(file: str) -> int:
    """Number of pixels by the header of a picture; 0 if it cannot be read, which is an error of its row later."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with undecoded(Path(file)) as image:
                pixels = image.width * image.height
    except Exception:  # decoders raise any exception for a damaged file
        return 0
    return pixels if pixels <= MAX_PIXELS else 0


def lacks_mask(sample: Sample, which: str, run: Run) -> bool:
    """Whether the run's segmenter makes the mask of a sample's "reference" or "generated" image."""
    name = f"{which}_mask"
    return run.mask_source in SEGMENTERS and name in run.made_masks and getattr(sample, name) is None


Loaded = LoadedSample | SampleResult
"""A sample to score, or the result of one that cannot be scored."""

LoadedReference: TypeAlias = "tuple[LoadedImage | None, dict[str, str]]"
"""A reference image with its mask, and what is unusable of them."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Positions of samples in their list, and whether workers may load them ahead of their use."""

    numbers: Sequence[int]
    ahead: bool


@dataclass(frozen=True)
class Loader(Dataset["list[Loaded] | _Batch"]):
    """Samples, given by their positions in the list, loaded on access."""

    samples: Sequence[Sample]
    processing: ImageProcessing
    run: Run

    def __getitem__(self, batch: _Batch) -> list[Loaded] | _Batch:
        return self.load_all(batch.numbers) if batch.ahead else batch

    def load_all(self, numbers: Iterable[int]) -> list[Loaded]:
        """:meth:`load` of a batch. A reference is decoded, and sent to the parent, once per batch."""
        references: dict[tuple[str, str | None], LoadedReference] = {}
        return [self.load(number, references) for number in numbers]

    def batches(self, numbers: Sequence[int]) -> Iterator[_Batch]:
        """Cut positions into batches of ``batch_size``, and those that would take too much memory into smaller ones."""
        most = BYTES_A_SAMPLE * max(self.run.batch_size, _SMALLEST_BATCH)
        pixels = lru_cache(maxsize=2**12)(_pixels)  # references recur
        for start in range(0, len(numbers), self.run.batch_size):
            part: list[int] = []
            decoded: dict[tuple[str, int], int] = {}
            for number in numbers[start : start + self.run.batch_size]:
                files = _decoded_files(self.samples[number], pixels)
                if part and sum({**decoded, **files}.values()) > most:
                    yield _Batch(part, sum(decoded.values()) <= most)
                    part, decoded = [], {}
                part.append(number)
                decoded |= files
            yield _Batch(part, sum(decoded.values()) <= most)

    def load(self, number: int, references: dict[tuple[str, str | None], LoadedReference]) -> Loaded:
        """Read, decode and check one sample's files; loaded references are kept by image and mask file.

        Without its generated image a sample fails. Without another input it lacks the scores that need this input.
        """
        sample = self.samples[number]
        try:
            if sample.error:
                raise ValueError(sample.error)
            lacks = {**sample.lacks, **_lacking_prompt(sample), **self._lacking_nouns(sample)}
            generated = self._image(
                lacks, "generated", sample.generated_image, sample.generated_mask, sample.orientation_mask
            )
            for key in sample.references:
                if key not in references:
                    references[key] = self.reference(*key)
                lacks = references[key][1] | lacks
            found = [image for image, _ in map(references.__getitem__, sample.references) if image is not None]
            if len(found) < len(sample.references):
                return LoadedSample(number, sample, generated, None, lacks=lacks)
            return LoadedSample(number, sample, generated, found[0], tuple(found[1:]), lacks)
        except (OSError, ValueError, TypeError, ImportError) as error:
            return SampleResult(number, dict.fromkeys(self.run.columns), {}, error=str(error))

    def _lacking_nouns(self, sample: Sample) -> dict[str, str]:
        if sample.more_references and lacks_mask(sample, "reference", self.run):
            return {
                "reference_mask": f"reference_image has {len(sample.references)} files, whose masks no segmenter makes "
                "while scoring; give reference_mask with a file for each"
            }
        return {
            f"{which}_mask": "noun and subject are empty; give what to mark in "
            f"{which}_image {named(getattr(sample, f'{which}_image'))}"
            for which in WHICH
            if lacks_mask(sample, which, self.run) and not getattr(sample, f"{which}_noun")
        }

    def reference(self, image_file: str, mask_file: str | None) -> LoadedReference:
        """Load a reference image and its mask."""
        lacks: dict[str, str] = {}
        try:
            return self._image(lacks, "reference", image_file, mask_file) if image_file else None, lacks
        except (OSError, ValueError, TypeError, ImportError) as error:
            return None, {"reference_image": str(error)}

    def _image(
        self,
        lacks: dict[str, str],
        which: str,
        image_file: str,
        mask_file: str | None,
        orientation_mask: str | None = None,
    ) -> LoadedImage:
        """Load an image and its mask; why a mask is unusable is added to ``lacks``."""
        label, mask_label = f"{which}_image", f"{which}_mask"
        picture = _opened(Path(image_file), label)
        guide_file = mask_file or (orientation_mask if picture.turned else None)
        guide = None
        try:
            guide = _opened(Path(guide_file), mask_label) if guide_file else None
        except OSError as error:
            if mask_file is None:
                raise
            lacks[mask_label] = str(error)
        upright, undecided = _orientation(picture, guide)
        image = picture.upright if upright else picture.stored
        pixels = check_image(image, f"{label} {named(image_file)}").contiguous()
        size = (pixels.shape[1], pixels.shape[2])
        grid = self.processing.grid(*size, self.run.max_num_patches)
        noticed: tuple[str, ...] = ("orientation",) if undecided else ()
        if which == "generated" and is_one_colour(pixels):
            noticed = (*noticed, "one_colour")
        if picture.one_of_several or (mask_file is not None and guide is not None and guide.one_of_several):
            noticed = (*noticed, "several_pictures")
        if guide is None or mask_file is None:
            return LoadedImage(pixels, None, None, grid[0] * grid[1], None, noticed)
        try:
            mask = _mask(guide.upright if upright else guide.stored, f"{mask_label} {named(mask_file)}", size)
        except (ValueError, TypeError) as error:
            lacks[mask_label] = str(error)
            return LoadedImage(pixels, None, None, grid[0] * grid[1], None, noticed)
        return LoadedImage(pixels, mask, *mask_measures(mask, grid, which), (*noticed, *noticed_in(mask)))


def noticed_in(mask: Tensor) -> tuple[str, ...]:
    """What is probably wrong with a mask, see :class:`LoadedImage`."""
    return ("inverted_mask",) if looks_inverted(mask) else ()


def _lacking_prompt(sample: Sample) -> dict[str, str]:
    if sample.prompt is None or "prompt" in sample.lacks:
        return {}
    if not sample.prompt.strip():
        file = named(sample.generated_image)
        return {"prompt": f"prompt is empty; give the text that generated_image {file} was made from"}
    for name, text in (("prompt", sample.prompt), ("subject", sample.subject or "")):
        if len(text) > LONGEST_PROMPT:
            reason = f"{name} {quoted(text)} has {len(text)} characters; give at most {LONGEST_PROMPT}"
            return {"prompt": reason}
    try:
        check_unicode("prompt", sample.prompt)
    except ValueError:  # its text quotes the whole prompt
        return {"prompt": f"prompt {quoted(sample.prompt)} contains half of a surrogate pair; repair its encoding"}
    return {}


def mask_measures(mask: Tensor, grid: Grid, which: str) -> tuple[float, int, int]:
    """``coverage``, ``patches`` and ``subject_patches`` of a :class:`LoadedImage`, "reference" or "generated"."""
    coverage_N = grid_coverage(mask, grid)
    is_reference = which == "reference"
    subject_N = coverage_N > FOREGROUND_THRESHOLD if is_reference else coverage_N >= FOREGROUND_THRESHOLD
    return int(mask.count_nonzero()) / mask.numel(), grid[0] * grid[1], int(subject_N.sum())


def _mask(mask: Image.Image, label: str, size: tuple[int, int]) -> Tensor:
    if "A" in mask.getbands():
        raise ValueError(
            f"{label} has an alpha channel, and may be in it or in the colours; save it without, white on the subject "
            "and black elsewhere"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a label map marks nothing: here it is an error
        try:
            return check_mask(mask, label, size)
        except (UserWarning, ValueError) as error:
            text = str(error)
            for code, remedy in _REMEDIES_IN_CODE.items():
                text = text.replace(code, remedy)
            raise ValueError(text) from None


_REMEDIES_IN_CODE = {
    ", such as torch.from_numpy(numpy.array(mask) == subject_id)": ", white on the subject",
    "give a boolean mask: mask == subject_id": "save a mask that is white on the subject",
}
"""Advice for tensors in error texts about masks, and for files."""


def open_image(file: Path, label: str) -> Image.Image:
    """Read and decode an image or mask file, turned as its EXIF orientation says, as viewers show it.

    Raises:
        OSError: if it cannot be read, is not an image, or has more than ``MAX_PIXELS``; the text holds label and file.
    """
    return _opened(file, label).upright


def undecoded(file: Path) -> Image.Image:
    """Open a picture without decoding its pixels: a file, or a place in a Parquet file.

    Raises:
        OSError: if it cannot be read, or is not of a format that is read.
    """
    content = stored_picture(str(file))
    if content is None and file.exists() and not file.is_file():
        raise OSError("it is not a regular file")  # reading a pipe would block
    return open_picture(file if content is None else io.BytesIO(content))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A decoded image as stored, and turned by its EXIF orientation: one object if it has none.

    Attributes:
        stored: as stored.
        upright: turned.
        one_of_several: whether its file holds further pictures.
    """

    stored: Image.Image
    upright: Image.Image
    one_of_several: bool

    @property
    def turned(self) -> bool:
        return self.upright is not self.stored


def _orientation(picture: _Opened, mask: _Opened | None) -> tuple[bool, bool]:
    """How an image and its mask are taken: turned by their EXIF orientations or as stored, and whether it is a guess.

    A program that writes a mask may have read the image as stored. If only one of them has an orientation, and they fit
    as stored, both are taken as stored. If they fit turned too (squares, half turns, mirror images), this may be wrong.
    """
    if mask is None or picture.turned == mask.turned:
        return True, False
    as_stored, as_turned = (
        same_aspect((marked.height, marked.width), (image.height, image.width))
        for image, marked in ((picture.stored, mask.stored), (picture.upright, mask.upright))
    )
    return not as_stored, as_turned and as_stored


def _opened(file: Path, label: str) -> _Opened:
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is lower, and a warning; ours is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with undecoded(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise OSError(f"{height} x {width} pixels are more than {MAX_PIXELS}; make it smaller")
                one_of_several = holds_several(image)
                return _Opened(*decode_picture(image), one_of_several)
    except MemoryError:
        raise
    except FileNotFoundError:
        hint = "; write its path with / instead of \\" if "\\" in str(file) and os.sep == "/" else ""
        raise FileNotFoundError(f"{label} {named(file)}: no such file{hint}") from None
    except Exception as error:  # decoders raise any exception for a damaged file
        raise OSError(f"{label} {named(file)}: cannot be read as an image ({_shortened(error)})") from error


def named(file: str | Path) -> str:
    """A file as error texts name it: of a name as long as a text, its end."""
    text = str(file)
    return text if len(text) <= LONGEST_QUOTE else f"...{text[3 - LONGEST_QUOTE :]}"


def _shortened(error: Exception) -> str:
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def loaded_batches(
    samples: Sequence[Sample], numbers: Sequence[int], processing: ImageProcessing, run: Run
) -> Iterator[list[Loaded]]:
    """Load the samples at some positions of a list, in batches, in order, ahead of their use.

    Returns:
        An iterator whose worker processes have started, so that they are forked before the parent has tokenizers and
        GPU contexts. A worker loads one batch ahead. A sample that is too large for a batch is loaded when it is asked
        for. So at most ``workers + 1`` batches are in memory.
    """
    loader = Loader(samples, processing, run)
    workers = min(run.workers, math.ceil(len(numbers) / run.batch_size))
    ahead = DataLoader(
        loader,
        sampler=loader.batches(numbers),  # headers of a batch's pictures are read when a worker is free for it
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
        worker_init_fn=functools.partial(_follow_parent, os.getpid()),
    )
    return map(functools.partial(_loaded, loader), iter(ahead))


def _as_it_is(batch: list[Loaded] | _Batch) -> list[Loaded] | _Batch:
    return batch


def _loaded(loader: Loader, batch: list[Loaded] | _Batch) -> list[Loaded]:
    return loader.load_all(batch.numbers) if isinstance(batch, _Batch) else batch


def _follow_parent(parent: int, worker: int) -> None:
    # A worker that ends waits until its last batch is read: forever if its parent is dead, and long if both are
    # interrupted. So it leaves Ctrl-C to its parent, and ends when the parent is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
