"""Prompts: checks, and removal of the subject."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from masc_metrics.arguments import check_sequence, check_type

_UNSPACED_SCRIPTS = ("CJK ", "HIRAGANA ", "KATAKANA", "BOPOMOFO ", "HANGUL ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")
"""Beginnings of the Unicode names of letters that adjoin other words without a space, or with a particle."""


def strip_subject(prompt: str, subject: str | None) -> str:
    """Remove the subject from a prompt, so that the text embedding describes only the scene.

    Every ``a <subject>``, ``an <subject>`` and ``the <subject>`` is removed, ignoring case. If there is none, every
    ``<subject>`` without an article is removed. Only complete words match: "cat" does not match in "cats" or "scatter".
    Runs of white space, also within the subject, are one space.

    Where a name begins or ends with a character other than a letter, digit or underscore, such as "<new1> cat", "sks*"
    or an emoji, it matches as written on that side, whatever adjoins it. So does a name in a script without spaces
    between words, such as Chinese, Japanese or Thai, and in Korean. These two rules are not the paper's, which does not
    find such names.

    Args:
        prompt: text that the image was generated from.
        subject: name of the subject, one or more words. None or an empty name leaves the prompt unchanged.

    Returns:
        The remaining text; empty if the prompt contains nothing else.

    Raises:
        TypeError: if ``prompt`` is not a string or ``subject`` neither a string nor None.

    Example:
        >>> strip_subject("A photo of a kitten in a garden", "kitten")
        'A photo of in a garden'
        >>> strip_subject("a red <new1> cat on the moon", "<new1> cat")
        'a red on the moon'

    Source: MaSC, arXiv 2605.22469.
    """
    check_type("prompt", prompt, str, "a string")
    if subject is None:
        return prompt
    check_type("subject", subject, str, "a string, or None to keep the prompt")
    words = subject.split()
    if not words:
        return prompt
    name = r"\s+".join(map(re.escape, words))
    before, after = _boundary(words[0][0]), _boundary(words[-1][-1])
    for mention in (rf"\b(?:an?|the)\s+{name}{after}", rf"{before}{name}{after}"):
        stripped, removed = re.subn(mention, "", prompt, flags=re.IGNORECASE)
        if removed:
            break
    return " ".join(stripped.split())


def _boundary(edge: str) -> str:
    """Expression for the side of a name that ends with this character."""
    spaced = re.match(r"\w", edge) and not unicodedata.name(edge, "").startswith(_UNSPACED_SCRIPTS)
    return r"\b" if spaced else ""


def holds_subject(prompt: str, subject: str | None) -> bool:
    """Whether the prompt contains the subject; True if there is no subject."""
    return not (subject and subject.strip()) or strip_subject(prompt, subject) != " ".join(prompt.split())


def check_texts(texts: Sequence[str], name: str) -> None:
    """Raise TypeError unless the texts are a list of strings, ValueError unless each can be encoded."""
    check_sequence(name, texts, "a list of strings")
    for index, text in enumerate(texts):
        check_type(f"{name}[{index}]", text, str, "a string")
        check_unicode(f"{name}[{index}]", text)


def check_unicode(name: str, text: str) -> None:
    """Raise ValueError for a text with half of a surrogate pair, which cannot be encoded; tokenizers reject it."""
    if text.encode(errors="ignore").decode() != text:
        raise ValueError(f"{name} {text!a} contains half of a surrogate pair; repair its encoding")
