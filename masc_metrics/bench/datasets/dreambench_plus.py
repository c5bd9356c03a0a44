"""DreamBench++ on disk: its images, prompts and masks as samples, and a list of missing files.

::

    ROOT/images/<category path>/NN.jpg            captions/<category path>/NN.txt
    ROOT/samples/<method folder>/tgt_image/<collection>/<prompt>_<seed>.jpg
    ROOT/samples/<method folder>/src_image/...jpg and text/...txt, named likewise
    ROOT/masks/refs/<category path>/NN.png        masks/samples/<method folder>/<collection>/<prompt>_<seed>.png

A category path is ``live_subject/animal``, ``live_subject/human``, ``object`` or ``style``; a collection is named by
its category path, NN and the subject: ``live_subject_animal_00_kitten``. A caption file's first line is the subject,
the others are prompts 0..8. Images may be .jpg, .jpeg, .png or .webp, in this order of preference; masks are .png.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from masc_metrics.arguments import check_choice
from masc_metrics.bench.agreement.names import method_name
from masc_metrics.bench.sample import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""In order of preference, if there are images with several of them."""

CATEGORY_PATHS = {
    "live_subject_animal": "live_subject/animal",
    "live_subject_human": "live_subject/human",
    "object": "object",
    "style": "style",
}
"""Folder in ``images``, ``captions`` and the reference masks, by prefix of the collection's name."""

_COLLECTION_NAME = re.compile(rf"({'|'.join(CATEGORY_PATHS)})_(\d+)(?:_.*)?", re.DOTALL)

MIN_COVERAGE = 0.05
"""The paper's filter: a pair is skipped if either mask has at most 5 % non-zero pixels at native size."""

PROMPTS = 9
"""Number of prompts of a collection without a caption file."""

STYLE_PROMPTS = range(4, 7)
"""Prompts that ask for a style; 0..3 are photorealistic, 7 and 8 imaginative."""

PfWithout = Literal["style-collections", "style-prompts", "both", "nothing"]
PF_WITHOUT: tuple[PfWithout, ...] = get_args(PfWithout)

_IMAGE = re.compile(r"(0|[1-9]\d*)_(\d+)")
_SETTINGS = re.compile(r"_(gs|scale|step|seed)(\d+(?:_\d+)*)")

_LAYOUT = (
    "lay DreamBench++ out as images/{live_subject/animal,live_subject/human,object,style}/NN.jpg and captions/ "
    "likewise with NN.txt (its download), samples/<method folder>/{tgt_image,text}/<collection>/<prompt>_<seed>"
    ".{jpg,txt} (what its generation script writes), masks/refs/<category path>/NN.png and masks/samples/"
    "<method folder>/<collection>/<prompt>_<seed>.png. The download does not include masks: segment each image by the "
    "noun in the first line of its caption file, as a PNG of the image's size with 255 on the subject and 0 elsewhere"
)


@dataclass(frozen=True, slots=True)
class DreamBenchPlus:
    """The samples of a tree, and what it lacks.

    Attributes:
        samples: ordered by method, collection, prompt and seed. A sample with a generated image that lacks something
            else has an error that names it.
        missing: missing files with their purposes, sorted. Generated images are missing if a method has none for a
            collection or prompt of ``images`` or ``captions``.
    """

    samples: tuple[Sample, ...]
    missing: tuple[tuple[Path, str], ...]


