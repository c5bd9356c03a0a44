"""Concept: references from files and folders, and subjects that no prompt contains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from support.batches import images, masks

from masc_metrics.validation import Concept

PROMPTS = ["rex on a beach"]


def write(folder: Path, names: list[str], *, mask_folder: Path | None = None, ending: str = "_mask") -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture, mask = images(1, 24, 36, seed=number)[0], masks(1, 24, 36, seed=number)[0]
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
        if mask_folder is not None:
            mask_folder.mkdir(exist_ok=True)
            Image.fromarray(mask.numpy()).convert("L").save(mask_folder / f"{name}{ending}.png")


def assert_read(concept: Concept, seeds: list[int], *, with_masks: bool = True) -> None:
    expected = [images(1, 24, 36, seed=seed)[0] for seed in seeds]
    assert all(torch.equal(image, other) for image, other in zip(concept.references.images, expected, strict=True))
    marked = [masks(1, 24, 36, seed=seed)[0] for seed in seeds] if with_masks else []
    assert all(torch.equal(mask, other.float()) for mask, other in zip(concept.masks.masks, marked, strict=True))


def test_references_are_read_from_a_folder_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "both", ["b", "a"], mask_folder=tmp_path / "both")
    assert_read(Concept("rex", PROMPTS, tmp_path / "both"), [1, 0])
    write(tmp_path / "pictures", ["b", "a"], mask_folder=tmp_path / "masks", ending="")
    assert_read(Concept("rex", PROMPTS, str(tmp_path / "pictures"), tmp_path / "masks"), [1, 0])
    assert_read(Concept("rex", PROMPTS, tmp_path / "pictures"), [1, 0], with_masks=False)


def test_references_are_read_from_files_in_the_given_order(tmp_path: Path) -> None:
    write(tmp_path, ["b", "a"], mask_folder=tmp_path)
    pictures, marked = [tmp_path / "b.png", tmp_path / "a.png"], [tmp_path / "b_mask.png", tmp_path / "a_mask.png"]
    assert_read(Concept("rex", PROMPTS, pictures, marked), [0, 1])
    assert_read(Concept("rex", PROMPTS, str(pictures[1]), str(marked[1])), [1])


def test_references_are_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rex", ["b", "a"], mask_folder=tmp_path / "rex")
    assert_read(Concept("rex", PROMPTS, "~/rex"), [1, 0])
    assert_read(Concept("rex", PROMPTS, ["~/rex/b.png"], ["~/rex/b_mask.png"]), [0])
    assert_read(Concept("rex", PROMPTS, Path("~/rex"), "~/rex"), [1, 0])


def test_a_reference_file_of_several_pictures_is_warned_about(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (36, 24), (level, 0, 0)) for level in (200, 100)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"a\.png holds several pictures; the first is taken"):
        concept = Concept("rex", PROMPTS, tmp_path / "a.png")
    assert (concept.references.images[0][0] == 200).all()


def test_errors_for_files_name_them_and_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, ["b", "a"], mask_folder=tmp_path)
    (tmp_path / "b_mask.png").unlink()
    with pytest.raises(ValueError, match=r"has no mask of b\.png; add b_mask\.png"):
        Concept("rex", PROMPTS, tmp_path)
    with pytest.raises(OSError, match=r"missing\.png cannot be read"):
        Concept("rex", PROMPTS, tmp_path / "missing.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"reference_images is the folder .*empty' without \.png, .*; add images"):
        Concept("rex", PROMPTS, tmp_path / "empty")
    with pytest.raises(ValueError, match="reference_masks holds 1 masks for 2 images"):
        Concept("rex", PROMPTS, [tmp_path / "a.png"] * 2, tmp_path / "a_mask.png")
    with pytest.raises(ValueError, match="reference_images are files but reference_masks are not"):
        Concept("rex", PROMPTS, tmp_path / "a.png", masks(1, 24, 36))
    with pytest.raises(ValueError, match="reference_masks are files but reference_images are not"):
        Concept("rex", PROMPTS, images(1, 24, 36), tmp_path / "a_mask.png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_orientation_of_only_one_of_image_and_mask_is_an_error(tmp_path: Path, kind: str) -> None:
    write(tmp_path, ["a"], mask_folder=tmp_path)
    with Image.open(tmp_path / "a.png") as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 3
        image.save(tmp_path / "a.png", kind, exif=exif)
    with pytest.raises(ValueError, match=r"a\.png or its mask has an EXIF orientation, but not both"):
        Concept("rex", PROMPTS, tmp_path)
    (tmp_path / "a_mask.png").unlink()
    upright = Concept("rex", PROMPTS, tmp_path).references.images[0]
    assert torch.equal(upright, images(1, 24, 36, seed=0)[0].flip(1, 2))


def test_a_subject_that_no_prompt_contains_is_warned_about_by_name() -> None:
    with pytest.warns(UserWarning, match="concept 'dog': subject 'sks dog' does not occur in any of its prompts"):
        concept = Concept("sks dog", ["a dog", "the dog"], images(1), masks(1), name="dog")
    concept.with_masks(masks(1))  # not warned again
    Concept("dog", ["a cat", "the dog"], images(1), masks(1))


def test_reference_masks_that_look_inverted_are_warned_about() -> None:
    mask = torch.zeros(1, 24, 36, dtype=torch.bool)
    mask[:, 8:16, 8:20] = True
    Concept("rex", PROMPTS, images(1, 24, 36), mask)
    with pytest.warns(UserWarning, match=r"reference_masks\[0\] of 'rex' covers most .* give mask < 0.5$"):
        Concept("rex", PROMPTS, images(1, 24, 36), ~mask)
