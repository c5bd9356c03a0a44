"""Several references of a sample in lists and folders, and the gallery of a list."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import processes
from support.sample_lists import SUBJECTS, rows, write_csv, written

from masc_metrics import load_backbone
from masc_metrics.bench.sample_list import read_samples
from masc_metrics.cli import main
from masc_metrics.functional import (
    check_transfer,
    concept_anchors,
    concept_matrix,
    concept_preservation,
    prompt_following,
)
from masc_metrics.scenes import SCENES, render
from masc_metrics.scores import concept_margins, concept_ranks

PATCHES = 16
OPTIONS = ["--model", "tiny", "--max-num-patches", str(PATCHES), "--workers", "0", "--quiet", "--device", "cpu"]
SETTINGS = {"backbone": load_backbone("tiny"), "max_num_patches": PATCHES}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Six samples of three concepts, of which the first has three references."""
    file = written(tmp_path, 6)
    for number in (2, 3):
        picture = render(SUBJECTS[0], sorted(SCENES)[number], seed=50 + number, size=(48, 48))
        Image.fromarray(picture.image.transpose(1, 2, 0)).save(tmp_path / f"ref/0_{number}.png")
        Image.fromarray(picture.mask).save(tmp_path / f"ref/0_{number}_mask.png")
    return file


NAMES = ["0", "0_2", "0_3"]


def with_several(file: Path, separator: str | None = ";") -> Path:
    """The list whose samples of the first concept name all of its references."""
    changed = rows(file)
    for row in changed[::3]:
        for column, end in (("reference_image", ""), ("reference_mask", "_mask")):
            files = [f"ref/{name}{end}.png" for name in NAMES]
            row[column] = json.dumps(files) if separator is None else separator.join(files)
    return write_csv(file, changed)


def tensor(file: Path) -> torch.Tensor:
    values = torch.from_numpy(np.array(Image.open(file)))
    return values.permute(2, 0, 1) if values.ndim == 3 else values


def references(folder: Path) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    names = [NAMES, ["1"], ["2"]]
    images = [[tensor(folder / f"ref/{name}.png") for name in each] for each in names]
    return images, [[tensor(folder / f"ref/{name}_mask.png") for name in each] for each in names]


def score(file: Path, *options: str) -> list[dict[str, str]]:
    out = file.parent / "scores.csv"
    assert main(["score", str(file), "--out", str(out), "--scores", "cp", *OPTIONS, *options]) == 0
    return rows(out)


@pytest.mark.parametrize("reduction", ["mean", "max", "pool"])
def test_scores_are_those_of_the_function(listed: Path, reduction: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = score(with_several(listed), "--reference-reduction", reduction)
    images, masks = references(listed.parent)
    generated = [tensor(listed.parent / f"out/{number}.png") for number in range(6)]
    expected = concept_preservation(
        generated,
        images * 2,
        masks * 2,
        reference_reduction=reduction,
        **SETTINGS,  # type: ignore[arg-type]
    )
    assert [float(row["cp"]) for row in found] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[0]["reference_image"] == "ref/0.png;ref/0_2.png;ref/0_3.png"
    assert found[1]["reference_image"] == "ref/1.png"
    assert float(found[0]["reference_patches"]) == 3 * PATCHES
    capsys.readouterr()


def test_a_json_list_in_any_format_equals_a_separated_cell(listed: Path) -> None:
    separated = read_samples(with_several(listed)).samples
    as_csv = read_samples(with_several(listed, None)).samples
    assert as_csv == separated
    assert [Path(image).name for image, _ in separated[0].references] == ["0.png", "0_2.png", "0_3.png"]
    assert separated[1].more_references == ()
    plain = rows(listed)
    lists = [{name: json.loads(cell) if cell.startswith("[") else cell for name, cell in row.items()} for row in plain]
    lines = listed.with_suffix(".jsonl")
    lines.write_text("\n".join(map(json.dumps, lists)))
    assert [sample.references for sample in read_samples(lines).samples] == [each.references for each in separated]
    import pyarrow
    import pyarrow.parquet

    only_lists = [
        {**row, **{n: v if isinstance(v, list) else [v] for n, v in row.items() if n.startswith("ref")}}
        for row in lists
    ]
    parquet = listed.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(only_lists), parquet)
    assert [sample.references for sample in read_samples(parquet).samples] == [each.references for each in separated]


