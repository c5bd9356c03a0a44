"""Subject stripping: the prompt without its subject."""

from __future__ import annotations

import re
from collections.abc import Sequence


def strip_subject(prompt: str, subject: str | None) -> str:
    """Remove the subject from a prompt, so that its text embedding speaks of the scene alone.

    Every ``a <subject>``, ``an <subject>`` and ``the <subject>`` is removed, whatever its case; only if there is none,
    every bare ``<subject>``. Whole words count: "cat" does not touch "cats" or "scatter". Runs of white space then
    become one space.

    Args:
        prompt: the text that the image was generated from.
        subject: the subject's name, one word or several. None or an empty name keeps the prompt as it is.

    Returns:
        The remaining text; empty if the prompt held nothing else. A name that begins or ends with a sign that is no
        letter, digit or underscore is found only where that sign touches one ("c++" is not found in "a c++ mug").

    Raises:
        TypeError: if ``prompt`` is not a string or ``subject`` neither a string nor None.

    Example:
        >>> strip_subject("A photo of a kitten in a garden", "kitten")
        'A photo of in a garden'

    Source: MaSC, arXiv 2605.22469.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}; give a string")
    if subject is None:
        return prompt
    if not isinstance(subject, str):
        raise TypeError(f"subject is a {type(subject).__name__}; give a string, or None to keep the prompt")
    name = re.escape(subject.strip())
    if not name:
        return prompt
    for mention in (rf"\b(?:an?|the)\s+{name}\b", rf"\b{name}\b"):
        stripped, found = re.subn(mention, "", prompt, flags=re.IGNORECASE)
        if found:
            break
    return " ".join(stripped.split())


def holds_subject(prompt: str, subject: str | None) -> bool:
    """Whether stripping finds the subject in the prompt; True where there is no subject to find."""
    return not (subject and subject.strip()) or strip_subject(prompt, subject) != " ".join(prompt.split())


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: one with half of a surrogate pair cannot, and tokenizers refuse it."""
    return text.encode(errors="ignore").decode() == text


def check_texts(texts: Sequence[str], name: str) -> None:
    """Raise TypeError unless it is a list of strings, ValueError unless each is Unicode; the text has the name."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} is a {type(texts).__name__}; give a list of strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] is a {type(text).__name__}; give strings")
        if not is_unicode(text):
            raise ValueError(f"{name}[{index}] {text!a} holds half of a surrogate pair; repair its encoding")
