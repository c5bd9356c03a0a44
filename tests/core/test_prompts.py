"""Removal of the subject from prompts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from masc import strip_subject_from_prompt

from masc_metrics import strip_subject

words = st.sampled_from(
    ["a", "an", "The", "cat", "Cat", "cats", "piggy", "bank", "on", "scatter", "beach,", "cat.", "\t"]
)


@pytest.mark.parametrize(
    ("prompt", "subject", "stripped"),
    [
        ("A photo of a kitten in a garden", "kitten", "A photo of in a garden"),
        ("The Cat and a cat chase an cat", "cat", "and chase"),
        ("a cat chases cat", "cat", "chases cat"),  # mentions without article stay if there is one with article
        ("cat, Cat and CAT", "cat", ", and"),
        ("cats scatter concatenated", "cat", "cats scatter concatenated"),
        ("a   piggy bank\non the moon", "piggy bank", "on the moon"),
        ("a cat", "cat", ""),
        ("a c++ mug", "c++", "mug"),
        ("a photo of a dog (toy)", "dog", "a photo of (toy)"),
        ("  spaces  stay ", None, "  spaces  stay "),
        ("  spaces  stay ", " ", "  spaces  stay "),
        ("  spaces  collapse ", "dog", "spaces collapse"),
    ],
)
def test_stripping_follows_the_papers_rule(prompt: str, subject: str | None, stripped: str) -> None:
    assert strip_subject(prompt, subject) == stripped


@pytest.mark.parametrize(
    ("prompt", "subject", "stripped"),
    [
        ("a <new1> cat on a sofa", "<new1> cat", "on a sofa"),
        ("a red <new1> cat on a sofa", "<new1> cat", "a red on a sofa"),
        ("a photo of the <new1> cats", "<new1> cat", "a photo of the <new1> cats"),  # the right side is a word
        ("my [V] dog, at home", "[V] dog", "my , at home"),
        ("my [v] Dog, at home", "[V] dog", "my , at home"),
        ("an S* in a box, S* again", "S*", "in a box, S* again"),
        ("the first S* in a box", "S*", "the first in a box"),
        ("BOSS* in a box", "S*", "BOSS* in a box"),  # the left side is a word
        ("my <cat-toy> here", "<cat-toy>", "my here"),
        ("my 🐶, at home", "🐶", "my , at home"),
        ("a piggy\u00a0 bank\non the moon", "piggy  bank", "on the moon"),
        ("一只猫在沙滩上", "猫", "一只在沙滩上"),
        ("海辺のネコ", "ネコ", "海辺の"),
        ("고양이가 해변에", "고양이", "가 해변에"),
    ],
)
def test_names_without_word_boundaries_are_found_as_written(prompt: str, subject: str, stripped: str) -> None:
    assert strip_subject(prompt, subject) == stripped


@given(
    prompt=st.lists(words, max_size=12).map(" ".join), subject=st.sampled_from(["cat", "piggy bank", "CAT", "beach"])
)
def test_stripping_equals_masc_metrics(prompt: str, subject: str) -> None:
    assert strip_subject(prompt, subject) == strip_subject_from_prompt(prompt, subject)


@given(prompt=st.text(max_size=60), subject=st.text(min_size=1, max_size=6))
def test_any_text_is_accepted_and_nothing_is_added(prompt: str, subject: str) -> None:
    if subject.strip():
        assert len(strip_subject(prompt, subject)) <= len(prompt)


@given(prompt=st.text(max_size=60), subject=st.text("aZé_3*[] ", min_size=1, max_size=6))
def test_stripping_of_words_equals_masc_metrics_in_any_text(prompt: str, subject: str) -> None:
    name = subject.strip()
    if name and "  " not in name and re.match(r"\w", name[0]) and re.match(r"\w", name[-1]):
        prompt = " ".join([*prompt.split(), name, "x"])  # without runs of white space inside the name
        assert strip_subject(prompt, subject) == strip_subject_from_prompt(prompt, subject)


def test_errors_for_invalid_types_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"^prompt is a list; give a string"):
        strip_subject(["a cat"], "cat")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^subject is an int; give a string, or None"):
        strip_subject("a cat", 3)  # type: ignore[arg-type]