def test_a_file_whose_name_holds_the_separator_is_one_file(listed: Path) -> None:
    changed = rows(listed)
    for end in ("", "_mask"):
        (listed.parent / f"ref/1{end}.png").rename(listed.parent / f"ref/a;b{end}.png")
        changed[1][f"reference_{'mask' if end else 'image'}"] = f"ref/a;b{end}.png"
    del changed[4]
    samples = read_samples(write_csv(listed, changed)).samples
    assert samples[1].references == ((str(listed.parent / "ref/a;b.png"), str(listed.parent / "ref/a;b_mask.png")),)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (
            "ref/0.png;ref/1.png",
            "ref/0_mask.png",
            "line 2: reference_image holds 2 files and reference_mask 1; give one",
        ),
        (
            "ref/0.png;;ref/1.png",
            "ref/0_mask.png",
            "line 2: reference_image is 'ref/0.png;;ref/1.png', in which a file",
        ),
        ("[1, 2]", "ref/0_mask.png", "line 2: reference_image is '[1, 2]', in which a file is empty or not text"),
        ('["ref/0.png"', "ref/0_mask.png", "not a JSON list"),
    ],
)
def test_malformed_cells_stop_the_command_with_their_line(
    listed: Path, image: str, mask: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = rows(listed)
    changed[0] |= {"reference_image": image, "reference_mask": mask}
    write_csv(listed, changed)
    assert main(["score", str(listed), "--out", str(listed.parent / "scores.csv"), *OPTIONS]) == 2
    assert message in capsys.readouterr().err


def test_digest_depends_on_further_references(listed: Path) -> None:
    before = read_samples(listed).sha256
    several = read_samples(with_several(listed)).sha256
    other = read_samples(
        write_csv(listed, [row | {k: v.replace("0_3", "0_2") for k, v in row.items()} for row in rows(listed)])
    )
    assert len({before, several, other.sha256}) == 3


def test_a_folder_gives_all_its_references(tmp_path: Path) -> None:
    (tmp_path / "cat/lora").mkdir(parents=True)
    for name in ("reference", "reference_2", "reference_10", "lora/a"):
        for end in ("", "_mask"):
            Image.new("L" if end else "RGB", (16, 16)).save(tmp_path / f"cat/{name}{end}.png")
    (sample,) = read_samples(tmp_path, ["cp"]).samples
    files = [(Path(image).name, Path(mask or "").name) for image, mask in sample.references]
    assert files == [(f"{name}.png", f"{name}_mask.png") for name in ("reference", "reference_2", "reference_10")]
    assert not sample.lacks
    (tmp_path / "cat/reference_2_mask.png").unlink()
    (sample,) = read_samples(tmp_path, ["cp"]).samples
    assert sample.lacks == {"reference_mask": f"reference_mask is missing: {tmp_path / 'cat/reference_2_mask.png'}"}


def test_baselines_and_functions_take_the_mean_over_references(
    listed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "reds.py").write_text(
        "import torch\n"
        "def red(images, references):\n"
        "    return torch.stack([reference[0].float().mean() for reference in references])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = score(with_several(listed), "--scores", "siglip2-i,red=reds:red")
    images, _ = references(listed.parent)
    expected = [float(torch.stack([image[0].float().mean() for image in each]).mean()) for each in images]
    assert [float(row["red"]) for row in found[:3]] == pytest.approx(expected, rel=1e-6)
    alone = []
    for name in NAMES:
        changed = rows(listed)[:1]
        changed[0] |= {"reference_image": f"ref/{name}.png", "reference_mask": f"ref/{name}_mask.png"}
        file = write_csv(listed.with_name("alone.csv"), changed)
        alone.append(float(score(file, "--scores", "siglip2-i")[0]["siglip2-i"]))
    assert float(found[0]["siglip2-i"]) == pytest.approx(sum(alone) / 3, abs=1e-6)


def test_transferred_masks_come_from_all_references(listed: Path) -> None:
    file = with_several(listed)
    write_csv(file, [row | {"generated_mask": ""} for row in rows(file)][:3])
    found = score(file, "--scores", "pf", "--mask-source", "transfer")
    images, masks = references(listed.parent)
    generated = [tensor(listed.parent / f"out/{number}.png") for number in range(3)]
    texts = [[row[name] for row in rows(file)] for name in ("prompt", "subject")]
    several = {"reference_images": images, "reference_masks": masks}
    expected = prompt_following(generated, None, *texts, **several, **SETTINGS)  # type: ignore[arg-type]
    assert [float(row["pf"]) for row in found] == pytest.approx(expected.tolist(), abs=1e-6)
    check = check_transfer(images[:1], masks[:1], **SETTINGS)  # type: ignore[arg-type]
    assert float(found[0]["mask_check"]) == pytest.approx(check.item(), abs=1e-6)


def test_commands_for_one_reference_refuse_several(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = with_several(listed)
    assert main(["sensitivity", str(file), "--out", str(file.parent / "s.json"), "--model", "tiny"]) == 2
    assert "line 2: reference_image holds 3 files; give one reference" in capsys.readouterr().err
    write_csv(file, [row | {"reference_mask": ""} for row in rows(file)])
    assert main(["masks", str(file), "--out", str(file.parent / "masks")]) == 2
    assert "line 2: reference_image holds several files; list each in a row of its own" in capsys.readouterr().err


# --- gallery ---


def test_gallery_adds_rank_margin_and_anchors(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = score(with_several(listed), "--gallery", "--batch-size", "4")
    printed = capsys.readouterr().out
    images, masks = references(listed.parent)
    concepts = [0, 1, 2, 0, 1, 2]
    methods = [0, 1, 0, 1, 0, 1]
    generated = [tensor(listed.parent / f"out/{number}.png") for number in range(6)]
    matrix = concept_matrix(generated, images, masks, **SETTINGS).double()  # type: ignore[arg-type]
    own = torch.tensor(concepts)
    ranks = concept_ranks(matrix, own).tolist()
    margins = [0.0] * 6
    for method in (0, 1):  # compared with pictures of the same method
        numbers = [number for number in range(6) if methods[number] == method]
        for number, margin in zip(numbers, concept_margins(matrix[numbers], own[numbers]).tolist(), strict=True):
            margins[number] = margin
    assert [float(row["concept_rank"]) for row in found] == ranks
    assert [float(row["concept_margin"]) for row in found] == pytest.approx(margins, abs=1e-6)
    summary = json.loads((listed.parent / "scores.summary.json").read_text())["gallery"]
    assert summary["concepts"] == 3
    share = sum(rank == 1 for rank in ranks) / 6
    assert summary["all"]["identified"]["mean"] == pytest.approx(share)
    assert summary["all"]["margin"]["mean"] == pytest.approx(sum(margins) / 6, abs=1e-6)
    assert set(summary["by_method"]) == {"A", "B"}
    anchors = concept_anchors(images, masks, **SETTINGS)  # type: ignore[arg-type]
    for index, concept in enumerate(("star", "ball", "box")):
        limits = summary["anchors"][concept]
        assert limits["floor"] == pytest.approx(anchors.floor_R[index].item(), abs=1e-6)
        ceiling = anchors.ceiling_R[index].item()
        assert (math.nan if limits["ceiling"] is None else limits["ceiling"]) == pytest.approx(ceiling, nan_ok=True)
    assert f"identified among 3 concepts: {share:.4f}" in printed
    assert "ceiling: references have CP" in printed
    assert "(mean of 1 concepts)" in printed


def test_scores_are_equal_with_and_without_a_gallery(listed: Path) -> None:
    file = with_several(listed)
    with_gallery, without = score(file, "--gallery"), score(file)
    assert [row["cp"] for row in with_gallery] == [row["cp"] for row in without]
    assert "concept_rank" not in without[0]


def test_a_reference_that_cannot_be_read_fails_its_samples_only(listed: Path) -> None:
    (listed.parent / "ref/1.png").write_text("no image")
    out = listed.parent / "scores.csv"
    assert main(["score", str(listed), "--out", str(out), "--scores", "cp", "--gallery", *OPTIONS]) == 3
    found = rows(out)
    assert [bool(row["error"]) for row in found] == [False, True, False] * 2
    assert [row["concept_rank"] == "" for row in found] == [False, True, False] * 2
    assert all(float(row["concept_rank"]) <= 2 for row in found if row["concept_rank"])


def test_a_gallery_of_one_concept_is_refused(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(listed, rows(listed)[:1])
    out = str(listed.parent / "scores.csv")
    assert main(["score", str(listed), "--out", out, "--scores", "cp", "--gallery", *OPTIONS]) == 2
    assert "--gallery needs two concepts with a reference image and its mask, but 1 of 1" in capsys.readouterr().err


def test_a_list_with_a_column_of_the_gallery_is_refused(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(listed, [row | {"concept_rank": "1"} for row in rows(listed)])
    out = str(listed.parent / "scores.csv")
    assert main(["score", str(listed), "--out", out, "--scores", "cp", "--gallery", *OPTIONS]) == 2
    assert "column 'concept_rank', which the table of scores has too" in capsys.readouterr().err


def test_methods_are_compared_by_their_margins(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = [row | {"method": "AB"[number // 3], "key": "0"} for number, row in enumerate(rows(listed))]
    score(write_csv(listed, changed), "--gallery")
    capsys.readouterr()
    assert main(["compare", str(listed.parent / "scores.csv"), "--score", "concept_margin"]) == 0
    assert "A - B" in capsys.readouterr().out


def test_two_processes_give_the_gallery_of_one(listed: Path) -> None:
    alone = score(listed, "--gallery")
    out = listed.parent / "ranks.csv"
    arguments = ["score", str(listed), "--out", str(out), "--scores", "cp", "--gallery", *OPTIONS, "--devices", "2"]
    processes.command([sys.executable, "-m", "masc_metrics", *arguments])
    together = rows(out)
    for column in ("concept_rank", "concept_margin"):
        assert [float(row[column]) for row in together] == pytest.approx(
            [float(row[column]) for row in alone], abs=1e-6
        )


def test_pictures_beside_the_references_of_another_name_are_named(tmp_path: Path) -> None:
    for method in ("lora", "ip"):
        (tmp_path / "cat" / method).mkdir(parents=True)
    for name in ("reference", "reference_02", "reference-3", "lora/a", "ip/a"):
        for end in ("", "_mask"):
            Image.new("L" if end else "RGB", (16, 16)).save(tmp_path / f"cat/{name}{end}.png")
    read = read_samples(tmp_path, ["cp"])
    names = [[Path(image).name for image, _ in sample.references] for sample in read.samples]
    assert names == [["reference.png", "reference_02.png"]] * 2
    (note,) = read.notes
    assert note.startswith(f"{tmp_path}: left out 2 files, the first is: {tmp_path / 'cat/reference-3'}")
    assert note.endswith("; references are named reference.png, reference_2.png and so on")
