"""DreamBench++ on disk: its pictures, prompts and masks as samples, and a list of what is missing.

::

    ROOT/images/<category path>/NN.jpg            captions/<category path>/NN.txt
    ROOT/samples/<method folder>/tgt_image/<collection>/<prompt>_<seed>.jpg
    ROOT/samples/<method folder>/src_image/...jpg and text/...txt, named likewise
    ROOT/masks/refs/<category path>/NN.png        masks/samples/<method folder>/<collection>/<prompt>_<seed>.png

A category path is ``live_subject/animal``, ``live_subject/human``, ``object`` or ``style``; a collection is named by
its category path, NN and the subject: ``live_subject_animal_00_kitten``. A caption file's first line is the subject,
the others are the prompts 0..8. Pictures may be .jpg, .jpeg, .png or .webp, of which the first counts; masks are .png.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from masc_metrics.bench.agreement.names import method_name
from masc_metrics.bench.datasets.dreambench_plus_tree import (
    CATEGORY_PATHS,
    COPIED,
    GENERATED,
    GENERATED_MASK,
    PROMPT,
    REFERENCE,
    REFERENCE_MASK,
    SUBJECT,
    Collection,
    Purpose,
    Tree,
)
from masc_metrics.bench.sample import Sample

METHODS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "textual_inversion_sd": ("textual_inversion_sd",),
        "dreambooth_sd": ("dreambooth_sd",),
        "dreambooth_lora_sdxl": ("dreambooth_lora_sdxl",),
        "blip_diffusion": ("blip_diffusion",),
        "emu2": ("emu2",),
        "ip_adapter_plus_vit_h_sdxl": (
            "ip_adapter_plus_vit_h_sdxl",
            "ip_adapter_plus_vit_huge_sdxl",
            "ip_adapter_plus_sdxl_vit_huge",
        ),
        "ip_adapter_vit_g_sdxl": ("ip_adapter_vit_g_sdxl", "ip_adapter_vit_giant_sdxl", "ip_adapter_sdxl_vit_giant"),
    }
)
"""The benchmark's own methods: short name -> how its folder's name begins; run settings follow, see
:func:`masc_metrics.bench.agreement.names.method_name`. Any other folder is a method too."""

MIN_COVERAGE = 0.05
"""The paper's filter: a pair is left out when either mask has at most 5 % non-zero pixels at native size."""

PROMPTS = 9
"""Of a collection without caption file."""

STYLE_PROMPTS = range(4, 7)
"""The prompts that ask for a style; 0..3 are photorealistic, 7 and 8 imaginative."""

PfWithout = Literal["style-collections", "style-prompts", "both", "nothing"]
PF_WITHOUT: tuple[PfWithout, ...] = get_args(PfWithout)

_PICTURE = re.compile(r"(0|[1-9]\d*)_(\d+)")
_SETTINGS = re.compile(r"_(gs|scale|step|seed)(\d+(?:_\d+)*)")

_LAYOUT = (
    "lay DreamBench++ out as images/{live_subject/animal,live_subject/human,object,style}/NN.jpg and captions/ "
    "likewise with NN.txt (its download), samples/<method folder>/{tgt_image,text}/<collection>/<prompt>_<seed>"
    ".{jpg,txt} (what its generation script writes), masks/refs/<category path>/NN.png and masks/samples/"
    "<method folder>/<collection>/<prompt>_<seed>.png. Masks are no part of the download: segment each picture by the "
    "noun in the first line of its caption file, as PNG of the picture's size with 255 on the subject and 0 elsewhere"
)


@dataclass(frozen=True, slots=True)
class DreamBenchPlus:
    """What is to be scored, and what is not there.

    Attributes:
        samples: by method, collection, prompt and seed. A sample whose generated image is there but something else is
            not has an error that names it.
        missing: a line a missing thing, sorted: its path and what it is for; a folder that is missing or empty is one
            line, and ends in a slash. Generated images are missing where a collection or prompt of ``images`` or
            ``captions`` has none.
    """

    samples: tuple[Sample, ...]
    missing: tuple[str, ...]


