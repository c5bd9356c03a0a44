"""The command, run as a user runs it: photographs in files, bad rows among good ones."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.photographs import PROMPTS, Photograph, pasted, photograph
from support.sample_lists import rows as read
from support.sample_lists import write_csv

import masc_metrics
from masc_metrics import load_backbone
from masc_metrics.bench.commands import SCORE
from masc_metrics.bench.options import any_of, device_name, dtype_name, expand_config
from masc_metrics.bench.run import _score_names
from masc_metrics.bench.sample import COLUMNS
from masc_metrics.bench.sample_list import read_samples
from masc_metrics.bench.terminal import lasting_output
from masc_metrics.cli import main
from masc_metrics.functional import concept_preservation, prompt_following

PAIRS = [("cat", "coffee"), ("coffee", "rocket"), ("astronaut", "cat"), ("rocket", "astronaut")]
SIZES = [(300, 451), (256, 256), (200, 333), (400, 150)]


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Photograph, Photograph]]:
    pairs = zip(PAIRS, SIZES, strict=True)
    return [(pasted(subject, scene, *size), photograph(subject)) for (subject, scene), size in pairs]


@pytest.fixture
def rows(tmp_path: Path, pictures: list[tuple[Photograph, Photograph]]) -> list[dict[str, str]]:
    """Four good rows, and their files in folders."""
    listed = []
    for folder in ("out", "ref"):
        (tmp_path / folder).mkdir()
    for generated, reference in pictures:
        name = generated.name
        generated.image.save(tmp_path / "out" / f"{name}.png")
        generated.mask.save(tmp_path / "out" / f"{name}_mask.png")
        reference.image.save(tmp_path / "ref" / f"{name}.png")
        reference.mask.convert("1").save(tmp_path / "ref" / f"{name}_mask.png")
        files = (f"out/{name}.png", f"out/{name}_mask.png", f"ref/{name}.png", f"ref/{name}_mask.png")
        listed.append(dict(zip(COLUMNS, (*files, PROMPTS[name], name), strict=True)))
    return listed


def write(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    return write_csv(folder / "samples.csv", rows, columns)


def score(samples: Path, checkpoint: Path, *options: str) -> tuple[int, Path]:
    out = samples.parent / "scores.csv"
    arguments = ["score", str(samples), "--model", str(checkpoint), "--out", str(out), "--max-num-patches", "256"]
    return main([*arguments, *options]), out


def test_each_sample_has_a_row_with_scores_and_stripped_prompt(
    tmp_path: Path,
    rows: list[dict[str, str]],
    pictures: list[tuple[Photograph, Photograph]],
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out = score(write(tmp_path, rows), checkpoint, "--device", "cpu", "--batch-size", "3")
    printed = capsys.readouterr()
    assert code == 0
    generated, references = zip(*pictures, strict=True)
    backbone = load_backbone(checkpoint)
    cp = concept_preservation(
        [photo.image for photo in generated],
        [photo.image for photo in references],
        [photo.mask for photo in references],
        backbone=backbone,
        max_num_patches=256,
    ).tolist()
    pf = prompt_following(
        [photo.image for photo in generated],
        [photo.mask for photo in generated],
        [PROMPTS[photo.name] for photo in generated],
        [photo.name for photo in generated],
        backbone=backbone,
        max_num_patches=256,
    ).tolist()
    written = read(out)
    assert [row["sample_id"] for row in written] == ["1", "2", "3", "4"]
    assert [float(row["cp"]) for row in written] == pytest.approx(cp, abs=1e-6)
    assert [float(row["pf"]) for row in written] == pytest.approx(pf, abs=1e-6)
    assert [row["error"] for row in written] == [""] * 4
    assert [row["stripped_prompt"] for row in written] == [
        "A photo of at a brick wall",
        "in a night sky",
        "on a beach, astronaut smiling",
        "in a sunny garden",
    ]
    assert f"CP  {sum(cp) / 4:.4f} [" in printed.out, "the interval ends at 1"
    assert f"PF  {sum(pf) / 4:.4f} ±" in printed.out
    assert printed.out.count("  4 samples of 4 concepts\n") == 2
    assert "4/4" in printed.err, "a progress bar"
    quiet_code, _ = score(tmp_path / "samples.csv", checkpoint, "--quiet")
    assert (quiet_code, capsys.readouterr().err) == (0, "")


def test_bad_rows_are_reported_by_line_and_the_others_are_scored(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, _ = score(write(tmp_path, rows), checkpoint), capsys.readouterr()
    expected = read(good[1])
    Image.fromarray(np.zeros((50, 400), np.uint8)).save(tmp_path / "out" / "wide.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "out" / "red.png")
    (tmp_path / "out" / "text.png").write_text("no picture")
    (tmp_path / "out" / "cut.png").write_bytes((tmp_path / "out" / "cat.png").read_bytes()[:2000])
    first = rows[0]
    bad = [
        first | {"generated_image": "out/nowhere.png"},
        first | {"generated_mask": "out/wide.png"},
        first | {"prompt": "  "},
        first | {"reference_image": "out/text.png"},
        first | {"generated_image": "out/cut.png"},
        first | {"reference_mask": "ref"},
        first | {"generated_mask": "out/red.png", "generated_image": "out/red.png"},
        first | {"generated_image": "out"},
    ]
    mixed = [bad[0], rows[0], *bad[1:4], rows[1], rows[2], *bad[4:], rows[3]]
    code, out = score(write(tmp_path, mixed), checkpoint, "--batch-size", "4")
    printed = capsys.readouterr()
    assert code == 3
    written = read(out)
    assert len(written) == len(mixed)
    scored = [row for row in written if not row["error"]]
    for name in ("cp", "pf"):
        assert [float(row[name]) for row in scored] == pytest.approx([float(row[name]) for row in expected], abs=1e-6)
    errors = [row["error"] for row in written if row["error"]]
    for error, part in zip(
        errors,
        [
            "nowhere.png: no such file",
            "wide.png is (50, 400) but its image is (300, 451); give masks the shape of their image",
            "prompt is empty; give the text that generated_image ",
            "text.png: cannot be read as an image",
            "cut.png: cannot be read as an image",
            "ref: cannot be read as an image (it is not a regular file)",
            "red.png has PIL mode 'RGB' and is coloured",
            "out: cannot be read as an image",
        ],
        strict=True,
    ):
        assert part in error
    failed = [(row["cp"] != "", row["pf"] != "") for row in written if row["error"]]
    only_cp, only_pf, none = (True, False), (False, True), (False, False)
    assert failed == [none, only_cp, only_cp, only_pf, none, only_pf, only_cp, none]
    scores_of_first = [row["cp"] for row in written if row["error"] and row["cp"]][:2]
    assert [float(value) for value in scores_of_first] == pytest.approx([float(expected[0]["cp"])] * 2, abs=1e-6)
    for line, part in [(2, "nowhere.png"), (4, "(50, 400)"), (5, "prompt is empty"), (9, "cut.png")]:
        assert any(f"samples.csv, line {line} (sample" in text and part in text for text in printed.err.splitlines())
    assert "8 of 12 rows failed, 5 of them only in some scores; the others are in" in printed.err
    assert re.search(r"CP .* 7 samples", printed.out), "four good rows, and three whose generated mask or prompt is bad"


def test_sample_ids_are_kept(tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path) -> None:
    names = ["cat/0", "кофе", "3", "x"]
    named = [row | {"sample_id": name} for row, name in zip(rows, names, strict=True)]
    code, out = score(write(tmp_path, named, (*COLUMNS, "sample_id")), checkpoint)
    assert code == 0
    assert [row["sample_id"] for row in read(out)] == names


def test_undefined_scores_are_nan_and_counted(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (451, 300), 0).save(tmp_path / "ref" / "cat_mask.png")
    code, out = score(write(tmp_path, rows), checkpoint)
    assert code == 0
    assert math.isnan(float(read(out)[0]["cp"]))
    printed = capsys.readouterr()
    assert "3 samples of 3 concepts; 1 undefined" in printed.out
    assert "4 samples of 4 concepts\n" in printed.out
    assert (
        "samples.csv, line 2 (sample 1): CP is undefined, because reference_mask covers no reference patch"
        in printed.err
    )


def test_prompts_without_their_subject_are_reported(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows[2]["subject"], rows[3]["subject"] = "dog", ""
    assert score(write(tmp_path, rows), checkpoint)[0] == 0
    assert "1 of 4 prompts do not contain their subject as separate words" in capsys.readouterr().err


def test_prompts_that_a_text_network_cuts_and_masks_without_a_subject_are_counted(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / rows[2]["generated_mask"]
    with Image.open(mask) as marked:
        size = marked.size
    Image.new("L", size, 0).save(mask)
    rows[1]["prompt"] = "a photo of " + "a cat " * 100
    rows[1]["subject"] = "dog"
    code, out = score(write(tmp_path, rows), checkpoint)
    assert code == 0
    cut = [row["prompt_tokens_cut"] for row in read(out)]
    assert int(cut[1]) > 100
    assert [*cut[:1], *cut[2:]] == ["0"] * 3
    printed = " ".join(capsys.readouterr().err.split())
    assert "prompts whose end is ignored: 1; they have more tokens than a text network reads" in printed
    assert f"most in line 3, {cut[1]} tokens too many" in printed
    assert "the generated masks of 1 samples mark nothing, so their PF is" in printed
    summary = json.loads(out.with_suffix(".summary.json").read_text())
    assert summary["prompts_cut"] == summary["masks"]["generated"]["empty"] == 1


def test_earlier_scores_stay_until_new_ones_are_complete(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = write(tmp_path, rows), tmp_path / "scores.csv"
    out.write_text("earlier")
    assert score(samples, tmp_path / "nowhere")[0] == 1
    without_tokenizer = shutil.copytree(checkpoint, tmp_path / "without")
    (without_tokenizer / "tokenizer.json").unlink()
    capsys.readouterr()
    assert score(samples, without_tokenizer)[0] == 1
    printed = capsys.readouterr()
    assert "has no readable tokenizer" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert out.read_text() == "earlier"
    assert not list(tmp_path.glob("*.part"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masc_metrics.bench.scoring.concept_preservation_variants", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score(samples, checkpoint)
    assert out.read_text() == "earlier"
    assert score(samples, checkpoint)[0] == 0
    assert len(read(out)) == 4


def test_lines_are_counted_across_quoted_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    header = ",".join(["extra", *COLUMNS])
    body = '\n\n0,a,b,c,d,"a cat\non\na beach",cat\n1, a,b,c,d, "a, b",\n'
    file.write_bytes(b"\xef\xbb\xbf" + (header + body).encode())
    samples = read_samples(file).samples
    assert [sample.line for sample in samples] == [3, 6]
    assert samples[0].prompt == "a cat\non\na beach"
    assert samples[1].subject is None
    assert samples[0].generated_image == str(tmp_path / "a")
    for line, text in (
        ("2,a,b,c,d,a, b,cat", "line 7 has 8 cells for 7 columns; quote cells that hold a comma"),
        ("3,a,b,c,d,a", "line 7 has 6 cells for 7 columns; leave a cell empty for none"),
    ):
        file.write_bytes(b"\xef\xbb\xbf" + (header + body + line + "\n").encode())
        with pytest.raises(ValueError, match=f"samples.csv, {text}"):
            read_samples(file)


def test_images_are_rotated_by_their_exif_orientation(
    tmp_path: Path, checkpoint: Path, rows: list[dict[str, str]]
) -> None:
    photo = photograph("cat")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by a quarter turn to the left
    turned = photo.image.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "out" / "turned.png", exif=exif)
    photo.image.save(tmp_path / "out" / "plain.png")
    first = rows[0] | {"generated_mask": "ref/cat_mask.png"}
    both = [first | {"generated_image": f"out/{name}.png"} for name in ("turned", "plain")]
    code, out = score(write(tmp_path, both), checkpoint)
    assert code == 0
    turned_row, plain_row = read(out)
    assert float(turned_row["cp"]) == pytest.approx(float(plain_row["cp"]), abs=1e-6)
    assert float(turned_row["pf"]) == pytest.approx(float(plain_row["pf"]), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["score", "nowhere.csv", "--out", "o.csv"], 2, "nowhere.csv"),
        (["score", "empty.csv", "--out", "o.csv"], 2, "lacks the columns generated_image, generated_mask"),
        (["score", "header.csv", "--out", "o.csv"], 2, "header.csv lists no samples"),
        (["score", "latin.csv", "--out", "o.csv"], 2, "save it as CSV UTF-8"),
        (
            ["score", "open.csv", "--out", "o.csv"],
            2,
            "open.csv cannot be read as CSV in UTF-8 after line 3: unexpected end of data; close the open quote",
        ),
        (["score", "twice.csv", "--out", "o.csv"], 2, "has two columns of one name"),
        (
            ["score", "semicolons.csv", "--out", "o.csv"],
            2,
            "its cells are separated by ';'; give a comma-separated header",
        ),
        (["score", "nowhere.csv", "--out", "o.csv"], 2, "nowhere.csv: no such file"),
        (["score", "samples.xlsx", "--out", "o.csv"], 2, "is a spreadsheet; save it as .csv, .tsv, .jsonl"),
        (["score", "one.csv", "--out", "/proc/o.csv"], 2, "--out is /proc/o.csv, which cannot be written"),
        (["score", "one.csv", "--out", "o.csv", "--device", "meta"], 2, "device 'meta' cannot compute values"),
        (["score", "one.csv", "--out", "missing/o.csv"], 2, "but the folder missing does not exist; create it first"),
        (["score", "one.csv", "--out", "one.csv"], 2, "which is the sample list; give another file"),
        (["score", "one.csv", "--out", "."], 2, "which is not a regular file; give the name of a file"),
        (["score", "one.csv", "--out", "o.csv", "--device", "warp"], 2, "device 'warp' is not available"),
        (["score", "one.csv", "--out", "o.csv", "--device", "cuda:7"], 2, "device 'cuda:7' is not available"),
        (["score", "one.csv", "--out", "o.csv", "--model", "./nowhere"], 1, "no checkpoint folder at"),
        (
            ["score", "cells.csv", "--out", "o.csv"],
            2,
            "cells.csv, line 3 has 2 cells for 6 columns; leave a cell empty",
        ),
        (["score", "ids.csv", "--out", "o.csv"], 2, "ids.csv, line 4: sample_id 'x' repeats that of line 2; give each"),
        (["score", "id.csv", "--out", "o.csv"], 2, "id.csv, line 2: sample_id is empty; give each row its own"),
        (["score", "file.csv", "--out", "o.csv"], 2, "file.csv, line 2: reference_mask is empty; give a file"),
        (["score", "bad.jsonl", "--out", "o.csv"], 2, "bad.jsonl, line 1 is not valid JSON: "),
        (["score", "one.csv", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["score", "one.csv", "--config", "list.yaml"], 2, "list.yaml is not a mapping; give one option a line"),
        (["score", "one.csv", "--config", "typo.yaml"], 2, "typo.yaml has 'batchsize'; the options of score are out,"),
        (["score", "one.csv", "--config", "broken.yaml"], 2, "broken.yaml cannot be read as YAML: "),
        (["score", "one.csv", "--config", "flag.yaml"], 2, "flag.yaml: out is true; give a value, or leave it out"),
        (["score", "one.csv", "--config", "text.yaml"], 2, "text.yaml: quiet is maybe; give true or false"),
        (["score", "one.csv", "--config", "twice.yaml"], 2, "twice.yaml has 'batch-size' twice; give each option once"),
        (["score", "one.csv", "--config", "empty.yaml"], 2, "empty.yaml is empty; give a mapping of options to values"),
        (["score", "one.csv", "--config", "a.yaml", "--config", "b.yaml"], 2, "--config is given 2 times"),
        (["score", "one.csv", "--out", "o.xlsx"], 2, "give a name that ends with .csv, .tsv, .jsonl, .nd"),
        (
            ["score", "one.csv", "--out", "o.csv", "--num-nodes", "2"],
            2,
            "--num-nodes is 2, but no launcher has started",
        ),
        (["score", "list.jsonl", "--out", "o.csv"], 2, "list.jsonl, line 1: prompt is a JSON list; give text"),
        (["prefetch", "./nowhere"], 1, "no checkpoint folder at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_unusable_arguments_are_reported_in_one_line(
    change: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    header = ",".join(COLUMNS)
    Path("empty.csv").write_text("")
    Path("header.csv").write_text(header + "\n")
    Path("one.csv").write_text(f"{header}\na,b,c,d,e,f\n")
    Path("open.csv").write_text(f'{header}\na,b,c,d,"e,f\na,b,c,d,e,f\n')
    Path("twice.csv").write_text(f"{header},subject\n")
    Path("samples.xlsx").write_bytes(b"PK")
    Path("semicolons.csv").write_text(header.replace(",", ";") + "\n")
    Path("latin.csv").write_bytes(f"{header}\na,b,c,d,caf".encode() + b"\xe9,f\n")
    Path("cells.csv").write_text(f"{header}\na,b,c,d,e,f\na,b\n")
    Path("ids.csv").write_text(f"{header},sample_id\na,b,c,d,e,f,x\na,b,c,d,e,f,y\na,b,c,d,e,f,x\n")
    Path("id.csv").write_text(f"{header},sample_id\na,b,c,d,e,f,\n")
    Path("file.csv").write_text(f"{header}\na,b,c,,e,f\n")
    Path("bad.jsonl").write_text('{"prompt": \n')
    Path("list.yaml").write_text("- a\n")
    Path("typo.yaml").write_text("batchsize: 3\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("flag.yaml").write_text("out: true\n")
    Path("text.yaml").write_text("quiet: maybe\n")
    Path("twice.yaml").write_text("batch_size: 1\nbatch-size: 2\n")
    Path("empty.yaml").write_text("# nothing\n")
    Path("list.jsonl").write_text(json.dumps(dict.fromkeys(COLUMNS, "a") | {"prompt": ["a", "b"]}) + "\n")
    before = Path("one.csv").read_text()
    assert main(change) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1 or "YAML" in message, "the YAML parser's errors have several"
    assert printed.out == ""
    assert Path("one.csv").read_text() == before
    assert not Path("o.csv").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("gpu", "cuda"), ("gpu:1", "cuda:1"), ("0", "cuda:0"), ("CUDA", "cuda"), ("CUDA:2", "cuda:2"), ("CPU", "cpu")],
)
def test_common_words_for_a_device_are_understood(given: str, meant: str) -> None:
    assert device_name(given) == meant


def test_short_names_of_dtypes_are_understood_and_the_error_lists_all_names() -> None:
    assert [dtype_name(name) for name in ("bf16", "fp16", "fp32", "bfloat16")] == [
        "bfloat16",
        "float16",
        "float32",
        "bfloat16",
    ]
    known = re.escape("'bf16-mixed' is not one of float32 (fp32), bfloat16 (bf16), float16 (fp16)")
    with pytest.raises(argparse.ArgumentTypeError, match=known):
        dtype_name("bf16-mixed")


def test_names_of_scores_are_understood_in_capitals_and_others_get_a_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert _score_names("CP, Pf,CLIP-I,cp") == ("cp", "pf", "clip-i")
    for option, wrong, right in (
        ("--scores", "clip_i", "clip-i"),
        ("--scores", "dinoi", "dino-i"),
        ("--pooling", "foregroun", "foreground"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["score", "a.csv", "--out", str(tmp_path / "o.csv"), option, wrong])
        assert f"(did you mean {right}?)" in capsys.readouterr().err
    assert any_of("masked", "mutual-recall")("MASKED,mutual-recall") == ("masked", "mutual-recall")


def test_installed_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    command = str(Path(sys.executable).parent / "masc-metrics")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == masc_metrics.__version__
    monkeypatch.setattr(sys, "argv", ["masc_metrics", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("masc_metrics", run_name="__main__")
    for wrong in ([], ["score"], ["score", "a.csv", "--out", "b.csv", "--batch-size", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


def test_home_folder_is_replaced_in_options_and_in_config_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (home / "run.yaml").write_text("cache_dir: ~/cache\nmodel: ~/model\nbaseline_model: {clip-i: ~/clip}\n")
    assert main(["demo", "--out=~/demo.png"]) == 0
    assert (home / "demo.png").is_file()
    assert list(tmp_path.iterdir()) == [home], "no folder ~ is made"
    arguments = ["score", "~/a.csv", "--out", "~/b.csv", "--config=~/run.yaml", "--scores=cp,mine=~.f"]
    assert expand_config(arguments, {"score": SCORE}) == [
        "score",
        f"--cache-dir={home}/cache",
        f"--model={home}/model",
        f"--baseline-model=clip-i={home}/clip",
        f"{home}/a.csv",
        "--out",
        f"{home}/b.csv",
        "--scores=cp,mine=~.f",
    ]
    assert expand_config(["a~/b", "./~/c", "x/~"], {}) == ["a~/b", "./~/c", "x/~"]


def test_config_file_gives_options_and_the_command_line_overrides_them(
    tmp_path: Path, rows: list[dict[str, str]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, config = write(tmp_path, rows), tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'scores.csv'}\nmodel: {checkpoint}\nscores: [cp, siglip2-i]\nmax_num_patches: 256\n"
        "batch-size: 2\ndevice: cpu\nquiet: true\nrestart: false\nmin_coverage:\n"
    )
    assert main(["score", str(samples), "--config", str(config), "--max-num-patches", "128"]) == 0
    assert capsys.readouterr().err == "", "quiet"
    settings = json.loads((tmp_path / "scores.summary.json").read_text())["settings"]
    assert settings["scores"] == ["cp", "siglip2-i"]
    assert (settings["max_num_patches"], settings["batch_size"], settings["min_coverage"]) == (128, 2, None)
    config.write_text("baseline_model: {clip-i: a/b, dino-i: c/d}\n")
    assert main(["score", str(samples), "--out", str(tmp_path / "o.csv"), f"--config={config}"]) == 2
    assert "--baseline-model names clip-i, which --scores does not" in capsys.readouterr().err


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "masks",
        "score",
        "sensitivity",
        "compare",
        "report",
        "dreambench-plus",
        "orida",
        "agreement",
        "demo",
        "prefetch",
    ):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        text = capsys.readouterr().out
        options = re.findall(r"(?m)^  (--[\w-]+)[^\n]*\n?(.*)", text)
        assert len(options) >= 3
        for option, following in options:
            line = next(line for line in text.splitlines() if line.startswith(f"  {option}"))
            assert "  " in line.strip() or following.startswith(" " * 20), f"{name} {option} has no help"


def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "masc_metrics", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=100, check=False, **settings)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_stdout_changes_no_exit_code() -> None:
    with open("/dev/full", "w") as full:
        result = run("--help", stdout=full)
    expected = "masc-metrics: the rest of the output cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (0, expected)


def test_a_reader_that_has_closed_its_pipe_changes_no_exit_code_and_nothing_is_said() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run("--help", stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_characters_that_the_terminal_cannot_encode_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    with lasting_output():
        print("0.7252 \u00b10.2246")
    assert buffer.getvalue() == b"0.7252 \\xb10.2246\n"


def test_control_c_while_modules_are_imported_is_one_line_and_130(tmp_path: Path) -> None:
    """An import that is interrupted raises whatever its code makes of it."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n"
        "    raise ImportError('initialization failed')\n"
    )
    result = run("score", "samples.csv", "--out", "s.csv", env=os.environ | {"PYTHONPATH": python_path(tmp_path)})
    assert (result.returncode, result.stderr) == (130, "masc-metrics: interrupted\n")


def test_control_c_that_a_later_import_turns_into_an_error_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imported(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("masc_metrics.bench.score_command.read_samples", imported)
    assert main(["score", "samples.csv", "--out", "s.csv"]) == 130
    assert capsys.readouterr().err == "masc-metrics: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def python_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