def read_dreambench_plus(
    root: Path,
    methods: Sequence[str] = (),
    masks: Path | None = None,
    pf_without: PfWithout = "style-collections",
) -> DreamBenchPlus:
    """Read a tree with the layout in the module's docstring.

    A sample has the short method name; its collection as concept; animal, human, object or style as category, by the
    collection's prefix; ``<collection>-<prompt>`` as key; and ``<method>/<collection>/<prompt>_<seed>`` as id. The
    prompt is read from ``text``, else from the caption file. If ``images`` lacks a reference, its copy in ``src_image``
    is used, which the generation script wrote as a second JPEG.

    Args:
        root: folder with ``images``, ``captions`` and ``samples``.
        methods: short names or folder names; empty for all folders of ``samples``.
        masks: folder with ``refs`` and ``samples``; None for ``root / "masks"``. A method's masks may be in a folder
            with the other spelling of its name, provided that no run setting in the two names differs.
        pf_without: samples without prompt following. They have no prompt, but keep their generated mask, whose coverage
            is filtered. "style-collections" is the paper's: collections whose subject is a style. "style-prompts" are
            prompts 4..6 of every collection, "both" are both, "nothing" is none.

    Raises:
        FileNotFoundError: if there is no ``images`` or ``samples``.
        OSError: if a folder cannot be read.
        ValueError: if a method has no folder or several, ``pf_without`` is unknown, or there are no generated images.

    Source: DreamBench++, arXiv 2406.16855 (github.com/yuangpeng/dreambench_plus); MaSC, arXiv 2605.22469.
    """
    check_choice("pf_without", pf_without, PF_WITHOUT)
    for folder in (root / "samples", root / "images"):
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} does not exist; {_LAYOUT}")
    reader = _Reader(root, root / "masks" if masks is None else masks, pf_without)
    folders = _method_folders(root / "samples", methods, reader.tree)
    samples = [sample for folder, method in folders.items() for sample in reader.samples(method, folder)]
    reader.add_missing_generated(list(folders))
    if not samples:
        raise ValueError(f"{root / 'samples'} holds no generated images; {_LAYOUT}")
    numbered = (replace(sample, line=position) for position, sample in enumerate(samples, start=1))
    return DreamBenchPlus(tuple(numbered), reader.tree.missing())


def _method_folders(samples: Path, methods: Sequence[str], tree: _Tree) -> dict[str, str]:
    """Methods by folder, in the order asked for."""
    folders = tree.folders(samples)
    by_method: dict[str, list[str]] = {}
    for folder in folders:
        by_method.setdefault(method_name(folder), []).append(folder)
    chosen: dict[str, str] = {}
    for asked in methods or by_method:
        method = method_name(asked)
        candidates = [asked] if asked in folders else by_method.get(method, [])
        if not candidates:
            known = ", ".join(f"{name} ({', '.join(names)})" for name, names in by_method.items()) or "none"
            raise ValueError(f"method is {asked!r}; the methods in {samples} are {known}")
        chosen |= dict.fromkeys(candidates, method)
        same = [folder for folder, other in chosen.items() if other == method]
        if len(same) > 1:
            raise ValueError(
                f"{samples / same[0]} and {samples / same[1]} are both the method {method}; give one of the folders as "
                "the method, or rename one"
            )
    return chosen


def _may_be_one_run(folder: str, other: str) -> bool:
    """Whether two folder names are of one method, and no setting in them differs."""
    settings, others = (dict(_SETTINGS.findall(name)) for name in (folder, other))
    shared = settings.keys() & others.keys()
    return method_name(folder) == method_name(other) and all(settings[name] == others[name] for name in shared)


