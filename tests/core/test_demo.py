"""``masc-metrics demo``: table, panel and errors; and match maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from masc_metrics import functional, load_backbone
from masc_metrics.cli import main
from masc_metrics.demo import SUBJECTS, VARIANTS, demonstrate
from masc_metrics.scenes import Subject, render


def test_demo_command_prints_the_table_and_writes_the_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.png"
    assert main(["demo", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for variant in VARIANTS:
        assert f"{variant.subject}, {variant.scene}" in text
    assert str(out) in text
    assert max(len(line) for line in text.splitlines() if str(out) not in line) <= 100
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 168 * len(VARIANTS)
        assert image.height > 2 * 168 * SUBJECTS


def test_both_scores_separate_correct_from_wrong_variants() -> None:
    for seed in range(3):
        result = demonstrate(load_backbone("tiny"), seed=seed)
        cp = {(v.identity_damage, v.prompt_damage): score for v, score in zip(VARIANTS, result.cp, strict=True)}
        pf = {(v.identity_damage, v.prompt_damage): score for v, score in zip(VARIANTS, result.pf, strict=True)}
        assert min(cp[0, False], cp[0, True]) > cp[2, False] > max(cp[4, False], cp[4, True])
        assert min(score for (_, wrong), score in pf.items() if not wrong) > 0.25
        assert max(score for (_, wrong), score in pf.items() if wrong) < 0.1


def test_table_bars_grow_with_the_scores() -> None:
    result = demonstrate(load_backbone("tiny"))
    lines = result.table().splitlines()[2:]
    for line, cp in zip(lines, result.cp, strict=True):
        assert f"{cp:.2f}" in line
    assert lines[0].count("#") > lines[-1].count("#")


def test_mean_of_a_match_map_equals_concept_preservation() -> None:
    star = Subject("star", "red", "blue", "striped")
    reference = render(star, "on a beach", seed=0, size=(96, 160))
    generated = [render(star, "in the snow", seed=1), render(star, "in a city", seed=2, size=(160, 112))]
    backbone = load_backbone("tiny")
    arguments = {
        "generated_images": [torch.from_numpy(picture.image) for picture in generated],
        "reference_images": [torch.from_numpy(reference.image)] * 2,
        "reference_masks": [torch.from_numpy(reference.mask)] * 2,
    }
    maps = functional.match_maps(**arguments, backbone=backbone, max_num_patches=60)
    assert [tuple(values.shape) for values in maps] == [(6, 10), (6, 10)]
    scores = functional.concept_preservation(**arguments, backbone=backbone, max_num_patches=60)
    torch.testing.assert_close(torch.stack([values.nanmean() for values in maps]), scores)
    assert all(values.isnan().any() for values in maps)


def test_match_maps_raise_for_features_that_are_not_finite() -> None:
    """NaN marks patches outside the subject; features that are not finite raise, as for the score."""
    backbone = load_backbone("tiny")
    star = render(Subject("star", "red", "blue", "striped"), "on a beach", seed=0)
    image, mask = torch.from_numpy(star.image)[None], torch.from_numpy(star.mask)[None]
    with torch.no_grad():
        backbone._vision.network.post_layernorm.weight[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"generated_images\[0\] has patches to score.*not finite"):
        functional.match_maps(image, image, mask, backbone=backbone, max_num_patches=16)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--out", "nowhere/demo.png"], 2, "the folder nowhere does not exist; create it first"),
        (["--out", "."], 2, "is a folder"),
        (["--out", "demo.jpg"], 2, "ends with .png"),
        (["--out", "x" * 300 + ".png"], 2, "name too long"),
        (["--model", "./tiny"], 1, "no checkpoint folder"),
    ],
)
def test_errors_of_the_demo_command_say_what_is_wrong(
    arguments: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == code
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