def read_dreambench_plus(
    root: Path,
    methods: Sequence[str] = (),
    masks: Path | None = None,
    pf_without: PfWithout = "style-collections",
) -> DreamBenchPlus:
    """Read the benchmark's tree as the module's docstring draws it.

    Samples have the short method name, the collection as concept, animal, human, object or style as category, by the
    collection's prefix, ``<collection>-<prompt>`` as key and ``<method>/<collection>/<prompt>_<seed>`` as id. The
    prompt is what ``text`` says, else what the caption file does. A reference that ``images`` lacks is the copy in
    ``src_image``, which the generation script wrote as JPEG once more.

    Args:
        root: the folder with ``images``, ``captions`` and ``samples``.
        methods: short names or folder names; none are all folders of ``samples``.
        masks: the folder with ``refs`` and ``samples``; None is ``root / "masks"``. A method's masks may lie under the
            other spelling of its folder, as long as no run setting in the two names contradicts.
        pf_without: what prompt following leaves out. Such samples have no prompt, but keep their generated mask, since
            coverage is still asked of it. "style-collections" is the paper's: collections whose subject is a style.
            "style-prompts" are the prompts 4..6 of any collection, "both" are both, "nothing" leaves none out.

    Raises:
        FileNotFoundError: if there is no ``images`` or ``samples``.
        OSError: if a folder cannot be read.
        ValueError: if a method is in no folder or in several, if ``pf_without`` is none of these, or if there is no
            generated image at all.

    Source: DreamBench++, arXiv 2406.16855 (github.com/yuangpeng/dreambench_plus); MaSC, arXiv 2605.22469.
    """
    if pf_without not in PF_WITHOUT:
        raise ValueError(f"pf_without is {pf_without!r}; give one of {', '.join(PF_WITHOUT)}")
    for folder in (root / "samples", root / "images"):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {folder}; {_LAYOUT}")
    reader = _Reader(root, root / "masks" if masks is None else masks, pf_without)
    chosen = _chosen(root / "samples", methods, reader.tree)
    samples = [sample for folder, method in chosen.items() for sample in reader.samples_of(method, folder)]
    reader.miss_generated(list(chosen))
    missing = reader.tree.missing()
    if not samples:
        raise ValueError(f"{root / 'samples'} holds no generated images; {_LAYOUT}")
    numbered = (replace(sample, line=number) for number, sample in enumerate(samples, start=1))
    return DreamBenchPlus(tuple(numbered), missing)


def _chosen(samples: Path, methods: Sequence[str], tree: Tree) -> dict[str, str]:
    """Method by folder, in the order asked for."""
    folders = tree.folders(samples)
    by_method: dict[str, list[str]] = {}
    for folder in folders:
        by_method.setdefault(method_name(folder), []).append(folder)
    chosen: dict[str, str] = {}
    for asked in methods or by_method:
        method = method_name(asked)
        meant = [asked] if asked in folders else by_method.get(method, [])
        if not meant:
            beginnings = " or ".join(METHODS.get(method, (method,)))
            there = ", ".join(f"{name} ({', '.join(names)})" for name, names in by_method.items()) or "none at all"
            raise ValueError(f"method {asked!r}: no folder of {samples} begins with {beginnings}; there are {there}")
        chosen |= dict.fromkeys(meant, method)
        same = [folder for folder, of in chosen.items() if of == method]
        if len(same) > 1:
            raise ValueError(
                f"{samples / same[0]} and {samples / same[1]} are both the method {method}; name one of the folders as "
                "the method, or rename one"
            )
    return chosen


def _may_be_one_run(one: str, other: str) -> bool:
    """Whether two folder names mean one method and no setting in them contradicts."""
    settings, others = (dict(_SETTINGS.findall(name)) for name in (one, other))
    shared = settings.keys() & others.keys()
    return method_name(one) == method_name(other) and all(settings[name] == others[name] for name in shared)


