"""Concepts to validate, and the images to generate for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from torchmetrics.utilities import rank_zero_warn

from masc_metrics.arguments import check_sequence, check_type
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import FOREGROUND_THRESHOLD, MaskBatch, Masks, check_masks, looks_inverted
from masc_metrics.prompts import check_unicode, holds_subject
from masc_metrics.validation.reference_files import Files, read_references


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """A subject that the model learns, with prompts to validate it.

    Attributes:
        subject: name of the subject as in the prompts ("sks dog"); it is removed from the prompt for prompt following.
        prompts: prompts to generate from, one image for each; repeat a prompt to generate several images of it.
        reference_images: R >= 1 images of the subject; (R, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W)
            tensors of any sizes or PIL images; or files, or a folder of them, see
            :func:`masc_metrics.validation.reference_files.read_references`. A generated image is scored against each.
        reference_masks: R masks of the subject in the reference images; (R, H, W) or (R, 1, H, W), boolean, integer or
            float in [0, 1], or a list of (H, W) tensors or PIL images; or files, or a folder of them. With None, masks
            are ``<name>_mask.png`` beside the images of a folder; without these, the callback's segmenter marks the
            noun in the images, once, before training.
        name: name in the logs, ``val/masc_cp/<name>``; if blank, the subject.
        noun: noun for the segmenter ("dog"), if the prompts use a placeholder word; if blank, the subject.
        references: the checked and copied reference images.
        masks: the checked and copied reference masks; none if they were not given.

    Raises:
        TypeError, ValueError: if the metrics would not accept an argument.
        OSError: if a file cannot be read.

    Warns:
        UserWarning: if no prompt contains the subject.
    """

    subject: str
    prompts: Sequence[str]
    reference_images: InitVar[Images | Files]
    reference_masks: InitVar[Masks | Files | None] = None
    name: str = ""
    noun: str = ""
    references: ImageBatch = field(init=False, repr=False)
    masks: MaskBatch = field(init=False, repr=False)

    def __post_init__(self, reference_images: Images | Files, reference_masks: Masks | Files | None) -> None:
        for attribute in ("subject", "name", "noun"):
            check_type(attribute, getattr(self, attribute), str, "a string")
            check_unicode(attribute, getattr(self, attribute))
        if not self.subject.strip():
            raise ValueError("subject is empty; give its name as in the prompts")
        if not check_sequence("prompts", self.prompts, "a list of strings"):
            raise ValueError(f"prompts of {self.subject!r} is empty; give at least one")
        for index, prompt in enumerate(self.prompts):
            name = f"prompts[{index}] of {self.subject!r}"
            check_type(name, prompt, str, "a string")
            if not prompt.strip():
                raise ValueError(f"{name} is empty; give a prompt to generate from")
            check_unicode(name, prompt)
        if not any(holds_subject(prompt, self.subject) for prompt in self.prompts):
            rank_zero_warn(
                f"concept {(self.name if self.name.strip() else self.subject)!r}: subject {self.subject!r} does not "
                f"occur in any of its prompts, such as {self.prompts[0]!r}, so nothing is removed from them for prompt "
                "following; spell it as in the prompts",
                UserWarning,
            )
        given_images, given_masks = read_references(reference_images, reference_masks)
        references = check_images(given_images, "reference_images")
        masks = MaskBatch(())
        if given_masks is not None:
            masks = check_masks(given_masks, "reference_masks", references.sizes)
        for index, mask in enumerate(masks.masks):
            if looks_inverted(mask):
                rank_zero_warn(
                    f"reference_masks[{index}] of {self.subject!r} covers most of its image and almost all of its "
                    "border, as an inverted mask does; if it marks the background, give mask < 0.5",
                    UserWarning,
                )
            if mask.max() <= FOREGROUND_THRESHOLD:
                raise ValueError(
                    f"reference_masks[{index}] of {self.subject!r} marks nothing; mark the subject in its image"
                )
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "references", ImageBatch(tuple(image.detach().clone() for image in references.images)))
        object.__setattr__(self, "masks", MaskBatch(tuple(mask.detach().clone() for mask in masks.masks)))
        object.__setattr__(self, "name", self.name if self.name.strip() else self.subject)
        object.__setattr__(self, "noun", self.noun if self.noun.strip() else self.subject)

    def with_masks(self, reference_masks: Masks) -> Concept:
        """The same concept with masks of its references."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # given when this one was constructed
            return Concept(self.subject, self.prompts, self.references, reference_masks, self.name, self.noun)


def check_concepts(concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """Return the concepts; raise TypeError or ValueError unless they are a non-empty list with distinct names."""
    for index, concept in enumerate(check_sequence("concepts", concepts, "a list of Concept")):
        check_type(f"concepts[{index}]", concept, Concept, "a Concept")
    names = [concept.name for concept in concepts]
    if not names:
        raise ValueError("concepts is empty; give at least one")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"concepts has two of the name {repeated[0]!r}; give distinct names")
    return tuple(concepts)


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """One image to generate.

    Attributes:
        index: index of the image among all images, the same on every rank.
        prompt: prompt to generate from.
        concept: index of its concept.
        pairs: indices, among all pairs, of its pairs with the references of its concept.
        seed: seed of its batch.
    """

    index: int
    prompt: str
    concept: int
    pairs: range
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """Images that one call generates.

    Attributes:
        tasks: the images; none for a batch that keeps the ranks of a sharded model in step.
        prompts: prompts of the call, also of a batch without tasks.
        seed: seed of the call, in [0, 2**32).
    """

    tasks: tuple[GenerationTask, ...]
    prompts: tuple[str, ...]
    seed: int


def generation_batches(
    concepts: Sequence[Concept], batch_size: int, seed: int, seeds_per_prompt: int
) -> tuple[GenerationBatch, ...]:
    """Batches of all images, in rounds with one image of every prompt of every concept.

    No batch crosses the end of a round, so no call has one prompt twice with one seed, unless a concept repeats it.

    Args:
        concepts: the concepts.
        batch_size: images per batch.
        seed: seed of the first batch; those of the next count up, modulo 2**32.
        seeds_per_prompt: number of rounds.
    """
    batches: list[GenerationBatch] = []
    index = pair = 0
    for _ in range(seeds_per_prompt):
        wanted = [(concept, prompt) for concept, each in enumerate(concepts) for prompt in each.prompts]
        for start in range(0, len(wanted), batch_size):
            batch_seed = (seed + len(batches)) % 2**32
            tasks = []
            for concept, prompt in wanted[start : start + batch_size]:
                pairs = range(pair, pair + len(concepts[concept].references))
                tasks.append(GenerationTask(index, prompt, concept, pairs, batch_seed))
                index, pair = index + 1, pairs.stop
            batches.append(GenerationBatch(tuple(tasks), tuple(task.prompt for task in tasks), batch_seed))
    return tuple(batches)


def rank_share(
    batches: Sequence[GenerationBatch], ranks: int, rank: int, *, equal_counts: bool
) -> tuple[GenerationBatch, ...]:
    """Batches of one rank. Batches do not depend on the number of ranks, so neither do the images.

    Args:
        batches: all batches.
        ranks: number of ranks.
        rank: index of this rank.
        equal_counts: pad with batches without tasks, so that all ranks have equally many; sharded models need this.
    """
    padding = -len(batches) % ranks if equal_counts else 0
    padded = [*batches, *([GenerationBatch((), batches[0].prompts, batches[0].seed)] * padding)]
    return tuple(padded[rank::ranks])
