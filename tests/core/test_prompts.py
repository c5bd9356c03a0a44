"""Removal of the subject from prompts."""

from __future__ import annotations

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
        ("a c++ mug", "c++", "a c++ mug"),
        ("a photo of a dog (toy)", "dog", "a photo of (toy)"),
        ("  spaces  stay ", None, "  spaces  stay "),
        ("  spaces  stay ", " ", "  spaces  stay "),
        ("  spaces  collapse ", "dog", "spaces collapse"),
    ],
)
def test_stripping_follows_the_papers_rule(prompt: str, subject: str | None, stripped: str) -> None:
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
        assert strip_subject(prompt, subject) == strip_subject_from_prompt(prompt, subject)


def test_errors_for_invalid_types_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"^prompt is a list; give a string"):
        strip_subject(["a cat"], "cat")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^subject is a int; give a string, or None"):
        strip_subject("a cat", 3)  # type: ignore[arg-type]
