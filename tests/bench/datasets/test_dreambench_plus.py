"""DreamBench++'s folders as samples."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.benchmark_trees import COLLECTIONS, METHODS, dreambench_plus_tree, prompts_of

from masc_metrics.bench.commands import DREAMBENCH_PLUS_MIN_COVERAGE, PF_WITHOUT
from masc_metrics.bench.datasets.dreambench_plus import (
    STYLE_PROMPTS,
    DreamBenchPlus,
    PfWithout,
    read_dreambench_plus,
)
from masc_metrics.bench.sample import Sample

KITTEN, WARRIOR, TOY, STYLE = COLLECTIONS
LORA, ADAPTER = METHODS
NO_PROMPT = "prompt (UTF-8 text; without it there is no PF)"
KEYWORD_USED = "subject (UTF-8 text, first line; the folder's keyword is used)"
OTHER_SPELLING = "ip_adapter_vit_g_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16"


def find(tree: DreamBenchPlus, sample_id: str) -> Sample:
    (found,) = (sample for sample in tree.samples if sample.sample_id == sample_id)
    return found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not modified."""
    return dreambench_plus_tree(tmp_path_factory.mktemp("full"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One method with the kitten and the toy, to modify."""
    return dreambench_plus_tree(tmp_path, [LORA], [KITTEN, TOY])


def test_complete_tree_gives_its_samples_in_order(full: Path) -> None:
    tree = read_dreambench_plus(full)
    shorts = {LORA: "dreambooth_lora_sdxl", ADAPTER: "ip_adapter_vit_g_sdxl"}
    paths = dict(
        zip(COLLECTIONS, ["live_subject/animal/00", "live_subject/human/06", "object/07", "style/10"], strict=True)
    )
    nouns = dict(zip(COLLECTIONS, ["kitten", "pixelated warrior", "hair style toy", "ukiyo-e"], strict=True))
    keywords = dict(zip(COLLECTIONS, ["kitten", "pixelated_warrior", "hair_style_toy", "ukiyo-e"], strict=True))
    categories = dict(zip(COLLECTIONS, ["animal", "human", "object", "style"], strict=True))
    expected: list[Sample] = []
    for folder, method in shorts.items():
        for collection in COLLECTIONS:
            for prompt in range(9):
                name = f"{collection}/{prompt}_0"
                expected.append(
                    Sample(
                        line=len(expected) + 1,
                        sample_id=f"{method}/{name}",
                        generated_image=f"{full}/samples/{folder}/tgt_image/{name}.jpg",
                        generated_mask=f"{full}/masks/samples/{folder}/{name}.png",
                        reference_image=f"{full}/images/{paths[collection]}.jpg",
                        reference_mask=f"{full}/masks/refs/{paths[collection]}.png",
                        prompt=None if collection == STYLE else prompts_of(collection)[prompt],
                        subject=nouns[collection],
                        method=method,
                        concept=collection,
                        category=categories[collection],
                        key=f"{collection}-{prompt}",
                        reference_noun=nouns[collection],
                        generated_noun=keywords[collection],
                    )
                )
    assert list(tree.samples) == expected
    assert tree.missing == ()


def test_masks_of_the_tree_are_exact_and_pass_the_filter(full: Path) -> None:
    for sample in read_dreambench_plus(full).samples:
        for picture, mask in (
            (sample.generated_image, sample.generated_mask),
            (sample.reference_image, sample.reference_mask),
        ):
            with Image.open(picture) as image, Image.open(str(mask)) as marked:
                assert marked.size == image.size
                pixels = np.asarray(marked)
            assert set(np.unique(pixels)) == {0, 255}
            assert np.count_nonzero(pixels) / pixels.size > DREAMBENCH_PLUS_MIN_COVERAGE


@pytest.mark.parametrize("pf_without", PF_WITHOUT)
def test_prompt_following_leaves_out_the_chosen_samples(full: Path, pf_without: PfWithout) -> None:
    left_out = {
        (sample.concept, int(sample.key[-1]))
        for sample in read_dreambench_plus(full, pf_without=pf_without).samples
        if sample.prompt is None
    }
    collections = {(STYLE, prompt) for prompt in range(9)}
    prompts = {(collection, prompt) for collection in COLLECTIONS for prompt in (4, 5, 6)}
    assert (
        left_out
        == {
            "style-collections": collections,
            "style-prompts": prompts,
            "both": collections | prompts,
            "nothing": set(),
        }[pf_without]
    )
    assert list(STYLE_PROMPTS) == [4, 5, 6]


def test_unknown_option_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^pf_without is 'styles'; give 'style-collections', 'style-prompts', 'both' or"
    ):
        read_dreambench_plus(Path("nowhere"), pf_without="styles")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "methods"),
    [
        (["ip_adapter_vit_g_sdxl"], ["ip_adapter_vit_g_sdxl"]),
        (["ip_adapter_vit_giant_sdxl"], ["ip_adapter_vit_g_sdxl"]),
        ([ADAPTER], ["ip_adapter_vit_g_sdxl"]),
        ([OTHER_SPELLING], ["ip_adapter_vit_g_sdxl"]),
        ([ADAPTER, LORA], ["ip_adapter_vit_g_sdxl", "dreambooth_lora_sdxl"]),
        (["dreambooth_lora_sdxl", LORA], ["dreambooth_lora_sdxl"]),
    ],
)
def test_methods_are_found_by_either_name_and_spelling_in_the_given_order(
    full: Path, asked: list[str], methods: list[str]
) -> None:
    samples = read_dreambench_plus(full, asked).samples
    assert [sample.method for sample in samples[::36]] == methods
    assert len(samples) == 36 * len(methods)


@pytest.mark.parametrize(
    ("short", "beginnings"),
    [
        ("textual_inversion_sd", ("textual_inversion_sd",)),
        (
            "ip_adapter_plus_vit_h_sdxl",
            ("ip_adapter_plus_vit_h_sdxl", "ip_adapter_plus_vit_huge_sdxl", "ip_adapter_plus_sdxl_vit_huge"),
        ),
        (
            "ip_adapter_vit_g_sdxl",
            ("ip_adapter_vit_g_sdxl", "ip_adapter_vit_giant_sdxl", "ip_adapter_sdxl_vit_giant"),
        ),
    ],
)
def test_spellings_of_a_known_method_have_its_short_name(
    tmp_path: Path, short: str, beginnings: tuple[str, ...]
) -> None:
    for beginning in beginnings:
        folder = f"{beginning}_gs7_5_step100_seed42_torch_float16"
        root = dreambench_plus_tree(tmp_path / beginning, [folder], [TOY], [0])
        assert [sample.method for sample in read_dreambench_plus(root, [short]).samples] == [short]


def test_unknown_method_is_refused_with_the_known_ones(full: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^method is 'ip_adapter_plus_vit_h_sdxl'; the methods in .*samples are "
        rf"dreambooth_lora_sdxl \({LORA}\), ip_adapter_vit_g_sdxl \({ADAPTER}\)$",
    ):
        read_dreambench_plus(full, ["ip_adapter_plus_vit_h_sdxl"])


def test_two_folders_of_one_method_are_an_error_unless_one_is_named(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [LORA, ADAPTER, OTHER_SPELLING], [TOY], [0])
    message = rf"{OTHER_SPELLING} and .*{ADAPTER} are both the method ip_adapter_vit_g_sdxl; give one"
    for asked in ([], ["ip_adapter_vit_g_sdxl"], [OTHER_SPELLING, ADAPTER]):
        with pytest.raises(ValueError, match=message):
            read_dreambench_plus(root, asked)
    for folder in (ADAPTER, OTHER_SPELLING):
        (sample,) = read_dreambench_plus(root, [folder]).samples
        assert f"/{folder}/" in sample.generated_image
        assert f"/{folder}/" in str(sample.generated_mask)


def test_mask_folder_may_have_the_other_spelling(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [ADAPTER], [TOY])
    masks = root / "masks" / "samples"
    for spelling in (OTHER_SPELLING, "ip_adapter_vit_g_sdxl"):
        next(masks.iterdir()).rename(masks / spelling)
        tree = read_dreambench_plus(root)
        assert tree.missing == ()
        assert tree.samples[4].generated_mask == f"{masks}/{spelling}/{TOY}/4_0.png"


def test_masks_of_another_run_are_not_used(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [ADAPTER], [TOY])
    masks = root / "masks" / "samples"
    for other in (ADAPTER.replace("seed42", "seed43"), ADAPTER.replace("gs7_5", "gs7"), LORA):
        next(masks.iterdir()).rename(masks / other)
        tree = read_dreambench_plus(root)
        assert tree.missing == tuple((masks / ADAPTER / TOY / f"{n}_0.png", "generated mask") for n in range(9))
        assert all(sample.generated_mask is None for sample in tree.samples)


def test_ambiguous_mask_folders_are_an_error(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [ADAPTER], [TOY])
    masks = root / "masks" / "samples"
    (masks / ADAPTER).rename(masks / OTHER_SPELLING)
    (masks / "ip_adapter_vit_g_sdxl").mkdir()
    with pytest.raises(
        ValueError, match=rf"ip_adapter_vit_g_sdxl and .*{OTHER_SPELLING} may both be the masks of {ADAPTER}"
    ):
        read_dreambench_plus(root)


def test_masks_may_be_elsewhere(small: Path, tmp_path: Path) -> None:
    expected = read_dreambench_plus(small).samples
    (small / "masks").rename(tmp_path / "clipseg")
    tree = read_dreambench_plus(small, masks=tmp_path / "clipseg")
    assert tree.missing == ()
    assert [sample.generated_mask for sample in tree.samples] == [
        str(sample.generated_mask).replace(f"{small}/masks", f"{tmp_path}/clipseg") for sample in expected
    ]


def test_prompts_and_seeds_are_in_numeric_order(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [LORA], [TOY], seeds=(0, 10, 9))
    run = root / "samples" / LORA
    for folder, suffix in (
        (run / "tgt_image", "jpg"),
        (run / "text", "txt"),
        (root / "masks" / "samples" / LORA, "png"),
    ):
        shutil.copy(folder / TOY / f"3_0.{suffix}", folder / TOY / f"12_0.{suffix}")
    samples = read_dreambench_plus(root).samples
    names = [sample.sample_id.rpartition("/")[2] for sample in samples]
    assert names == [f"{prompt}_{seed}" for prompt in range(9) for seed in (0, 9, 10)] + ["12_0"]
    assert (samples[-1].key, samples[-1].prompt) == (f"{TOY}-12", prompts_of(TOY)[3])
    assert [sample.line for sample in samples] == list(range(1, 29))


def test_category_is_the_prefix_even_if_the_noun_holds_style(tmp_path: Path) -> None:
    names = [
        "live_subject_animal_01_style_object",
        "live_subject_human_02_animal",
        "object_03_human_style",
        "style_04_object",
    ]
    samples = read_dreambench_plus(dreambench_plus_tree(tmp_path, [LORA], names, [0])).samples
    assert [sample.category for sample in samples] == ["animal", "human", "object", "style"]
    assert [sample.prompt is None for sample in samples] == [False, False, False, True]


def test_prompt_is_the_text_file_or_else_the_line_of_the_caption(small: Path) -> None:
    text = small / "samples" / LORA / "text"
    (text / TOY / "2_0.txt").write_text("\ufeffa toy on the moon\n", encoding="utf-8")
    (text / TOY / "3_0.txt").write_text(" \n")
    shutil.rmtree(text / KITTEN)
    tree = read_dreambench_plus(small)
    assert tree.missing == ()
    assert tree.notes == (
        "the prompts of 10 generated images are those of the caption files, because text lacks them; the first is "
        f"{text}/{KITTEN}/0_0.txt",
    )
    assert [sample.prompt for sample in tree.samples if sample.concept == KITTEN] == prompts_of(KITTEN)
    assert [find(tree, f"dreambooth_lora_sdxl/{TOY}/{prompt}_0").prompt for prompt in (2, 3, 4)] == [
        "a toy on the moon",
        prompts_of(TOY)[3],
        prompts_of(TOY)[4],
    ]


def test_white_space_around_caption_lines_is_removed(small: Path) -> None:
    expected = read_dreambench_plus(small)
    shutil.rmtree(small / "samples" / LORA / "text")
    for file in (small / "captions" / "object" / "07.txt", small / "captions" / "live_subject" / "animal" / "00.txt"):
        lines = file.read_text().splitlines()
        file.write_bytes(b"".join(f" {line} \r\n".encode() for line in [*lines, "", ""]))
    assert read_dreambench_plus(small).samples == expected.samples


def test_reference_missing_in_images_is_replaced_by_its_copy(small: Path) -> None:
    (small / "images" / "object" / "07.jpg").rename(small / "images" / "object" / "7.jpg")
    tree = read_dreambench_plus(small)
    sample = find(tree, f"dreambooth_lora_sdxl/{TOY}/5_0")
    assert (sample.reference_image, sample.error) == (f"{small}/samples/{LORA}/src_image/{TOY}/5_0.jpg", "")
    assert sample.reference_mask == f"{small}/masks/refs/object/07.png"
    copied = "reference image (its copy in src_image is used)"
    assert (small / "images/object/07.jpg", copied) in tree.missing


def test_images_of_other_suffixes_are_found_and_jpg_is_preferred(small: Path) -> None:
    generated = small / "samples" / LORA / "tgt_image" / TOY
    for prompt, suffix in enumerate((".png", ".jpeg", ".webp", ".JPG")):
        (generated / f"{prompt}_0.jpg").rename(generated / f"{prompt}_0{suffix}")
    shutil.copy(generated / "0_0.png", generated / "4_0.png")
    (small / "images" / "object" / "07.jpg").rename(small / "images" / "object" / "07.webp")
    tree = read_dreambench_plus(small)
    files = [Path(sample.generated_image).name for sample in tree.samples if sample.concept == TOY]
    assert files[:5] == ["0_0.png", "1_0.jpeg", "2_0.webp", "3_0.JPG", "4_0.jpg"]
    assert tree.samples[-1].reference_image == f"{small}/images/object/07.webp"
    assert tree.missing == ()


def test_other_files_are_ignored(small: Path) -> None:
    expected = read_dreambench_plus(small)
    generated = small / "samples" / LORA / "tgt_image"
    for name in ("grid.jpg", "0.jpg", "03_0.jpg", "0_0_1.jpg", "._1_0.jpg", "1_1.txt"):
        (generated / TOY / name).touch()
    (generated / ".cache").mkdir()
    (small / "samples" / ".hidden").mkdir()
    (small / "samples" / "README.md").touch()
    (small / "images" / "object" / "Thumbs.db").touch()
    (small / "images" / "object" / "overview.jpg").touch()
    assert read_dreambench_plus(small) == expected


def test_missing_files_are_listed_and_named_in_the_samples_errors(tmp_path: Path) -> None:
    small = dreambench_plus_tree(tmp_path, [LORA], [KITTEN, TOY, "object_08_mug"])
    for file in (
        "masks/refs/object/07.png",
        f"masks/samples/{LORA}/{KITTEN}/3_0.png",
        "captions/object/07.txt",
        f"samples/{LORA}/text/{TOY}/1_0.txt",
        f"samples/{LORA}/tgt_image/{KITTEN}/7_0.jpg",
        f"samples/{LORA}/tgt_image/{TOY}/8_0.jpg",
        "images/live_subject/animal/00.jpg",
        f"samples/{LORA}/src_image/{KITTEN}/2_0.jpg",
    ):
        (small / file).unlink()
    tree = read_dreambench_plus(small)
    copied = "reference image (its copy in src_image is used)"
    assert tree.missing == (
        (small / "captions/object/07.txt", NO_PROMPT),
        (small / "captions/object/07.txt", KEYWORD_USED),
        (small / "images/live_subject/animal/00.jpg", "reference image"),
        (small / "images/live_subject/animal/00.jpg", copied),
        (small / "masks/refs/object/07.png", "reference mask"),
        (small / f"masks/samples/{LORA}/{KITTEN}/3_0.png", "generated mask"),
        (small / f"samples/{LORA}/tgt_image/{KITTEN}/7_*.jpg", "generated image"),
        (small / f"samples/{LORA}/tgt_image/{TOY}/8_*.jpg", "generated image"),
    )
    assert len(tree.samples) == 25
    errors = {sample.sample_id.removeprefix("dreambooth_lora_sdxl/"): sample.error for sample in tree.samples}
    assert {name: error for name, error in errors.items() if error} == {
        f"{KITTEN}/2_0": f"missing reference image {small}/images/live_subject/animal/00.jpg",
        f"{KITTEN}/3_0": f"missing generated mask {small}/masks/samples/{LORA}/{KITTEN}/3_0.png",
    } | {f"{TOY}/{prompt}_0": f"missing reference mask {small}/masks/refs/object/07.png" for prompt in range(8)}


def test_masks_of_generated_images_may_be_missing_if_they_are_transferred(small: Path) -> None:
    shutil.rmtree(small / "masks" / "samples")
    tree = read_dreambench_plus(small, mask_source="transfer")
    assert not tree.missing
    assert all(sample.generated_mask is None and not sample.error for sample in tree.samples)
    assert all(sample.error for sample in read_dreambench_plus(small).samples)


def test_segmenters_mark_the_papers_nouns_and_no_mask_need_exist(small: Path) -> None:
    shutil.rmtree(small / "masks" / "samples")
    (small / "masks" / "refs" / "object" / "07.png").unlink()
    (small / "captions" / "object" / "07.txt").write_text("Toy with hair\na prompt\n")
    (small / "samples" / LORA / "tgt_image" / TOY).rename(small / "samples" / LORA / "tgt_image" / "object_07_Hair_Toy")
    tree = read_dreambench_plus(small, mask_source="sam3", prompt_following=False)
    assert not [path for path, purpose in tree.missing if "mask" in purpose]
    found = [sample for sample in tree.samples if sample.concept == "object_07_Hair_Toy"]
    assert {(sample.reference_noun, sample.generated_noun) for sample in found} == {("Toy with hair", "hair_toy")}
    assert {(sample.reference_mask, sample.generated_mask, sample.error) for sample in found} == {(None, None, "")}
    kitten = next(sample for sample in tree.samples if sample.concept == KITTEN)
    assert kitten.reference_mask == f"{small}/masks/refs/live_subject/animal/00.png", "a given mask is used"
    (small / "captions" / "object" / "07.txt").unlink()
    tree = read_dreambench_plus(small, mask_source="sam3", prompt_following=False)
    assert (small / "captions/object/07.txt", KEYWORD_USED) in tree.missing, "the noun of a reference mask is missing"
    found = [sample for sample in tree.samples if sample.concept == "object_07_Hair_Toy"]
    assert {(sample.reference_noun, sample.generated_noun) for sample in found} == {("Hair Toy", "hair_toy")}


def test_without_a_caption_the_subject_is_the_folders_keyword_and_no_sample_is_lost(small: Path) -> None:
    before = read_dreambench_plus(small)
    caption = small / "captions/object/07.txt"
    caption.unlink()
    tree = read_dreambench_plus(small)
    assert tree.samples == before.samples
    assert tree.missing == ((caption, KEYWORD_USED),)
    shutil.rmtree(small / "samples" / LORA / "text" / TOY)
    tree = read_dreambench_plus(small)
    assert tree.missing == ((caption, NO_PROMPT), (caption, KEYWORD_USED))
    assert {(sample.prompt, sample.subject, sample.error) for sample in tree.samples if sample.concept == TOY} == {
        (None, "hair style toy", "")
    }
    assert tree.notes == ()


def test_without_caption_and_keyword_there_is_no_prompt_following(small: Path) -> None:
    for folder in (small / "samples" / LORA / "tgt_image", small / "samples" / LORA / "text"):
        (folder / TOY).rename(folder / "object_07")
    caption = small / "captions/object/07.txt"
    caption.unlink()
    tree = read_dreambench_plus(small)
    assert (caption, "subject (UTF-8 text, first line; without it there is no PF)") in tree.missing
    found = [sample for sample in tree.samples if sample.concept == "object_07"]
    assert {(sample.prompt, sample.subject) for sample in found} == {(None, None)}


def test_files_of_missing_folders_are_listed(small: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.zip"
    archive.touch()
    for masks in (tmp_path / "no" / "such" / "masks", archive):
        missing = read_dreambench_plus(small, masks=masks).missing
        assert missing == (
            (masks / "refs/live_subject/animal/00.png", "reference mask"),
            (masks / "refs/object/07.png", "reference mask"),
            *(
                (masks / f"samples/{LORA}/{name}/{n}_0.png", "generated mask")
                for name in (KITTEN, TOY)
                for n in range(9)
            ),
        )


def test_collections_that_a_method_lacks_are_listed(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, METHODS, [KITTEN, TOY, STYLE])
    generated = {method: root / "samples" / method / "tgt_image" for method in METHODS}
    shutil.rmtree(generated[LORA] / KITTEN)
    for method in METHODS:
        shutil.rmtree(generated[method] / TOY)
    (generated[LORA] / STYLE).rename(generated[LORA] / "style_10_another_name")  # only its number counts
    (root / "images" / "object" / "08.jpg").touch()
    (root / "captions" / "style" / "11.txt").write_text("Ink Wash\n" + "a prompt\n" * 9)
    tree = read_dreambench_plus(root)
    folders = [path.parent for path, purpose in tree.missing if purpose == "generated image"]
    assert list(dict.fromkeys(folders)) == [
        generated[LORA] / KITTEN,
        generated[LORA] / TOY,
        generated[LORA] / "object_08_*",
        generated[LORA] / "style_11_ink_wash",
        generated[ADAPTER] / TOY,
        generated[ADAPTER] / "object_08_*",
        generated[ADAPTER] / "style_11_ink_wash",
    ]
    assert {folders.count(folder) for folder in folders} == {9}


def test_prompt_in_no_caption_is_missing_from_its_text_file(small: Path) -> None:
    for folder, suffix in (("tgt_image", "jpg"), ("src_image", "jpg")):
        images = small / "samples" / LORA / folder / TOY
        shutil.copy(images / f"8_0.{suffix}", images / f"9_0.{suffix}")
    masks = small / "masks" / "samples" / LORA / TOY
    shutil.copy(masks / "8_0.png", masks / "9_0.png")
    text = f"{small}/samples/{LORA}/text/{TOY}/9_0.txt"
    tree = read_dreambench_plus(small)
    assert tree.missing == ((Path(text), NO_PROMPT),)
    assert (tree.samples[-1].prompt, tree.samples[-1].error) == (None, "")


def test_captions_that_are_not_utf_8_are_missing(small: Path) -> None:
    caption = small / "captions" / "object" / "07.txt"
    caption.write_bytes(b"caf\xe9\n")
    tree = read_dreambench_plus(small)
    assert tree.missing == ((caption, KEYWORD_USED),)
    assert find(tree, f"dreambooth_lora_sdxl/{TOY}/0_0").subject == "hair style toy"


def test_samples_without_prompt_following_need_no_texts(tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path, [LORA], [STYLE])
    shutil.rmtree(root / "captions")
    shutil.rmtree(root / "samples" / LORA / "text")
    tree = read_dreambench_plus(root)
    assert tree.missing == ()
    assert {(sample.error, sample.prompt) for sample in tree.samples} == {("", None)}
    caption = root / "captions" / "style" / "10.txt"
    assert {path for path, _ in read_dreambench_plus(root, pf_without="nothing").missing} == {caption}


def test_collection_of_unknown_category_is_an_error_of_its_samples(small: Path) -> None:
    generated = small / "samples" / LORA / "tgt_image"
    shutil.copytree(generated / TOY, generated / "toys_07_hair")
    samples = read_dreambench_plus(small).samples
    expected = "collection 'toys_07_hair' does not begin with a category and a number; the categories are "
    assert [sample.error.startswith(expected) for sample in samples if sample.error] == [True] * 9


@pytest.mark.parametrize("folder", ["samples", "images"])
def test_tree_without_its_main_folders_is_refused_with_the_layout(small: Path, folder: str) -> None:
    shutil.rmtree(small / folder)
    with pytest.raises(
        FileNotFoundError, match=rf"the folder {small}/{folder} does not exist; lay DreamBench.*does not include masks"
    ):
        read_dreambench_plus(small)


def test_tree_without_generated_images_is_refused_with_the_layout(small: Path) -> None:
    shutil.rmtree(small / "samples" / LORA / "tgt_image")
    with pytest.raises(ValueError, match=rf"{small}/samples holds no generated images; lay DreamBench"):
        read_dreambench_plus(small)
