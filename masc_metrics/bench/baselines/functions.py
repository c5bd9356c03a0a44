"""Scores by functions of the user's: ``--scores mine=package.module:function``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from masc_metrics.arguments import check_type, type_name
from masc_metrics.precision import to_device


class FunctionResultError(TypeError):
    """A function returned something other than one number a sample, which no other sample will change."""


class FunctionScore:
    """A score of images without masks, computed by a function of the user's.

    Args:
        name: name of the score, and of its column.
        target: ``package.module:function``. The module is imported with the current folder first on the path, as by
            ``python -m``.
        device: device of the images that the function gets.

    Raises:
        ImportError: if the module cannot be imported, whatever it raises.
        ValueError: if it has no such attribute.
        TypeError: if the attribute cannot be called.
    """

    def __init__(self, name: str, target: str, device: torch.device) -> None:
        self.name, self.target, self._device = name, target, device
        module_name, _, attribute = target.partition(":")
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            found: Any = import_module(module_name)
        except (Exception, SystemExit) as error:  # a module can raise anything, and end the program
            raise ImportError(
                f"--scores {name}={target}: {module_name} cannot be imported ({type(error).__name__}: {error}); it is "
                f"looked for in {folder} first, then among the installed packages"
            ) from error
        try:
            for part in attribute.split("."):
                found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(
                f"--scores {name}={target}: {getattr(found, '__name__', found)} has no {part!r}; give MODULE:FUNCTION"
            ) from error
        if not callable(found):
            raise TypeError(
                f"--scores {name}={target} is {type_name(found)}, which cannot be called; give a function of "
                "images and references"
            )
        self._function: Callable[[list[Tensor], list[Tensor]], object] = found

    def score(self, generated_images: Sequence[Tensor], reference_images: Sequence[Tensor]) -> list[float]:
        """Score samples.

        Args:
            generated_images: (3, H, W) uint8 tensors, 0..255, of any sizes. The function gets them as a list on the
                device.
            reference_images: likewise, one for each generated image.

        Returns:
            One score per sample; NaN where the function gives NaN, which is an undefined sample.

        Raises:
            FunctionResultError: if the result is not a (B,) tensor of real numbers.
            ValueError: if a score is infinite.
            Exception: whatever the function raises.
        """
        # Copies, because a function may draw on its images, which other scores need too.
        lists = (
            [to_device(image.clone(), self._device) for image in images]
            for images in (generated_images, reference_images)
        )
        with torch.no_grad():
            result = self._function(*lists)
        try:
            check_type(f"the result of {self.target}", result, Tensor, "a tensor of one score for each sample")
            assert isinstance(result, Tensor)
            if result.shape != (len(generated_images),) or result.is_complex():
                raise TypeError(
                    f"the result of {self.target} is a {result.dtype} tensor of shape {tuple(result.shape)} for "
                    f"{len(generated_images)} samples; give real numbers of shape ({len(generated_images)},)"
                )
        except TypeError as error:
            raise FunctionResultError(f"--scores {self.name}: {error}") from None
        scores: list[float] = result.double().tolist()
        if infinite := [score for score in scores if math.isinf(score)]:
            raise ValueError(f"a score is {infinite[0]}; give finite numbers, and NaN for an undefined sample")
        return scores