class _Reader:
    """Turns one tree into samples."""

    def __init__(self, root: Path, masks: Path, pf_without: PfWithout) -> None:
        self.tree = Tree(masks)
        self._root, self._masks, self._pf_without = root, masks, pf_without

    def samples_of(self, method: str, folder: str) -> Iterator[Sample]:
        masks = self._masks_of(folder)
        generated = self._generated(folder)
        for name in self.tree.folders(generated):
            collection = Collection.named(name)
            for prompt, seed, picture in self._pictures(generated / name):
                sample = Sample(
                    line=0,
                    sample_id=f"{method}/{name}/{prompt}_{seed}",
                    generated_image=str(picture),
                    generated_mask=None,
                    reference_image="",
                    reference_mask=None,
                    prompt=None,
                    subject=None,
                    method=method,
                    concept=name,
                    key=f"{name}-{prompt}",
                    error=f"there is no category that collection {name!r} begins with, followed by its number; the "
                    f"categories are {', '.join(CATEGORY_PATHS)}",
                )
                yield self._completed(sample, collection, folder, prompt, masks) if collection else sample

    def _completed(self, sample: Sample, collection: Collection, folder: str, prompt: int, masks: Path) -> Sample:
        tree, run = self.tree, self._root / "samples" / folder
        name = f"{sample.concept}/{Path(sample.generated_image).stem}"
        lacks: list[str] = []

        def needed(file: Path | None, wanted: Path, purpose: Purpose) -> str | None:
            if file:
                return str(file)
            tree.miss(wanted, purpose)
            lacks.append(f"{purpose.one} {wanted}")
            return None

        image = self._root / "images" / collection.path / f"{collection.number}.jpg"
        reference = tree.picture(image)
        if not reference and (reference := tree.picture(run / "src_image" / f"{name}.jpg")):
            tree.miss(image, COPIED)
        reference_mask = self._masks / "refs" / collection.path / f"{collection.number}.png"
        generated_mask = masks / f"{name}.png"
        text, caption = run / "text" / f"{name}.txt", self._caption(collection)
        subject, *prompts = tree.lines(caption) or [""]
        asked = None
        sample = replace(
            sample,
            generated_mask=needed(tree.file(generated_mask), generated_mask, GENERATED_MASK),
            reference_image=needed(reference, image, REFERENCE) or "",
            reference_mask=needed(tree.file(reference_mask), reference_mask, REFERENCE_MASK),
        )
        if not self._left_out(collection, prompt):
            asked = " ".join(tree.lines(text)) or "".join(prompts[prompt : prompt + 1])
            if not asked:
                tree.miss(text if prompts else caption, PROMPT)
                lacks.append(f"prompt in {text} or line {prompt + 2} of {caption}")
            if not subject:
                tree.miss(caption, SUBJECT)
                lacks.append(f"subject in line 1 of {caption}")
        return replace(
            sample,
            prompt=asked,
            subject=subject or None,
            category=collection.category,
            error=f"there is no {' and no '.join(lacks)}" if lacks else "",
        )

    def miss_generated(self, folders: Sequence[str]) -> None:
        """Remember of which collections and prompts a method has no image."""
        names = sorted({name for folder in folders for name in self.tree.folders(self._generated(folder))})
        known = {collection: name for name in names if (collection := Collection.named(name))}
        for prefix, path in CATEGORY_PATHS.items():
            captions = self._root / "captions" / path
            numbers = {*self.tree.stems(self._root / "images" / path), *self.tree.stems(captions, (".txt",))}
            for number in sorted(filter(str.isdigit, numbers)):
                noun = (self.tree.lines(captions / f"{number}.txt") or ["*"])[0]
                known.setdefault(Collection(prefix, number), f"{prefix}_{number}_{noun.lower().replace(' ', '_')}")
        for folder in folders:
            generated = self._generated(folder)
            there = {Collection.named(name): name for name in self.tree.folders(generated)}
            for collection, name in known.items():
                pictures = generated / there.get(collection, name)
                prompts = range(len(self.tree.lines(self._caption(collection))[1:]) or PROMPTS)
                for prompt in sorted(set(prompts) - {prompt for prompt, _, _ in self._pictures(pictures)}):
                    self.tree.miss(pictures / f"{prompt}_*.jpg", GENERATED)

    def _pictures(self, folder: Path) -> list[tuple[int, str, Path]]:
        """Prompt, seed and file, in order; other pictures are none of the benchmark's."""
        found = filter(None, map(_PICTURE.fullmatch, self.tree.stems(folder)))
        pictures = ((int(match[1]), match[2], self.tree.picture(folder / f"{match[0]}.jpg")) for match in found)
        return sorted(
            ((prompt, seed, file) for prompt, seed, file in pictures if file), key=lambda one: (one[0], int(one[1]))
        )

    def _generated(self, folder: str) -> Path:
        return self._root / "samples" / folder / "tgt_image"

    def _caption(self, collection: Collection) -> Path:
        return self._root / "captions" / collection.path / f"{collection.number}.txt"

    def _left_out(self, collection: Collection, prompt: int) -> bool:
        of_style = collection.category == "style" and self._pf_without in ("style-collections", "both")
        return of_style or (prompt in STYLE_PROMPTS and self._pf_without in ("style-prompts", "both"))

    def _masks_of(self, folder: str) -> Path:
        masks = self._masks / "samples"
        there = self.tree.folders(masks)
        same = [folder] if folder in there else [name for name in there if _may_be_one_run(name, folder)]
        if len(same) > 1:
            raise ValueError(
                f"{masks / same[0]} and {masks / same[1]} may both be the masks of {folder}; name one of them so"
            )
        return masks / (same[0] if same else folder)
