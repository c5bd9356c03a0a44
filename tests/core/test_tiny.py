"""The bundled checkpoint: size, loading, tokenizer, the paper's claims on rendered scenes, and training."""

from __future__ import annotations

import json
import pickle
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.claims import PAGES, SEEDS, Claims, mean_claims, measured, tables, with_tables
from torchmetrics.functional.regression import spearman_corrcoef

import masc_metrics
from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing, functional, load_backbone, scores
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.images import patchify
from masc_metrics.scenes import SCENES, concept_benchmark, random_subject, render

FOLDER = Path(masc_metrics.__file__).parent / "assets" / "tiny"


# --- files and loading


def test_bundled_checkpoint_is_small() -> None:
    files = [file for file in FOLDER.iterdir() if file.is_file() and file.suffix != ".py"]
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    assert {file.name for file in files} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


def test_features_equal_those_of_the_transformers_classes() -> None:
    """Features of the package equal those of transformers for a padded batch with a mask."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)
    assert type(model).__name__ == "Siglip2Model"
    texts = ["a red and blue striped star on a beach", "among the clouds"]
    tokens = tokenizer(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    backbone = load_backbone("tiny")
    with torch.no_grad():
        expected = model.text_model(input_ids=tokens["input_ids"]).pooler_output
        torch.testing.assert_close(backbone.encode_texts(texts), expected, atol=1e-5, rtol=1e-4)
        images = [torch.from_numpy(concept_benchmark(1, 0, size=size).generated_images[0])
                  for size in ((128, 128), (96, 160))]  # fmt: skip
        features = backbone.encode_images(images, max_num_patches=64)
        patches = torch.zeros(2, 64, 768)
        for row, (image, grid) in enumerate(zip(images, features.grids, strict=True)):
            patches[row, : grid[0] * grid[1]] = patchify(image, grid, backbone.checkpoint.processing)
        vision = model.vision_model(patches, features.valid_BN.long(), torch.tensor(features.grids))
    for row, valid in enumerate(features.valid_BN):
        torch.testing.assert_close(
            features.tokens_BND[row, valid], vision.last_hidden_state[row, valid], atol=1e-4, rtol=1e-3
        )
    torch.testing.assert_close(backbone.pool(features, features.valid_BN), vision.pooler_output, atol=1e-4, rtol=1e-3)


def test_bundled_checkpoint_is_loaded_by_name() -> None:
    cp, pf = MaSCConceptPreservation("tiny"), MaSCPromptFollowing("tiny")
    assert cp.backbone is pf.backbone is load_backbone("tiny")
    assert cp.backbone.checkpoint.folder == FOLDER
    assert cp.backbone.checkpoint.commit is None
    assert pickle.loads(pickle.dumps(cp)).backbone is cp.backbone
    assert str(FOLDER).encode() not in pickle.dumps(cp), "a pickle must be valid in another installation"


def test_tiny_is_the_bundled_checkpoint_and_a_path_is_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_backbone("tiny").checkpoint.folder == FOLDER
    for path in ("./tiny", Path("tiny")):
        with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
            load_backbone(path)
    with pytest.raises(ValueError, match="the bundled checkpoint is 'tiny'"):
        CheckpointSource.of("Tiny")
    with pytest.raises(ValueError, match="'tiny' is the bundled checkpoint; omit revision"):
        CheckpointSource.of("tiny", revision="main")


# --- tokenizer


def test_texts_end_with_eos_and_are_padded_and_truncated_on_the_right() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer(["On a BEACH".lower()], padding="max_length", max_length=64, truncation=True)["input_ids"][0]
    words = ids[: ids.index(tokenizer.eos_token_id)]
    assert len(ids) == 64
    assert tokenizer.convert_ids_to_tokens(words) == ["on", "▁a", "▁beach"]
    assert set(ids[len(words) + 1 :]) == {tokenizer.pad_token_id}


def test_text_tower_accepts_any_text() -> None:
    texts = ["", "猫 on a beach", "émile & co. — 100 %", "\u200b\n\t", "x" * 5000, "a " * 500, "🦊🦊🦊"]
    embeddings = load_backbone("tiny").encode_texts(texts)
    assert torch.isfinite(embeddings).all()


@pytest.mark.parametrize(
    "template",
    ["a photo of an astronaut {}", "{}, highly detailed, 4k", "kitten {}", "a zorgle {} please", "{} with ünïcode 猫"],
)
def test_unknown_words_do_not_hide_the_scene(template: str) -> None:
    """An image is closest to the prompt with its scene, if all prompts contain the same unknown words."""
    backbone, rng = load_backbone("tiny"), np.random.default_rng(0)
    pictures = [render(random_subject(rng, held_out=True), scene, seed=seed) for seed in range(6) for scene in SCENES]
    features = backbone.encode_images([torch.from_numpy(picture.image) for picture in pictures], max_num_patches=64)
    images = torch.nn.functional.normalize(backbone.pool(features, features.valid_BN))
    texts = torch.nn.functional.normalize(backbone.encode_texts([template.format(scene) for scene in SCENES]))
    nearest = (images @ texts.T).argmax(dim=1)
    assert (nearest == torch.arange(len(SCENES)).repeat(6)).float().mean() >= 0.85


# --- the paper's claims on held-out subjects, with margins to the figures of docs/claims.md


@pytest.fixture(scope="module")
def claims() -> Claims:
    assert len(SEEDS) >= 3
    return mean_claims()


def test_concept_preservation_ranks_identity_damage(claims: Claims) -> None:
    assert claims.identity["subject"].spearman >= 0.72
    assert claims.identity["subject"].auc >= 0.97


def test_masks_improve_concept_preservation(claims: Claims) -> None:
    for seed in SEEDS:
        identity = measured(seed).identity
        assert identity["subject"].spearman > identity["all patches"].spearman + 0.05
        assert identity["subject"].auc > identity["all patches"].auc


def test_prompt_following_separates_correct_from_swapped_scenes(claims: Claims) -> None:
    assert claims.prompt["background", "stripped"] >= 0.96


def test_background_pooling_and_stripping_both_help_prompt_following(claims: Claims) -> None:
    best = claims.prompt["background", "stripped"]
    assert best > claims.prompt["full", "stripped"] + 0.01
    assert best > claims.prompt["background", "unstripped"] + 0.005
    assert min(claims.prompt["full", "stripped"], claims.prompt["background", "unstripped"]) > (
        claims.prompt["full", "unstripped"] + 0.05
    ), "each of the two helps by itself"
    assert claims.prompt["foreground", "stripped"] < 0.8


def test_mask_noise_degrades_scores_gradually(claims: Claims) -> None:
    """Small noise has a small effect; docs/claims.md describes the effect of each kind of noise."""
    for noise in (claims.dilated, claims.dropped):
        assert max(row.undefined for row in noise.values()) < 0.05
        rows = list(noise.values())
        for figures in ([row.identity.spearman for row in rows], [row.prompt for row in rows]):
            assert max(before - after for before, after in pairwise(figures)) < 0.25
            assert figures[1] > figures[0] - 0.03
    # A dilated mask adds background patches to CP; a mask with missing patches adds subject patches to PF.
    assert claims.dilated[16].identity.spearman < claims.dilated[0].identity.spearman - 0.1
    assert claims.dropped[0.75].prompt < claims.dropped[0].prompt - 0.01


def test_documents_contain_the_measured_figures(claims: Claims) -> None:
    """Up to rounding, which differs between versions of torch and transformers."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert _close(text, with_tables(text, tables(claims)))


