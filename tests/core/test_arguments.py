"""Words of error texts."""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from masc_metrics.arguments import check_function, check_number, check_type, json_type_name, type_name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "an int"),
        ("3", "a str"),
        (np.zeros(2), "an ndarray"),
        (np.uint8(3), "a uint8"),
        (OrderedDict(), "an OrderedDict"),
        (None, "a NoneType"),
        (torch.zeros(1), "a Tensor"),
    ],
)
def test_types_have_their_article(value: Any, name: str) -> None:
    assert type_name(value) == name
    with pytest.raises(TypeError, match=f"^x is {name}; give a set$"):
        check_type("x", value, set, "a set")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{}", "an object"),
        ("[1]", "an array"),
        ('"a"', "a string"),
        ("true", "true or false"),
        ("null", "null"),
        ("1", "a number"),
        ("1.5", "a number"),
    ],
)
def test_values_of_json_have_the_names_of_json(text: str, name: str) -> None:
    assert json_type_name(json.loads(text)) == name


def test_true_is_no_number() -> None:
    check_number("x", np.float32(1))
    with pytest.raises(TypeError, match=r"^x is a bool; give a number$"):
        check_number("x", True)


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, seed: None,
        lambda *everything: None,
        lambda prompts, seed, steps=30: None,
        functools.partial(lambda prompts, seed, steps: None, steps=30),
        str,
        max,
    ],
)
def test_functions_that_can_be_called_are_accepted(function: Any) -> None:
    check_function("generate", function, ("prompts", "seed"))


def test_functions_of_other_arguments_are_named_with_the_call() -> None:
    with pytest.raises(TypeError) as error:
        check_function("generate", lambda prompts: None, ("prompts", "seed"))
    assert str(error.value) == (
        "generate is called as generate(prompts, seed), but it is generate(prompts) (too many positional arguments); "
        "change it"
    )
    with pytest.raises(TypeError, match=r"it is generate\(\*, prompts, seed\)"):
        check_function("generate", lambda *, prompts, seed: None, ("prompts", "seed"))
    with pytest.raises(TypeError, match=r"^generate is a str; give a function, generate\(prompts, seed\)$"):
        check_function("generate", "flux", ("prompts", "seed"))
