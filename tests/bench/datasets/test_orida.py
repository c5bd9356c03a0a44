"""ORIDa's tree as pairs, and the AUC of one subject against two."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.benchmark_trees import orida_picture, orida_tree

from masc_metrics.bench.datasets.orida import MIN_COVERAGE, Orida, read_orida, same_against_cross


def ids(orida: Orida, category: str) -> list[str]:
    return [sample.sample_id for sample in orida.samples if sample.category == category]


def scenes(orida: Orida, subject: str) -> list[str]:
    """Of a subject's pictures, in order: those of its pairs' first picture, then the last one's."""
    same = [sample for sample in orida.samples if sample.category == "same" and sample.concept == subject]
    first = same[0].reference_image
    return [Path(file).stem for file in [first, *(s.generated_image for s in same if s.reference_image == first)]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve subjects before three backgrounds; read alone."""
    return orida_tree(tmp_path_factory.mktemp("whole"), subjects=12, backgrounds=3)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two subjects before three backgrounds, to damage."""
    return orida_tree(tmp_path, subjects=2, backgrounds=3)


def test_all_pairs_of_small_trees_are_the_protocols(whole: Path) -> None:
    orida = read_orida(whole, subjects=12, backgrounds=3, cross_pairs=594 + 1)
    train = whole / "train"

    def view(subject: int, place: int) -> tuple[str, str]:
        folder = train / str(subject) / ("factual_only" if place < 2 else "factual_counterfactual/03a")
        stem = f"00{subject:03d}_0{place + 1}a_1"
        return f"{folder}/images/{stem}.jpg", f"{folder}/annotations/masks/{stem}_mask.jpg"

    expected = []
    for a in range(1, 13):
        for i in range(3):
            for j in range(i + 1, 3):
                expected.append((f"same/{a}/{i}-{j}", *view(a, i), view(a, j)[0], "same", str(a)))
    for a in range(1, 13):
        for b in range(a + 1, 13):
            for i in range(3):
                for j in range(3):
                    expected.append((f"cross/{a}.{i}/{b}.{j}", *view(a, i), view(b, j)[0], "cross", str(a)))
    assert [
        (s.sample_id, s.reference_image, s.reference_mask, s.generated_image, s.category, s.concept)
        for s in orida.samples
    ] == expected
    assert orida.subjects == tuple(map(str, range(1, 13)))  # 2 before 10
    assert orida.skipped == ()
    assert orida.notes == ("all 594 pairs of two subjects are taken, since there are no 595 to draw",)
    assert [sample.line for sample in orida.samples] == list(range(1, len(expected) + 1))
    assert {(s.generated_mask, s.prompt, s.subject, s.method, s.key, s.error) for s in orida.samples} == {
        (None, None, None, "", "", "")
    }
    assert all(Path(s.generated_image).is_file() and Path(str(s.reference_mask)).is_file() for s in orida.samples)


@pytest.mark.parametrize(("cross_pairs", "seed"), [(594, 0), (100, 0), (100, 7)])
def test_cross_pairs_are_numpys_draw(whole: Path, cross_pairs: int, seed: int) -> None:
    everything = ids(read_orida(whole, subjects=12, backgrounds=3, cross_pairs=10_000), "cross")
    orida = read_orida(whole, subjects=12, backgrounds=3, cross_pairs=cross_pairs, seed=seed)
    drawn = np.random.default_rng(seed).choice(594, size=cross_pairs, replace=False)
    assert ids(orida, "cross") == [everything[place] for place in drawn]
    assert len(ids(orida, "same")) == 12 * 3
    assert orida.notes == ()


def test_the_defaults_are_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = orida_tree(tmp_path, subjects=1) / "train"
    for number in range(2, 53):  # quicker than painting each
        (one / str(number)).symlink_to(one / "1")
    orida = read_orida(tmp_path)
    assert orida.subjects == tuple(map(str, range(1, 51)))
    assert (len(ids(orida, "same")), len(ids(orida, "cross")), orida.notes) == (2250, 2250, ())
    assert len({sample.sample_id for sample in orida.samples}) == 4500
    everything = [
        f"cross/{a}.{i}/{b}.{j}" for a in range(1, 51) for b in range(a + 1, 51) for i in range(10) for j in range(10)
    ]
    assert len(everything) == 122_500
    assert ids(orida, "cross") == [
        everything[place] for place in np.random.default_rng(0).choice(122_500, size=2250, replace=False)
    ]


def test_the_root_may_be_train_itself(whole: Path) -> None:
    assert read_orida(whole / "train", backgrounds=3) == read_orida(whole, backgrounds=3)


def test_subjects_stop_at_the_number_and_too_few_are_noted(whole: Path) -> None:
    assert read_orida(whole, subjects=3, backgrounds=3, cross_pairs=5).subjects == ("1", "2", "3")
    assert read_orida(whole, subjects=13, backgrounds=3, cross_pairs=5).notes == (
        "12 subjects instead of 13 have enough backgrounds",
    )


def test_the_first_backgrounds_by_name_are_taken(small: Path) -> None:
    for scene in ("10a", "00a", "9a"):
        orida_picture(small / "train" / "1" / "factual_only", 1, scene)
    orida = read_orida(small, backgrounds=3)
    assert scenes(orida, "1") == ["00001_00a_1", "00001_01a_1", "00001_02a_1"]
    assert scenes(orida, "2") == ["00002_01a_1", "00002_02a_1", "00002_03a_1"]
    assert read_orida(small, backgrounds=6).skipped == (f"{small}/train/2: 3 of 6 backgrounds",)


def test_the_camera_angle_is_no_part_of_the_background(small: Path) -> None:
    factual = small / "train" / "1" / "factual_only"
    assert (factual / "images" / "00001_01b_1.jpg").is_file()
    orida_picture(factual, 1, "02_")  # no scene of two characters: "02" is background "0", angle "2"
    assert scenes(read_orida(small, backgrounds=4, subjects=1), "1") == [
        "00001_02__1",
        "00001_01a_1",
        "00001_02a_1",
        "00001_03a_1",
    ]


def test_names_without_a_scene_are_passed_over(small: Path) -> None:
    expected = read_orida(small, backgrounds=3)
    subject = small / "train" / "1"
    images, masks = subject / "factual_only" / "images", subject / "factual_only" / "annotations" / "masks"
    for name in ("readme.txt", "00000.jpg", "00000_a_1.jpg", "._00001_00a_1.jpg", "00001_00a_1.png"):
        shutil.copy(images / "00001_01a_1.jpg", images / name)
        shutil.copy(masks / "00001_01a_1_mask.jpg", masks / f"{Path(name).stem}_mask.jpg")
    orida_picture(subject / "factual_counterfactual" / "x", 1, "x")
    for name in ("notes", "-3", "1b"):
        (small / "train" / name).mkdir()
    (small / "train" / "7").touch()
    assert read_orida(small, backgrounds=3) == expected


def test_a_missing_mask_takes_the_background_and_the_subject_out(small: Path) -> None:
    factual = small / "train" / "1" / "factual_only"
    mask = factual / "annotations" / "masks" / "00001_01a_1_mask.jpg"
    mask.unlink()  # the other angle is there, but the first picture alone counts
    orida = read_orida(small, backgrounds=3)
    assert orida.subjects == ("2",)
    assert orida.skipped == (f"{small}/train/1: 2 of 3 backgrounds; mask {mask}: no such file",)
    assert orida.notes == (
        "1 subjects instead of 50 have enough backgrounds",
        "all 0 pairs of two subjects are taken, since there are no 2250 to draw",
    )


def test_an_empty_mask_falls_through_to_the_counterfactual_scene(small: Path) -> None:
    subject = small / "train" / "1"
    orida_picture(subject / "factual_only", 1, "01a", coverage=0.0)
    for scene in ("01c", "01b"):
        orida_picture(subject / "factual_counterfactual" / scene, 1, scene)
        orida_picture(subject / "factual_counterfactual" / scene, 1, scene, ending="0")
    orida_picture(subject / "factual_counterfactual" / "02_", 1, "02_")  # not asked for: 02a is good
    orida = read_orida(small, backgrounds=3)
    assert scenes(orida, "1") == ["00001_01b_1", "00001_02a_1", "00001_03a_1"]
    assert "/factual_counterfactual/01b/images/" in orida.samples[0].reference_image
    assert "/factual_counterfactual/01b/annotations/masks/" in str(orida.samples[0].reference_mask)
    assert orida.skipped == ()


def test_the_first_counterfactual_scene_alone_counts_and_both_faults_are_told(small: Path) -> None:
    subject = small / "train" / "1"
    orida_picture(subject / "factual_only", 1, "01a", coverage=0.0)
    for scene, coverage in (("01b", 0.001), ("01c", None)):
        orida_picture(subject / "factual_counterfactual" / scene, 1, scene, coverage=coverage)
    masks = "annotations/masks/00001"
    assert read_orida(small, backgrounds=3).skipped == (
        f"{subject}: 2 of 3 backgrounds; mask {subject}/factual_only/{masks}_01a_1_mask.jpg "
        f"marks 0.00 % of its "
        f"pixels, mask {subject}/factual_counterfactual/01b/{masks}_01b_1_mask.jpg marks 0.10 % of its pixels",
    )


def test_a_mask_is_empty_up_to_half_a_percent(small: Path) -> None:
    factual, pixels = small / "train" / "1" / "factual_only", 64 * 75
    assert MIN_COVERAGE * pixels == 24
    orida_picture(factual, 1, "02a", coverage=25 / pixels)
    assert read_orida(small, backgrounds=3).subjects == ("1", "2")
    orida_picture(factual, 1, "02a", coverage=24 / pixels)
    orida = read_orida(small, backgrounds=3)
    assert orida.subjects == ("2",)
    assert orida.skipped == (
        f"{small}/train/1: 2 of 3 backgrounds; mask {factual}/annotations/masks/00001_02a_1_mask.jpg marks 0.50 % of "
        "its pixels",
    )


def test_the_picture_named_by_the_rule_comes_before_the_first_with_the_object(small: Path) -> None:
    scene = small / "train" / "1" / "factual_counterfactual" / "03a"
    orida_picture(scene, 0, "03a")
    assert scenes(read_orida(small, backgrounds=3), "1")[-1] == "00001_03a_1"
    (scene / "images" / "00001_03a_1.jpg").unlink()
    orida_picture(scene, 9, "03a")
    assert scenes(read_orida(small, backgrounds=3), "1")[-1] == "00000_03a_1"


def test_a_scene_without_the_object_is_no_background(small: Path) -> None:
    scene = small / "train" / "1" / "factual_counterfactual" / "03a"
    (scene / "images" / "00001_03a_1.jpg").unlink()
    assert read_orida(small, backgrounds=3).skipped == (
        f"{small}/train/1: 2 of 3 backgrounds; {scene} has no picture with the object",
    )
    shutil.rmtree(scene.parent)
    assert read_orida(small, backgrounds=3).skipped == (f"{small}/train/1: 2 of 3 backgrounds",)


def test_a_damaged_mask_is_told(small: Path) -> None:
    mask = small / "train" / "2" / "factual_only" / "annotations" / "masks" / "00002_02a_1_mask.jpg"
    mask.write_bytes(mask.read_bytes()[:100])
    (line,) = read_orida(small, backgrounds=3).skipped
    assert line.startswith(f"{small}/train/2: 2 of 3 backgrounds; mask {mask}: cannot be read as an image")


def test_folders_that_are_no_orida_are_told_the_layout(tmp_path: Path, small: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="nowhere holds no folders of numbered subjects; give the folder that holds"
    ):
        read_orida(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="train/1 holds no folders of numbered subjects"):
        read_orida(small / "train" / "1")
    with pytest.raises(ValueError, match=rf"no subject of {small}/train has 10 backgrounds \(first .*/1: 3 of 10 back"):
        read_orida(small)


@pytest.mark.parametrize("name", ["subjects", "backgrounds", "cross_pairs"])
def test_numbers_below_one_are_named(small: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 0; give at least 1"):
        read_orida(small, **{name: 0})


def test_the_auc_counts_ties_half_and_leaves_undefined_scores_out() -> None:
    same, cross = [0.9, 0.5, 0.5, 0.1], [0.5, 0.2, 0.0]
    wins = sum((s > c) + 0.5 * (s == c) for s in same for c in cross)
    scores = [*(("same", s) for s in same), *(("cross", c) for c in cross)]
    found = same_against_cross([("cross", math.nan), *scores, ("same", None), ("same", math.nan)])
    assert found.auc == pytest.approx(wins / 12)
    assert (found.same, found.cross, found.left_out) == (4, 3, 3)


def test_the_auc_of_one_kind_alone_is_undefined() -> None:
    found = same_against_cross([("same", 0.5)])
    assert math.isnan(found.auc)
    assert (found.same, found.cross, found.left_out) == (1, 0, 0)


def test_another_category_is_named() -> None:
    with pytest.raises(ValueError, match=r"^category is 'animal'; give 'same' or 'cross'"):
        same_against_cross([("animal", 0.5)])
