"""ORIDa's folders as pairs, and the AUC of one subject against two."""

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
    """Stems of a subject's images, in order."""
    same = [sample for sample in orida.samples if sample.category == "same" and sample.concept == subject]
    first = same[0].reference_image
    return [Path(file).stem for file in [first, *(s.generated_image for s in same if s.reference_image == first)]]


def subjects(orida: Orida) -> tuple[str, ...]:
    """Subjects of the pairs, in order."""
    return tuple(dict.fromkeys(sample.concept for sample in orida.samples))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve subjects in front of three backgrounds; not modified."""
    return orida_tree(tmp_path_factory.mktemp("full"), subjects=12, backgrounds=3)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two subjects in front of three backgrounds, to modify."""
    return orida_tree(tmp_path, subjects=2, backgrounds=3)


def test_small_tree_gives_all_pairs_of_the_protocol(full: Path) -> None:
    orida = read_orida(full, subjects=12, backgrounds=3, cross_pairs=594 + 1)
    train = full / "train"

    def view(subject: int, index: int) -> tuple[str, str]:
        folder = train / str(subject) / ("factual_only" if index < 2 else "factual_counterfactual/03a")
        stem = f"00{subject:03d}_0{index + 1}a_1"
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
    assert subjects(orida) == tuple(map(str, range(1, 13)))  # 2 before 10
    assert orida.skipped == ()
    assert orida.notes == ("all 594 pairs of two subjects are used, since there are fewer than 595",)
    assert [sample.line for sample in orida.samples] == list(range(1, len(expected) + 1))
    assert {(s.generated_mask, s.prompt, s.subject, s.method, s.key, s.error) for s in orida.samples} == {
        (None, None, None, "", "", "")
    }
    assert all(Path(s.generated_image).is_file() and Path(str(s.reference_mask)).is_file() for s in orida.samples)


@pytest.mark.parametrize(("cross_pairs", "seed"), [(594, 0), (100, 0), (100, 7)])
def test_cross_pairs_are_drawn_by_numpy(full: Path, cross_pairs: int, seed: int) -> None:
    everything = ids(read_orida(full, subjects=12, backgrounds=3, cross_pairs=10_000), "cross")
    orida = read_orida(full, subjects=12, backgrounds=3, cross_pairs=cross_pairs, seed=seed)
    drawn = np.random.default_rng(seed).choice(594, size=cross_pairs, replace=False)
    assert ids(orida, "cross") == [everything[index] for index in drawn]
    assert len(ids(orida, "same")) == 12 * 3
    assert orida.notes == ()


def test_defaults_are_those_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = orida_tree(tmp_path, subjects=1) / "train"
    for number in range(2, 53):  # faster than rendering each
        (one / str(number)).symlink_to(one / "1")
    orida = read_orida(tmp_path)
    assert subjects(orida) == tuple(map(str, range(1, 51)))
    assert (len(ids(orida, "same")), len(ids(orida, "cross")), orida.notes) == (2250, 2250, ())
    assert len({sample.sample_id for sample in orida.samples}) == 4500
    everything = [
        f"cross/{a}.{i}/{b}.{j}" for a in range(1, 51) for b in range(a + 1, 51) for i in range(10) for j in range(10)
    ]
    assert len(everything) == 122_500
    assert ids(orida, "cross") == [
        everything[index] for index in np.random.default_rng(0).choice(122_500, size=2250, replace=False)
    ]


def test_root_may_be_train_itself(full: Path) -> None:
    assert read_orida(full / "train", backgrounds=3) == read_orida(full, backgrounds=3)


def test_number_of_subjects_is_limited_and_too_few_are_noted(full: Path) -> None:
    assert subjects(read_orida(full, subjects=3, backgrounds=3, cross_pairs=5)) == ("1", "2", "3")
    assert read_orida(full, subjects=13, backgrounds=3, cross_pairs=5).notes == (
        "12 of 13 subjects have enough backgrounds",
    )


