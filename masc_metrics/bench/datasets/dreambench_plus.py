"""DreamBench++ on disk: its images, prompts and masks as samples, and a list of missing files.

::

    ROOT/images/<category path>/NN.jpg            captions/<category path>/NN.txt
    ROOT/samples/<method folder>/tgt_image/<collection>/<prompt>_<seed>.jpg
    ROOT/samples/<method folder>/src_image/...jpg and text/...txt, named likewise
    ROOT/masks/refs/<category path>/NN.png        masks/samples/<method folder>/<collection>/<prompt>_<seed>.png

A category path is ``live_subject/animal``, ``live_subject/human``, ``object`` or ``style``; a collection is named by
its category path, NN and the subject: ``live_subject_animal_00_kitten``. A caption file's first line is the subject,
the others are prompts 0..8. Images may be .jpg, .jpeg, .png, .webp or another
format of :data:`masc_metrics.images.PICTURE_SUFFIXES`, in this order of preference; masks are .png.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from masc_metrics.arguments import check_choice
from masc_metrics.bench.agreement.names import method_name
from masc_metrics.bench.commands import PF_WITHOUT, PfWithout
from masc_metrics.bench.run import MADE_MASKS, MASK_SOURCES
from masc_metrics.bench.sample import Sample
from masc_metrics.images import PICTURE_SUFFIXES

IMAGE_SUFFIXES = tuple(
    dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", *itertools.chain.from_iterable(PICTURE_SUFFIXES.values())))
)
"""In order of preference, if there are images with several of them."""

CATEGORY_PATHS = {
    "live_subject_animal": "live_subject/animal",
    "live_subject_human": "live_subject/human",
    "object": "object",
    "style": "style",
}
"""Folder in ``images``, ``captions`` and the reference masks, by prefix of the collection's name."""

_COLLECTION_NAME = re.compile(rf"({'|'.join(CATEGORY_PATHS)})_(\d+)(?:_(.*))?", re.DOTALL)

PROMPTS = 9
"""Number of prompts of a collection without a caption file."""

STYLE_PROMPTS = range(4, 7)
"""Prompts that ask for a style; 0..3 are photorealistic, 7 and 8 imaginative."""

_IMAGE = re.compile(r"(0|[1-9]\d*)_(\d+)")
_SETTINGS = re.compile(r"_(gs|scale|step|seed)(\d+(?:_\d+)*)")

_LAYOUT = (
    "lay DreamBench++ out as images/{live_subject/animal,live_subject/human,object,style}/NN.jpg and captions/ "
    "likewise with NN.txt (its download), samples/<method folder>/{tgt_image,text}/<collection>/<prompt>_<seed>"
    ".{jpg,txt} (what its generation script writes), masks/refs/<category path>/NN.png and masks/samples/"
    "<method folder>/<collection>/<prompt>_<seed>.png. The download does not include masks: segment a reference by the "
    "noun in the first line of its caption file and a generated image by its folder's keyword, as PNGs of the images' "
    "sizes with 255 on the subject and 0 elsewhere"
)


@dataclass(frozen=True, slots=True)
class DreamBenchPlus:
    """The samples of a tree, and what it lacks.

    Attributes:
        samples: ordered by method, collection, prompt and seed. A sample with a generated image that lacks something
            else has an error that names it.
        missing: missing files with their purposes, sorted. Generated images are missing if a method has none for a
            collection or prompt of ``images`` or ``captions``.
        notes: what was read from another place than usual, without loss.
    """

    samples: tuple[Sample, ...]
    missing: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]


