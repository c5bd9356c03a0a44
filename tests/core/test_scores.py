"""Scores: equality with loops, invariants, degenerate input, and error texts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masc_metrics import scores

sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), st.integers(2, 5))
seeds = st.integers(0, 10_000)


def features(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def booleans(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


@given(size=sizes, seed=seeds)
def test_masked_max_cosine_equals_a_loop(size: tuple[int, int, int, int], seed: int) -> None:
    samples, references, generateds, width = size
    ref, gen = features(samples, references, width, seed=seed), features(samples, generateds, width, seed=seed + 1)
    foreground, valid = booleans(samples, references, seed=seed), booleans(samples, generateds, seed=seed + 2)
    valid[:, 0] = True
    result = scores.masked_max_cosine(ref, foreground, gen, valid)
    for sample in range(samples):
        best = [
            max(cosine(patch, gen[sample, g]) for g in range(generateds) if valid[sample, g])
            for patch in ref[sample][foreground[sample]]
        ]
        expected = sum(best) / len(best) if best else math.nan
        assert result[sample].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(size=sizes, seed=seeds)
def test_weighted_max_cosine_equals_a_loop_and_global_is_weight_one(size: tuple[int, int, int, int], seed: int) -> None:
    samples, references, generateds, width = size
    ref, gen = features(samples, references, width, seed=seed), features(samples, generateds, width, seed=seed + 1)
    weight = torch.rand(samples, references, generator=torch.Generator().manual_seed(seed))
    every = torch.ones(samples, generateds, dtype=torch.bool)
    result = scores.weighted_max_cosine(ref, weight, gen, every)
    for sample in range(samples):
        best = [max(cosine(patch, other) for other in gen[sample]) for patch in ref[sample]]
        total = sum(w * b for w, b in zip(weight[sample].tolist(), best, strict=True))
        assert result[sample].item() == pytest.approx(total / float(weight[sample].sum()), abs=1e-5)
    mean = scores.weighted_max_cosine(ref, torch.ones(samples, references), gen, every)
    assert torch.allclose(mean, scores.best_cosine(ref, gen, every).mean(dim=1), atol=1e-6)


@given(size=sizes, seed=seeds)
def test_mutual_recall_equals_a_loop(size: tuple[int, int, int, int], seed: int) -> None:
    samples, references, generateds, width = size
    ref, gen = features(samples, references, width, seed=seed), features(samples, generateds, width, seed=seed + 1)
    valid_r, valid_g = booleans(samples, references, seed=seed), booleans(samples, generateds, seed=seed + 2)
    valid_r[:, 0] = valid_g[:, 0] = True
    fore_r, fore_g = booleans(samples, references, seed=seed + 3), booleans(samples, generateds, seed=seed + 4)
    result = scores.mutual_recall(ref, valid_r, fore_r & valid_r, gen, valid_g, fore_g & valid_g)
    for sample in range(samples):
        all_r = [r for r in range(references) if valid_r[sample, r]]
        all_g = [g for g in range(generateds) if valid_g[sample, g]]

        def similarity(r: int, g: int, sample: int = sample) -> float:
            return cosine(ref[sample, r], gen[sample, g])

        pairs = [
            (r, g)
            for r in all_r
            for g in all_g
            if g == max(all_g, key=lambda other, r=r: similarity(r, other))
            and r == max(all_r, key=lambda other, g=g: similarity(other, g))
        ]
        counted = [(r, g) for r, g in pairs if fore_r[sample, r]]
        expected = sum(bool(fore_g[sample, g]) for _, g in counted) / len(counted) if counted else math.nan
        assert result[sample].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(size=sizes, seed=seeds, padding=st.integers(1, 4))
def test_padding_never_changes_the_score(size: tuple[int, int, int, int], seed: int, padding: int) -> None:
    samples, references, generateds, width = size
    ref, gen = features(samples, references, width, seed=seed), features(samples, generateds, width, seed=seed + 1)
    foreground = booleans(samples, references, seed=seed)
    valid = torch.ones(samples, generateds, dtype=torch.bool)
    plain = scores.masked_max_cosine(ref, foreground, gen, valid)
    junk = torch.full((samples, padding, width), torch.nan)
    no = torch.zeros(samples, padding, dtype=torch.bool)
    padded = scores.masked_max_cosine(
        torch.cat([ref, junk], 1), torch.cat([foreground, no], 1), torch.cat([gen, junk], 1), torch.cat([valid, no], 1)
    )
    assert torch.allclose(plain, padded, atol=1e-6, equal_nan=True)


@given(size=sizes, seed=seeds)
def test_scores_do_not_depend_on_patch_order_and_feature_norm(size: tuple[int, int, int, int], seed: int) -> None:
    samples, references, generateds, width = size
    ref, gen = features(samples, references, width, seed=seed), features(samples, generateds, width, seed=seed + 1)
    foreground = booleans(samples, references, seed=seed)
    valid = torch.ones(samples, generateds, dtype=torch.bool)
    plain = scores.masked_max_cosine(ref, foreground, gen, valid)
    order_r, order_g = torch.randperm(references), torch.randperm(generateds)
    shuffled = scores.masked_max_cosine(3 * ref[:, order_r], foreground[:, order_r], 0.1 * gen[:, order_g], valid)
    assert torch.allclose(plain, shuffled, atol=1e-5, equal_nan=True)


@given(size=sizes, seed=seeds)
def test_identical_images_score_1_and_opposite_features_minus_1(size: tuple[int, int, int, int], seed: int) -> None:
    samples, references, _, width = size
    ref, every = features(samples, references, width, seed=seed), torch.ones(samples, references, dtype=torch.bool)
    assert torch.allclose(scores.masked_max_cosine(ref, every, ref, every), torch.ones(samples), atol=1e-6)
    opposite = scores.masked_max_cosine(ref[:, :1], every[:, :1], -ref[:, :1], every[:, :1])
    assert torch.allclose(opposite, -torch.ones(samples), atol=1e-6)
    assert torch.allclose(scores.mutual_recall(ref, every, every, ref, every, every), torch.ones(samples))
    assert torch.allclose(scores.embedding_cosine(ref[:, 0], ref[:, 0]), torch.ones(samples), atol=1e-6)


def test_scores_are_clamped_to_their_range() -> None:
    ref, every = features(64, 9, 7, seed=1), torch.ones(64, 9, dtype=torch.bool)
    assert (scores.best_cosine(ref, ref, every) <= 1).all()
    assert (scores.embedding_cosine(ref[:, 0], 3 * ref[:, 0]) <= 1).all()


def test_scores_do_not_depend_on_autocast() -> None:
    ref, every = features(2, 9, 64, seed=1), torch.ones(2, 9, dtype=torch.bool)
    plain = scores.masked_max_cosine(ref, every, ref.flip(0), every)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores.masked_max_cosine(ref, every, ref.flip(0), every), plain)


def test_images_without_a_valid_patch_are_nan() -> None:
    ref, every = features(1, 4, 3, seed=0), torch.ones(1, 4, dtype=torch.bool)
    assert scores.masked_max_cosine(ref, every, ref, ~every).isnan()


def test_samples_without_foreground_are_nan_and_do_not_affect_others() -> None:
    ref, every = features(2, 4, 3, seed=0), torch.ones(2, 4, dtype=torch.bool)
    foreground = torch.tensor([[False] * 4, [True] * 4])
    result = scores.masked_max_cosine(ref, foreground, ref, every)
    assert result[0].isnan()
    assert result[1].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_float32_for_any_dtype_of_features(dtype: torch.dtype) -> None:
    ref, every = features(2, 4, 3, seed=0).to(dtype), torch.ones(2, 4, dtype=torch.bool)
    assert scores.masked_max_cosine(ref, every, ref, every).dtype == torch.float32
    assert scores.embedding_cosine(ref[:, 0], ref[:, 1]).dtype == torch.float32


def test_errors_for_mismatched_shapes_name_the_argument() -> None:
    ref, gen, every = features(2, 4, 3, seed=0), features(2, 5, 3, seed=1), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"^foreground_BR is torch\.float32; give booleans"):
        scores.masked_max_cosine(ref, torch.ones(2, 4), gen, every)
    with pytest.raises(TypeError, match=r"^generated_valid_BG is a NoneType; give a tensor"):
        scores.best_cosine(ref, gen, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^foreground_BR is \(2, 5\) but its features are \(2, 4, 3\)"):
        scores.masked_max_cosine(ref, every, gen, every)
    with pytest.raises(ValueError, match=r"^generated_valid_BG is \(2, 4\) but its features are \(2, 5, 3\)"):
        scores.best_cosine(ref, gen, every[:, :4])
    with pytest.raises(ValueError, match="differ in batch size or width"):
        scores.patch_similarity(ref, gen[:1])
    with pytest.raises(
        ValueError,
        match=r"^reference features \(4, 3\) or generated features \(5, 3\) have a wrong rank; give \(B, N, D\)",
    ):
        scores.patch_similarity(ref[0], gen[0])
    with pytest.raises(ValueError, match="image embeddings"):
        scores.embedding_cosine(ref[:, 0], gen[:1, 0])


def test_block_size_does_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block contains several samples, one sample, or some of a sample's reference patches."""
    rng = torch.Generator().manual_seed(0)
    reference, generated = (torch.randn(5, count, 8, generator=rng) for count in (7, 6))
    foreground, valid = torch.rand(5, 7, generator=rng) < 0.5, torch.rand(5, 6, generator=rng) < 0.7
    expected = scores.masked_max_cosine(reference, foreground, generated, valid)
    largest = []
    similarity = scores.patch_similarity
    monkeypatch.setattr(
        scores, "patch_similarity", lambda *args: (cosines := similarity(*args), largest.append(cosines.numel()))[0]
    )
    for block in (2 * 7 * 6, 7 * 6, 20, 6, 1):
        monkeypatch.setattr(scores, "_BLOCK", block)
        largest.clear()
        assert torch.allclose(
            scores.masked_max_cosine(reference, foreground, generated, valid), expected, atol=1e-6, equal_nan=True
        )
        assert max(largest) <= max(block, 6), "a block has at least one reference patch"
