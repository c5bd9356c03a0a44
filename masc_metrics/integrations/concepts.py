"""Concepts to validate on, and the pictures asked of the model for them.

Shape suffix: P pairs of a generated and a reference picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import FOREGROUND_THRESHOLD, MaskBatch, Masks, check_masks
from masc_metrics.prompts import is_unicode


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """A subject that the model learns, and the prompts to try it with.

    Attributes:
        subject: its name, as the prompts spell it ("sks dog"); it is taken out of the prompt for prompt following.
        prompts: what to generate, one picture each; repeat a prompt for several pictures of it.
        reference_images: one picture of the subject or more; (R, 3, H, W) uint8 or float in [0, 1], or a list of
            (3, H, W) tensors of any sizes or PIL images. A generated picture is scored against each.
        reference_masks: its subject in each of them; (R, H, W) or (R, 1, H, W), boolean, integer or float in [0, 1],
            or a list of (H, W) tensors or PIL images.
        name: stands in the logs, ``val/masc_cp/<name>``; the subject if blank.
        noun: what the segmenter is asked for ("dog"), where the prompts use a made-up word; the subject if blank.
        references: the reference images, checked, and copied.
        masks: the reference masks, checked, and copied.

    Raises:
        TypeError, ValueError: for a form that the metrics would not take, before anything is trained.
    """

    subject: str
    prompts: Sequence[str]
    reference_images: InitVar[Images]
    reference_masks: InitVar[Masks]
    name: str = ""
    noun: str = ""
    references: ImageBatch = field(init=False, repr=False)
    masks: MaskBatch = field(init=False, repr=False)

    def __post_init__(self, reference_images: Images, reference_masks: Masks) -> None:
        for attribute in ("subject", "name", "noun"):
            if not isinstance(value := getattr(self, attribute), str):
                raise TypeError(f"{attribute} is a {type(value).__name__}; give a string")
        if not self.subject.strip():
            raise ValueError("subject is empty; give its name as the prompts spell it")
        if isinstance(self.prompts, str) or not isinstance(self.prompts, Sequence):
            raise TypeError(f"prompts is a {type(self.prompts).__name__}; give a list of strings")
        if not self.prompts:
            raise ValueError(f"prompts of {self.subject!r} is empty; give at least one")
        for index, prompt in enumerate(self.prompts):
            if not isinstance(prompt, str):
                raise TypeError(f"prompts[{index}] of {self.subject!r} is a {type(prompt).__name__}; give a string")
            if not prompt.strip():
                raise ValueError(f"prompts[{index}] of {self.subject!r} is empty; give a text to generate from")
        for text in (self.subject, self.name, self.noun, *self.prompts):
            if not is_unicode(text):
                raise ValueError(f"{text!a} of {self.subject!a} holds half of a surrogate pair; repair its encoding")
        references = check_images(reference_images, "reference_images")
        masks = check_masks(reference_masks, "reference_masks", references.sizes)
        for index, mask in enumerate(masks.masks):
            if mask.max() <= FOREGROUND_THRESHOLD:
                raise ValueError(
                    f"reference_masks[{index}] of {self.subject!r} marks nothing; give the place of the subject in it"
                )
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "references", ImageBatch(tuple(image.detach().clone() for image in references.images)))
        object.__setattr__(self, "masks", MaskBatch(tuple(mask.detach().clone() for mask in masks.masks)))
        object.__setattr__(self, "name", self.name if self.name.strip() else self.subject)
        object.__setattr__(self, "noun", self.noun if self.noun.strip() else self.subject)


def check_concepts(concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """The concepts, if they can be told apart in a log; TypeError or ValueError otherwise."""
    if isinstance(concepts, str) or not isinstance(concepts, Sequence):
        raise TypeError(f"concepts is a {type(concepts).__name__}; give a list of Concept")
    for index, concept in enumerate(concepts):
        if not isinstance(concept, Concept):
            raise TypeError(f"concepts[{index}] is a {type(concept).__name__}; give a Concept")
    names = [concept.name for concept in concepts]
    if not names:
        raise ValueError("concepts is empty; give at least one")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"concepts has two of the name {repeated[0]!r}; give each a name of its own")
    return tuple(concepts)


@dataclass(frozen=True, slots=True)
class Order:
    """One picture to generate.

    Attributes:
        index: its place among all pictures, the same on every rank.
        prompt: what it is generated from.
        concept: the place of its concept in the list of concepts.
        pairs: where its pairs with its concept's references stand among all pairs.
    """

    index: int
    prompt: str
    concept: int
    pairs: range


def orders_of(concepts: Sequence[Concept]) -> tuple[Order, ...]:
    """Every picture of every concept, in order."""
    orders: list[Order] = []
    start = 0
    for place, concept in enumerate(concepts):
        for prompt in concept.prompts:
            pairs = range(start, start + len(concept.references))
            orders.append(Order(len(orders), prompt, place, pairs))
            start = pairs.stop
    return tuple(orders)


def dealt(
    orders: Sequence[Order], batch_size: int, ranks: int, rank: int, *, in_step: bool
) -> list[tuple[int, tuple[Order, ...]]]:
    """This rank's batches, each with its number, by which it is seeded.

    What stands together in a batch does not depend on the number of ranks, so neither do the pictures.

    Args:
        orders: every picture.
        batch_size: pictures in a batch.
        ranks: between how many processes the batches are dealt.
        rank: which of them this is.
        in_step: whether every rank must generate equally often, as sharded models do. Those with a batch less then
            get an empty one.
    """
    batches = [tuple(orders[start : start + batch_size]) for start in range(0, len(orders), batch_size)]
    if in_step:
        batches += [()] * (-len(batches) % ranks)
    return list(enumerate(batches))[rank::ranks]