@dataclass(frozen=True, slots=True)
class _Collection:
    """One subject of the benchmark.

    Attributes:
        prefix: a key of ``CATEGORY_PATHS``. The rest of the name does not count: a subject's name may hold "style".
        number: number in its file names, such as "07".
    """

    prefix: str
    number: str

    @classmethod
    def from_folder(cls, folder: str) -> _Collection | None:
        """Parse a folder name such as ``object_07_mug``; None for any other name."""
        found = _COLLECTION_NAME.fullmatch(folder)
        return cls(found[1], found[2]) if found else None

    @property
    def path(self) -> str:
        """Folder of its image below ``images``."""
        return CATEGORY_PATHS[self.prefix]

    @property
    def category(self) -> str:
        """One of animal, human, object, style."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Listing:
    files: dict[str, Path] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


class _Tree:
    """Finds files, and remembers those that are missing."""

    def __init__(self) -> None:
        self._listings: dict[Path, _Listing] = {}
        self._lines: dict[Path, list[str]] = {}
        self._missing: set[tuple[Path, str]] = set()

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted, without hidden ones; empty if it does not exist."""
        return self._listing(folder).folders

    def stems(self, folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
        """Names, without suffix, of the files in a folder with one of the suffixes; distinct and sorted."""
        names = (os.path.splitext(name) for name in self._listing(folder).files)
        return sorted({stem for stem, suffix in names if suffix in suffixes})

    def file(self, wanted: Path) -> Path | None:
        """The file if it exists; its suffix may be in capitals."""
        return self._listing(wanted.parent).files.get(wanted.name)

    def image(self, wanted: Path) -> Path | None:
        """The file if it exists with any of the suffixes of ``IMAGE_SUFFIXES``."""
        found = (self.file(wanted.with_suffix(suffix)) for suffix in IMAGE_SUFFIXES)
        return next((file for file in found if file), None)

    def lines(self, wanted: Path) -> list[str]:
        """Lines of a text file; empty if it does not exist, is empty, or is not UTF-8."""
        if wanted not in self._lines:
            file = self.file(wanted)
            try:
                text = file.read_text(encoding="utf-8-sig") if file else ""
            except UnicodeDecodeError:
                text = ""
            self._lines[wanted] = [line.strip() for line in text.rstrip().splitlines()]
        return self._lines[wanted]

    def add_missing(self, wanted: Path, purpose: str) -> None:
        """Remember that a file is missing, and what it is for."""
        self._missing.add((wanted, purpose))

    def missing(self) -> tuple[tuple[Path, str], ...]:
        """Missing files with their purposes, sorted."""
        return tuple(sorted(self._missing))

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = listing = _Listing()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    listing.folders.append(entry.name)
                else:
                    stem, suffix = os.path.splitext(entry.name)
                    listing.files[stem + suffix.lower()] = folder / entry.name
        return self._listings[folder]


class _Reader:
    """Turns one tree into samples."""

    def __init__(self, root: Path, masks: Path, pf_without: PfWithout) -> None:
        self.tree = _Tree()
        self._root, self._masks, self._pf_without = root, masks, pf_without

    def samples(self, method: str, folder: str) -> Iterator[Sample]:
        masks = self._mask_folder(folder)
        generated = self._generated(folder)
        for name in self.tree.folders(generated):
            collection = _Collection.from_folder(name)
            for prompt, seed, image in self._images(generated / name):
                sample = Sample(
                    line=0,
                    sample_id=f"{method}/{name}/{prompt}_{seed}",
                    generated_image=str(image),
                    generated_mask=None,
                    reference_image="",
                    reference_mask=None,
                    prompt=None,
                    subject=None,
                    method=method,
                    concept=name,
                    key=f"{name}-{prompt}",
                    error=f"collection {name!r} does not begin with a category and a number; the categories are "
                    f"{', '.join(CATEGORY_PATHS)}",
                )
                yield self._completed(sample, collection, folder, prompt, masks) if collection else sample

    def _completed(self, sample: Sample, collection: _Collection, folder: str, prompt: int, masks: Path) -> Sample:
        tree, run = self.tree, self._root / "samples" / folder
        name = f"{sample.concept}/{Path(sample.generated_image).stem}"
        lacks: list[str] = []

        def needed(file: Path | None, wanted: Path, purpose: str) -> str | None:
            if file:
                return str(file)
            tree.add_missing(wanted, purpose)
            lacks.append(f"{purpose} {wanted}")
            return None

        image = self._root / "images" / collection.path / f"{collection.number}.jpg"
        reference = tree.image(image)
        if not reference and (reference := tree.image(run / "src_image" / f"{name}.jpg")):
            tree.add_missing(image, "reference image (its copy in src_image is used)")
        reference_mask = self._masks / "refs" / collection.path / f"{collection.number}.png"
        generated_mask = masks / f"{name}.png"
        text, caption = run / "text" / f"{name}.txt", self._caption(collection)
        subject, *prompts = tree.lines(caption) or [""]
        sample = replace(
            sample,
            generated_mask=needed(tree.file(generated_mask), generated_mask, "generated mask"),
            reference_image=needed(reference, image, "reference image") or "",
            reference_mask=needed(tree.file(reference_mask), reference_mask, "reference mask"),
        )
        prompt_text = None
        if not self._without_pf(collection, prompt):
            prompt_text = " ".join(tree.lines(text)) or "".join(prompts[prompt : prompt + 1])
            if not prompt_text:
                tree.add_missing(text if prompts else caption, "prompt (UTF-8 text)")
                lacks.append(f"prompt in {text} or line {prompt + 2} of {caption}")
            if not subject:
                tree.add_missing(caption, "subject (UTF-8 text, first line)")
                lacks.append(f"subject in line 1 of {caption}")
        return replace(
            sample,
            prompt=prompt_text,
            subject=subject or None,
            category=collection.category,
            error=f"missing {' and '.join(lacks)}" if lacks else "",
        )

    def add_missing_generated(self, folders: Sequence[str]) -> None:
        """Remember the collections and prompts for which a method has no image."""
        names = sorted({name for folder in folders for name in self.tree.folders(self._generated(folder))})
        known = {collection: name for name in names if (collection := _Collection.from_folder(name))}
        for prefix, path in CATEGORY_PATHS.items():
            captions = self._root / "captions" / path
            numbers = {*self.tree.stems(self._root / "images" / path), *self.tree.stems(captions, (".txt",))}
            for number in sorted(filter(str.isdigit, numbers)):
                noun = (self.tree.lines(captions / f"{number}.txt") or ["*"])[0]
                known.setdefault(_Collection(prefix, number), f"{prefix}_{number}_{noun.lower().replace(' ', '_')}")
        for folder in folders:
            generated = self._generated(folder)
            own_names = {_Collection.from_folder(name): name for name in self.tree.folders(generated)}
            for collection, name in known.items():
                images = generated / own_names.get(collection, name)
                prompts = range(len(self.tree.lines(self._caption(collection))[1:]) or PROMPTS)
                for prompt in sorted(set(prompts) - {prompt for prompt, _, _ in self._images(images)}):
                    self.tree.add_missing(images / f"{prompt}_*.jpg", "generated image")

    def _images(self, folder: Path) -> list[tuple[int, str, Path]]:
        """Prompt, seed and file of the generated images in a folder, in numeric order; other images are ignored."""
        found = filter(None, map(_IMAGE.fullmatch, self.tree.stems(folder)))
        images = ((int(match[1]), match[2], self.tree.image(folder / f"{match[0]}.jpg")) for match in found)
        return sorted(
            ((prompt, seed, file) for prompt, seed, file in images if file), key=lambda item: (item[0], int(item[1]))
        )

    def _generated(self, folder: str) -> Path:
        return self._root / "samples" / folder / "tgt_image"

    def _caption(self, collection: _Collection) -> Path:
        return self._root / "captions" / collection.path / f"{collection.number}.txt"

    def _without_pf(self, collection: _Collection, prompt: int) -> bool:
        is_style = collection.category == "style" and self._pf_without in ("style-collections", "both")
        return is_style or (prompt in STYLE_PROMPTS and self._pf_without in ("style-prompts", "both"))

    def _mask_folder(self, folder: str) -> Path:
        masks = self._masks / "samples"
        names = self.tree.folders(masks)
        same = [folder] if folder in names else [name for name in names if _may_be_one_run(name, folder)]
        if len(same) > 1:
            raise ValueError(
                f"{masks / same[0]} and {masks / same[1]} may both be the masks of {folder}; rename one of them to it"
            )
        return masks / (same[0] if same else folder)