def read_dreambench_plus(
    root: Path,
    methods: Sequence[str] = (),
    masks: Path | None = None,
    pf_without: PfWithout = "style-collections",
    *,
    mask_source: str = MASK_SOURCES[0],
    prompt_following: bool = True,
) -> DreamBenchPlus:
    """Read a tree with the layout in the module's docstring.

    A sample has the short method name; its collection as concept; animal, human, object or style as category, by the
    collection's prefix; ``<collection>-<prompt>`` as key; and ``<method>/<collection>/<prompt>_<seed>`` as id. The
    prompt is read from ``text``, else from the caption file. The subject is the caption file's, else the keyword of the
    collection's name. A sample without a prompt or a subject has no prompt following. If ``images`` lacks a reference,
    its copy in ``src_image`` is used, which the generation script wrote as a second JPEG.

    Args:
        root: folder with ``images``, ``captions`` and ``samples``.
        methods: short names or folder names; empty for all folders of ``samples``.
        masks: folder with ``refs`` and ``samples``; None for ``root / "masks"``. A method's masks may be in a folder
            with the other spelling of its name, provided that no run setting in the two names differs.
        pf_without: samples without prompt following. They have no prompt, but keep their generated mask, whose coverage
            is filtered. "style-collections" is the paper's: collections whose subject is a style. "style-prompts" are
            prompts 4..6 of every collection, "both" are both, "nothing" is none.
        mask_source: one of :data:`masc_metrics.bench.run.MASK_SOURCES`. With "transfer" masks of generated images may
            be missing, with a segmenter all masks. As in the paper, it marks the caption's first line in references,
            and the folder's keyword in lower case, with its underscores, in generated images; without one, the other.
        prompt_following: whether prompts and subjects are needed at all.

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
    reader = _Reader(root, root / "masks" if masks is None else masks, pf_without, mask_source, prompt_following)
    folders = _method_folders(root / "samples", methods, reader.tree)
    samples = [sample for folder, method in folders.items() for sample in reader.samples(method, folder)]
    reader.add_missing_generated(list(folders))
    if not samples:
        raise ValueError(f"{root / 'samples'} holds no generated images; {_LAYOUT}")
    numbered = (replace(sample, line=position) for position, sample in enumerate(samples, start=1))
    return DreamBenchPlus(tuple(numbered), tuple(sorted(reader.tree.missing)), tuple(reader.notes()))


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


class _Collection(NamedTuple):
    """One subject of the benchmark: its category path, and the number in its file names, such as "07"."""

    path: str
    number: str

    @classmethod
    def from_folder(cls, folder: str) -> _Collection | None:
        """Parse a folder name such as ``object_07_mug``, whose noun may hold "style"; None for any other name."""
        found = _COLLECTION_NAME.fullmatch(folder)
        return cls(CATEGORY_PATHS[found[1]], found[2]) if found else None

    @property
    def category(self) -> str:
        """One of animal, human, object, style."""
        return self.path.rpartition("/")[2]

    @staticmethod
    def keyword(folder: str) -> str:
        """The subject in a folder name: "piggy_bank" for ``object_08_piggy_bank``; empty if there is none."""
        found = _COLLECTION_NAME.fullmatch(folder)
        return found[3] or "" if found else ""

    def file(self, folder: Path, suffix: str) -> Path:
        """Its file below ``images``, ``captions`` or the reference masks."""
        return folder / self.path / f"{self.number}{suffix}"


class _Tree:
    """Finds files, and remembers those that are missing, with their purposes."""

    def __init__(self) -> None:
        self.missing: set[tuple[Path, str]] = set()
        self.lines = cache(self._lines)
        self._listing = cache(_listing)

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted, without hidden ones; empty if it does not exist."""
        return self._listing(folder)[1]

    def stems(self, folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
        """Names, without suffix, of the files in a folder with one of the suffixes; distinct and sorted."""
        names = (os.path.splitext(name) for name in self._listing(folder)[0])
        return sorted({stem for stem, suffix in names if suffix in suffixes})

    def file(self, wanted: Path) -> Path | None:
        """The file if it exists; its suffix may be in capitals."""
        return self._listing(wanted.parent)[0].get(wanted.name)

    def image(self, wanted: Path) -> Path | None:
        """The file if it exists with any of the suffixes of ``IMAGE_SUFFIXES``."""
        return next(filter(None, (self.file(wanted.with_suffix(suffix)) for suffix in IMAGE_SUFFIXES)), None)

    def _lines(self, wanted: Path) -> list[str]:
        """Lines of a text file; empty if it does not exist, is empty, or is not UTF-8."""
        file = self.file(wanted)
        try:
            text = file.read_text(encoding="utf-8-sig") if file else ""
        except UnicodeDecodeError:
            text = ""
        return [line.strip() for line in text.rstrip().splitlines()]


def _listing(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by name with a lower-case suffix, and names of folders; sorted, without hidden ones."""
    files: dict[str, Path] = {}
    folders: list[str] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            folders.append(entry.name)
        elif not entry.name.startswith("."):
            stem, suffix = os.path.splitext(entry.name)
            files[stem + suffix.lower()] = folder / entry.name
    return files, folders


class _Reader:
    """Turns one tree into samples."""

    def __init__(self, root: Path, masks: Path, pf_without: PfWithout, mask_source: str, with_pf: bool) -> None:
        self.tree = _Tree()
        self._made, self._with_pf = MADE_MASKS[mask_source], with_pf
        self._root, self._masks, self._pf_without = root, masks, pf_without
        self._without_text: list[Path] = []

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

        def needed(wanted: Path, purpose: str, file: Path | None = None) -> str | None:
            if file := file or tree.file(wanted):
                return str(file)
            tree.missing.add((wanted, purpose))
            lacks.append(f"{purpose} {wanted}")
            return None

        def mask(which: str, wanted: Path) -> str | None:
            made = f"{which}_mask" in self._made and not tree.file(wanted)
            return None if made else needed(wanted, f"{which} mask")

        generated_mask = mask("generated", masks / f"{name}.png")
        image = collection.file(self._root / "images", ".jpg")
        reference = tree.image(image)
        if not reference and (reference := tree.image(run / "src_image" / f"{name}.jpg")):
            tree.missing.add((image, "reference image (its copy in src_image is used)"))
        reference_image = needed(image, "reference image", reference)
        reference_mask = mask("reference", collection.file(self._masks / "refs", ".png"))
        text, caption = run / "text" / f"{name}.txt", self._caption(collection)
        noun, *prompts = tree.lines(caption) or [""]
        keyword = _Collection.keyword(sample.concept)
        subject = noun or keyword.replace("_", " ").strip()
        prompt_text = ""
        if not self._without_pf(collection, prompt):
            written, captioned = " ".join(tree.lines(text)), "".join(prompts[prompt : prompt + 1])
            prompt_text = written or captioned
            if not prompt_text:
                tree.missing.add((text if prompts else caption, "prompt (UTF-8 text; without it there is no PF)"))
            elif not written:
                self._without_text.append(text)
        if not noun and not (self._without_pf(collection, prompt) and reference_mask):
            instead = "the folder's keyword is used" if subject else "without it there is no PF"
            tree.missing.add((caption, f"subject (UTF-8 text, first line; {instead})"))
        return replace(
            sample,
            generated_mask=generated_mask,
            reference_image=reference_image or "",
            reference_mask=reference_mask,
            prompt=(prompt_text if subject else "") or None,
            subject=subject or None,
            category=collection.category,
            reference_noun=subject,
            generated_noun=keyword.strip("_ ").lower() or subject,
            error=f"missing {' and '.join(lacks)}" if lacks else "",
        )

    def notes(self) -> Iterator[str]:
        if self._without_text:
            yield (
                f"the prompts of {len(self._without_text)} generated images are those of the caption files, because "
                f"text lacks them; the first is {self._without_text[0]}"
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
                known.setdefault(_Collection(path, number), f"{prefix}_{number}_{noun.lower().replace(' ', '_')}")
        for folder in folders:
            generated = self._generated(folder)
            own_names = {_Collection.from_folder(name): name for name in self.tree.folders(generated)}
            for collection, name in known.items():
                images = generated / own_names.get(collection, name)
                prompts = range(len(self.tree.lines(self._caption(collection))[1:]) or PROMPTS)
                lacking = set(prompts) - {prompt for prompt, _, _ in self._images(images)}
                self.tree.missing |= {(images / f"{prompt}_*.jpg", "generated image") for prompt in lacking}

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
        return collection.file(self._root / "captions", ".txt")

    def _without_pf(self, collection: _Collection, prompt: int) -> bool:
        is_style = collection.category == "style" and self._pf_without in ("style-collections", "both")
        return (
            not self._with_pf or is_style or (prompt in STYLE_PROMPTS and self._pf_without in ("style-prompts", "both"))
        )

    def _mask_folder(self, folder: str) -> Path:
        masks = self._masks / "samples"
        names = self.tree.folders(masks)
        same = [folder] if folder in names else [name for name in names if _may_be_one_run(name, folder)]
        if len(same) > 1:
            raise ValueError(
                f"{masks / same[0]} and {masks / same[1]} may both be the masks of {folder}; rename one of them to it"
            )
        return masks / (same[0] if same else folder)