def test_first_backgrounds_by_name_are_used(small: Path) -> None:
    for scene in ("10a", "00a", "9a"):
        orida_picture(small / "train" / "1" / "factual_only", 1, scene)
    orida = read_orida(small, backgrounds=3)
    assert scenes(orida, "1") == ["00001_00a_1", "00001_01a_1", "00001_02a_1"]
    assert scenes(orida, "2") == ["00002_01a_1", "00002_02a_1", "00002_03a_1"]
    assert read_orida(small, backgrounds=6).skipped == (f"{small}/train/2: 3 of 6 backgrounds",)


def test_camera_angle_is_not_part_of_the_background(small: Path) -> None:
    factual = small / "train" / "1" / "factual_only"
    assert (factual / "images" / "00001_01b_1.jpg").is_file()
    orida_picture(factual, 1, "02_")  # a scene of three characters: background "02", angle "_"
    assert scenes(read_orida(small, backgrounds=4, subjects=1), "1") == [
        "00001_02__1",
        "00001_01a_1",
        "00001_02a_1",
        "00001_03a_1",
    ]


def test_files_without_a_scene_are_ignored(small: Path) -> None:
    expected = read_orida(small, backgrounds=3)
    subject = small / "train" / "1"
    images, masks = subject / "factual_only" / "images", subject / "factual_only" / "annotations" / "masks"
    for name in ("readme.txt", "00000.jpg", "00000_a_1.jpg", "._00001_00a_1.jpg", "00001_00a_1.gif"):
        shutil.copy(images / "00001_01a_1.jpg", images / name)
        shutil.copy(masks / "00001_01a_1_mask.jpg", masks / f"{Path(name).stem}_mask.jpg")
    orida_picture(subject / "factual_counterfactual" / "x", 1, "x")
    for name in ("notes", "-3", "1b"):
        (small / "train" / name).mkdir()
    (small / "train" / "7").touch()
    assert read_orida(small, backgrounds=3) == expected


def test_missing_mask_removes_the_background_and_the_subject(small: Path) -> None:
    factual = small / "train" / "1" / "factual_only"
    mask = factual / "annotations" / "masks" / "00001_01a_1_mask.jpg"
    mask.unlink()  # the other angle exists, but only the first image counts
    orida = read_orida(small, backgrounds=3)
    assert subjects(orida) == ("2",)
    assert orida.skipped == (f"{small}/train/1: 2 of 3 backgrounds; mask {mask}: no such file",)
    assert orida.notes == (
        "1 of 50 subjects have enough backgrounds",
        "all 0 pairs of two subjects are used, since there are fewer than 3",
    )


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".PNG"])
def test_images_of_every_suffix_are_used(suffix: str, small: Path) -> None:
    for image in (small / "train").glob("*/**/images/*.jpg"):
        image.rename(image.with_suffix(suffix))
    orida = read_orida(small, backgrounds=3)
    assert subjects(orida) == ("1", "2")
    assert all(sample.generated_image.endswith(suffix) for sample in orida.samples)


def test_fewer_subjects_have_as_many_cross_as_same_pairs(full: Path) -> None:
    orida = read_orida(full, backgrounds=3)
    same, cross = (len(ids(orida, category)) for category in ("same", "cross"))
    assert same == cross == 12 * 3


def test_empty_mask_is_replaced_by_the_counterfactual_scene(small: Path) -> None:
    subject = small / "train" / "1"
    orida_picture(subject / "factual_only", 1, "01a", coverage=0.0)
    for scene in ("01c", "01b"):
        orida_picture(subject / "factual_counterfactual" / scene, 1, scene)
        orida_picture(subject / "factual_counterfactual" / scene, 1, scene, ending="0")
    orida_picture(subject / "factual_counterfactual" / "02_", 1, "02_")  # not needed: 02a is valid
    orida = read_orida(small, backgrounds=3)
    assert scenes(orida, "1") == ["00001_01b_1", "00001_02a_1", "00001_03a_1"]
    assert "/factual_counterfactual/01b/images/" in orida.samples[0].reference_image
    assert "/factual_counterfactual/01b/annotations/masks/" in str(orida.samples[0].reference_mask)
    assert orida.skipped == ()


def test_only_the_first_counterfactual_scene_counts_and_both_faults_are_reported(small: Path) -> None:
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