def _close(one: str, other: str) -> bool:
    number = r"\d\.\d+"
    if re.sub(number, "#", one) != re.sub(number, "#", other):
        return False
    pairs = zip(re.findall(number, one), re.findall(number, other), strict=True)
    return all(abs(float(a) - float(b)) < 0.011 for a, b in pairs)


@pytest.mark.parametrize(
    ("size", "budget"), [((128, 128), 64), ((96, 160), 60), ((160, 112), 100), ((256, 256), 256), ((128, 128), 1024)]
)
def test_concept_preservation_ranks_damage_at_every_grid(size: tuple[int, int], budget: int) -> None:
    benchmark = concept_benchmark(100, seed=11, size=size)
    arrays = (benchmark.generated_images, benchmark.reference_images, benchmark.reference_masks)
    values = functional.concept_preservation(
        *map(torch.from_numpy, arrays), backbone=load_backbone("tiny"), max_num_patches=budget
    )
    damage = torch.from_numpy(benchmark.identity_damage)
    assert spearman_corrcoef(values.double(), -damage.double()) >= 0.7
    assert values[damage == 0].mean() > values[damage == 4].mean() + 0.4


# --- training


def test_training_writes_a_checkpoint_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from masc_metrics.assets.tiny import train

    monkeypatch.setattr(train, "PICTURES", 200)
    monkeypatch.setattr(train, "BUDGETS", {16: 1})
    state = torch.get_rng_state()
    train.train(tmp_path, steps=2, seed=0)
    torch.set_rng_state(state)
    backbone = load_backbone(tmp_path)
    image = backbone.encode_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), max_num_patches=16)
    text = backbone.encode_texts(["on a beach"])
    assert torch.isfinite(scores.embedding_cosine(backbone.pool(image, image.valid_BN), text)).all()
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), (
            f"{name} differs from the output of the script"
        )
    written, bundled = (json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (tmp_path, FOLDER))
    assert written["vocab"] == bundled["vocab"]
    assert written["merges"] == bundled["merges"]


def test_training_captions_are_true() -> None:
    import random

    from masc_metrics.assets.tiny.train import UNSPECIFIED, caption
    from masc_metrics.scenes import COLOURS, PATTERNS, SHAPES

    truth = [SHAPES.index("arrow"), COLOURS.index("orange"), COLOURS.index("black"), PATTERNS.index("dotted"), 2]
    words = ("arrow", "orange", "black", "dotted", SCENES[2])
    rng = random.Random(0)
    for _ in range(200):
        text, mentioned = caption(truth, rng)
        assert mentioned != [UNSPECIFIED] * 5
        for value, true, name in zip(mentioned, truth, words, strict=True):
            assert value in (true, UNSPECIFIED)
            assert (value == true) == all(word in text.split() for word in name.split())
