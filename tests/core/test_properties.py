"""For any shapes and forms, metrics give a score in range or raise an error that names the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.batches import images, masks
from torch import Tensor

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

PATCHES = 9
sides = st.integers(1, 80)
DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def pictures(draw: st.DrawFn) -> Any:
    """An image and its mask, of any size, in any accepted form."""
    height, width, seed = draw(sides), draw(sides), draw(st.integers(0, 50))
    image, mask = images(1, height, width, seed)[0], masks(1, height, width, seed)[0]
    mask = draw(st.sampled_from([mask, torch.zeros_like(mask), torch.ones_like(mask)]))
    if draw(st.booleans()):
        form: Any = Image.fromarray(image.permute(1, 2, 0).numpy())
    else:
        dtype = draw(st.sampled_from(DTYPES))
        form = image if dtype == torch.uint8 else (image / 255).to(dtype)
    masked: Any = draw(
        st.sampled_from(
            [mask, mask[None], mask.long(), mask.to(torch.uint8) * 255, mask.half(), Image.fromarray(mask.numpy())]
        )
    )
    return form, masked


texts = st.text(min_size=1, max_size=30).filter(str.strip)


@pytest.mark.filterwarnings(
    "ignore:.*samples are undefined",
    "ignore:.*does not occur as complete words",
    "ignore:.*mark nothing",
    "ignore:.*as inverted masks do",
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.lists(st.tuples(pictures(), pictures(), texts, st.none() | texts), min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
)
def test_mixed_batches_give_the_scores_of_single_samples(
    samples: list[tuple[Any, Any, str, str | None]], batch_size: int, checkpoint: Path
) -> None:
    shared = {"max_num_patches": PATCHES, "reduction": "none", "encode_batch_size": batch_size}
    cp, pf = MaSCConceptPreservation(checkpoint, **shared), MaSCPromptFollowing(checkpoint, **shared)

    def score(part: list[tuple[Any, Any, str, str | None]]) -> tuple[Tensor, Tensor]:
        generated, references, prompts, subjects = (list(column) for column in zip(*part, strict=True))
        cp.reset()
        pf.reset()
        cp.update([g for g, _ in generated], [r for r, _ in references], [m for _, m in references])
        pf.update([g for g, _ in generated], [m for _, m in generated], prompts, subjects)
        return cp.compute(), pf.compute()

    together = score(samples)
    for values in together:
        assert values.shape == (len(samples),)
        assert ((values.abs() <= 1 + 1e-6) | values.isnan()).all()
    cp.backbone.cache.clear()
    for index, sample in enumerate(samples):
        for single, values in zip(score([sample]), together, strict=True):
            assert torch.allclose(single[0], values[index], atol=1e-6, equal_nan=True)


shapes = st.lists(st.integers(0, 4), max_size=5)
dtypes = st.sampled_from([*DTYPES, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])


@pytest.mark.filterwarnings("ignore:.*samples are undefined", "ignore:.*holds integers up to")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, dtype=dtypes, value=st.sampled_from([0, 1, 2, 200, -1]), listed=st.booleans())
@pytest.mark.parametrize("argument", ["generated_images", "reference_images", "reference_masks", "sample_ids"])
def test_any_tensor_is_scored_or_rejected_by_name(
    argument: str, shape: list[int], dtype: torch.dtype, value: int, listed: bool, checkpoint: Path
) -> None:
    metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, reduction="none")
    wrong = torch.full(shape, value).to(dtype)
    arguments = {"generated_images": images(2), "reference_images": images(2), "reference_masks": masks(2)}
    arguments[argument] = list(wrong) if listed and wrong.ndim else wrong
    error = refusal(metric, arguments)
    if error is None:
        # all ids are equal here, and repeats count once
        assert len(metric.compute()) == (1 if argument == "sample_ids" else 2)
    else:
        assert any(name in error for name in (argument, "reference_masks"))  # the masks may not match the images
        assert all(not state for state in metric.metric_state.values())


def refusal(metric: MaSCConceptPreservation, arguments: dict[str, Any]) -> str | None:
    """Error text if the metric rejects the arguments; exceptions of other types fail the test."""
    try:
        metric.update(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