def test_mask_of_half_a_percent_counts_as_empty(small: Path) -> None:
    factual, pixels = small / "train" / "1" / "factual_only", 64 * 75
    assert MIN_COVERAGE * pixels == 24
    orida_picture(factual, 1, "02a", coverage=25 / pixels)
    assert subjects(read_orida(small, backgrounds=3)) == ("1", "2")
    orida_picture(factual, 1, "02a", coverage=24 / pixels)
    orida = read_orida(small, backgrounds=3)
    assert subjects(orida) == ("2",)
    assert orida.skipped == (
        f"{small}/train/1: 2 of 3 backgrounds; mask {factual}/annotations/masks/00001_02a_1_mask.jpg marks 0.50 % of "
        "its pixels",
    )


def test_image_with_the_expected_name_is_preferred(small: Path) -> None:
    scene = small / "train" / "1" / "factual_counterfactual" / "03a"
    orida_picture(scene, 0, "03a")
    assert scenes(read_orida(small, backgrounds=3), "1")[-1] == "00001_03a_1"
    (scene / "images" / "00001_03a_1.jpg").unlink()
    orida_picture(scene, 9, "03a")
    assert scenes(read_orida(small, backgrounds=3), "1")[-1] == "00000_03a_1"


def test_scene_without_the_object_is_not_a_background(small: Path) -> None:
    scene = small / "train" / "1" / "factual_counterfactual" / "03a"
    (scene / "images" / "00001_03a_1.jpg").unlink()
    assert read_orida(small, backgrounds=3).skipped == (
        f"{small}/train/1: 2 of 3 backgrounds; {scene} has no image with the object",
    )
    shutil.rmtree(scene.parent)
    assert read_orida(small, backgrounds=3).skipped == (f"{small}/train/1: 2 of 3 backgrounds",)


def test_damaged_mask_is_reported(small: Path) -> None:
    mask = small / "train" / "2" / "factual_only" / "annotations" / "masks" / "00002_02a_1_mask.jpg"
    mask.write_bytes(mask.read_bytes()[:100])
    (line,) = read_orida(small, backgrounds=3).skipped
    assert line.startswith(f"{small}/train/2: 2 of 3 backgrounds; mask {mask}: cannot be read as an image")


def test_other_folders_are_refused_with_the_layout(tmp_path: Path, small: Path) -> None:
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


def table(folder: Path, scores: list[tuple[str, float | str]]) -> Path:
    file = folder / "scores.csv"
    file.write_text("category,cp\n" + "".join(f"{category},{score}\n" for category, score in scores))
    return file


def test_auc_counts_ties_half_and_leaves_out_undefined_scores(tmp_path: Path) -> None:
    same, cross = [0.9, 0.5, 0.5, 0.1], [0.5, 0.2, 0.0]
    wins = sum((s > c) + 0.5 * (s == c) for s in same for c in cross)
    scores = [*(("same", s) for s in same), *(("cross", c) for c in cross)]
    found = same_against_cross(table(tmp_path, [("cross", "nan"), *scores, ("same", ""), ("same", "nan")]), "cp")
    assert found.auc == pytest.approx(wins / 12)
    assert (found.same, found.cross, found.left_out) == (4, 3, 3)
    assert (found.same_mean, found.cross_mean) == pytest.approx((0.5, 0.7 / 3))
    assert (found.same_deviation, found.cross_deviation) == pytest.approx((np.std(same, ddof=1), np.std(cross, ddof=1)))
    assert found.difference == pytest.approx(0.5 - 0.7 / 3)
    assert found.scaled_difference == pytest.approx((0.5 - 0.7 / 3) / 0.9)


def test_auc_of_one_category_is_undefined(tmp_path: Path) -> None:
    found = same_against_cross(table(tmp_path, [("same", 0.5)]), "cp")
    assert math.isnan(found.auc)
    assert (found.same, found.cross, found.left_out) == (1, 0, 0)


def test_unknown_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scores.csv, line 2: category is 'animal'; give 'same' or 'cross'"):
        same_against_cross(table(tmp_path, [("animal", 0.5)]), "cp")
