"""``masc-metrics report``: which samples it shows, what the page holds, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from support.report_pages import page_data, page_pictures
from support.sample_lists import rows, write_csv
from support.segmenter_checkpoints import build_clipseg
from support.three_methods import three_methods

from masc_metrics.bench.report import page
from masc_metrics.bench.report.page import script_json
from masc_metrics.bench.report.rows import chosen_groups, read_table
from masc_metrics.cli import main
from masc_metrics.segmenters import release_segmenters

COLUMNS = ("sample_id", "method", "concept", "key", "cp", "pf", "left_out", "error", "reference_image")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored table of three methods, two concepts and two prompts; the last sample's image is missing."""
    samples = three_methods(tmp_path_factory.mktemp("three"), concepts=2, prompts=2, size=64)
    scores = samples.with_name("scores.csv")
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(samples), "--out", str(scores), *options]) == 3
    return scores


def report(scores: Path, *options: str) -> Path:
    out = scores.with_name("report.html")
    assert main(["report", str(scores), "--out", str(out), "--device", "cpu", "--quiet", *options]) == 0
    return out


def blocks(page: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    return page_data(page), page_pictures(page)


def table(folder: Path, *cells: tuple[str, ...]) -> Path:
    values = [dict(zip(("method", "key", "cp", "error"), row, strict=False)) for row in cells]
    defaults = dict.fromkeys(COLUMNS, "") | {"concept": "x", "reference_image": "r.png"}
    lines = [defaults | {"sample_id": str(number)} | row for number, row in enumerate(values)]
    return write_csv(folder / "scores.csv", lines)


def test_the_lowest_and_the_highest_have_no_sample_in_common(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, ("a", "1", "0.3"), ("a", "2", "0.1"), ("a", "3", "0.2"), ("a", "4", "nan")))
    groups = {group.title: group.samples for group in chosen_groups(found, 2)}
    assert groups == {"Lowest CP": ((1,), (2,)), "Highest CP": ((0,),)}


def test_samples_of_one_key_that_differ_most_between_methods_come_first(tmp_path: Path) -> None:
    """Of key 2, method a has the highest and the lowest score; the widest pair of two methods is 0.9 - 0.5."""
    cells = [("a", "1", "0.4"), ("b", "1", "0.7"), ("a", "2", "0.9"), ("a", "2", "0.4"), ("b", "2", "0.5")]
    found = read_table(table(tmp_path, *cells, ("a", "3", "0.8"), ("b", "4", "0.1")))
    (group,) = (group for group in chosen_groups(found, 5) if "differ" in group.title)
    assert group.samples == ((2, 4), (1, 0))


def test_states_tell_undefined_scores_from_those_that_are_not_computed(tmp_path: Path) -> None:
    cells = [
        ("a", "1", "0.3"),
        ("a", "2", "nan"),
        ("a", "3", ""),
        ("a", "4", "", "broken"),
        ("a", "5", "0.3", "no mask"),
    ]
    found = read_table(table(tmp_path, *cells))
    expected = ["scored", "undefined", "not scored", "failed", "incomplete"]
    assert [found.state(number) for number in range(5)] == expected


def test_pictures_and_maps_are_those_of_the_run(scored: Path) -> None:
    """A note would say that the mean of a match map is not the table's CP."""
    data, pictures = blocks(report(scored, "--samples", "2"))
    chosen = {number for group in data["groups"] for each in group["samples"] for number in each}
    assert {row for row, block in pictures.items() if "match" in block["images"]} == chosen
    assert all({*pictures[row]["images"]} == {"reference", "generated", "match", "background"} for row in chosen)
    assert not any(pictures[row]["notes"] for row in chosen)
    assert pictures.keys() == {*range(12)}
    assert pictures[11]["notes"] == ["No pictures: generated_image 1/overfitted 1.png: no such file"]
    assert data["scores"]["cp"][0] == pytest.approx(float(rows(scored)[0]["cp"]), abs=1e-5)


def test_maps_are_bounded_and_spread_over_the_lists(scored: Path) -> None:
    data, pictures = blocks(report(scored, "--samples", "2", "--maps", "4"))
    mapped = {row for row, block in pictures.items() if "match" in block["images"]}
    assert len(mapped) == 4
    assert mapped <= {group["samples"][0][0] for group in data["groups"]}


def test_a_file_that_has_changed_since_is_noticed(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = scored.parent / rows(scored)[0]["reference_image"]
    kept = changed.read_bytes()
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).convert("L").save(changed)
    try:
        _, pictures = blocks(report(scored))
    finally:
        changed.write_bytes(kept)
    assert "have changed since" in pictures[0]["notes"][0]
    assert "have another CP now" in capsys.readouterr().err


def test_transferred_masks_are_made_again(scored: Path) -> None:
    lines = [line | {"generated_mask": ""} for line in rows(scored.with_name("samples.csv"))[:6]]
    samples = write_csv(scored.with_name("maskless.csv"), lines)
    scores = scored.with_name("maskless-scores.csv")
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(samples), "--out", str(scores), *options, "--mask-source", "transfer"]) == 0
    data, pictures = blocks(report(scores, "--samples", "1"))
    row = data["groups"][0]["samples"][0][0]
    assert "background" in pictures[row]["images"]


def test_masks_from_text_are_made_again(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the segmenter of the run: the maps give the table's CP, and other weights are refused."""
    folder = build_clipseg(tmp_path / "clipseg")
    masks = {"generated_mask": "", "reference_mask": ""}
    lines = [line | masks | {"noun": "star"} for line in rows(scored.with_name("samples.csv"))[:2]]
    samples = write_csv(scored.with_name("unmasked.csv"), lines)
    scores = scored.with_name("unmasked-scores.csv")
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    segmenter = ("--mask-source", "clipseg", "--checkpoint", str(folder), "--threshold", "0.4")
    assert main(["score", str(samples), "--out", str(scores), *options, *segmenter]) == 0
    assert {row["reference_mask_source"] for row in rows(scores)} == {"clipseg"}
    assert all(row["cp"] not in ("", "nan") for row in rows(scores))
    _, pictures = blocks(report(scores, "--samples", "2"))
    for block in pictures.values():
        assert set(block["images"]) == {"reference", "generated", "match", "background"}
        assert block["notes"] == []
    release_segmenters()
    arguments = ["report", str(scores), "--out", str(tmp_path / "report.html"), "--device", "cpu", "--quiet"]
    weights = folder / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert main(arguments) == 1
    assert "but the run used sha256:" in capsys.readouterr().err


@pytest.mark.parametrize("reduction", ["mean", "max", "pool"])
def test_every_reference_of_a_sample_has_its_match_map(scored: Path, reduction: str) -> None:
    """Their maps give the table's CP, however the run combined the references; a note would say that they do not."""
    first, second = (rows(scored.with_name("samples.csv"))[number] for number in (0, -2))
    both = {name: f"{first[name]};{second[name]}" for name in ("reference_image", "reference_mask")}
    samples = write_csv(scored.with_name("two.csv"), [first | both, second])
    scores = scored.with_name("two-scores.csv")
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(samples), "--out", str(scores), *options, "--reference-reduction", reduction]) == 0
    _, pictures = blocks(report(scores))
    kinds = ["reference", "generated", "match", "background"]
    assert sorted(pictures[0]["images"]) == sorted([*kinds, "reference 2", "match 2"])
    assert sorted(pictures[1]["images"]) == sorted(kinds)
    assert pictures[0]["notes"] == []


def test_concepts_of_a_gallery_stand_between_floor_and_ceiling(scored: Path) -> None:
    scores = scored.with_name("gallery-scores.csv")
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    samples = scored.with_name("samples.csv")
    assert main(["score", str(samples), "--out", str(scores), *options, "--gallery"]) == 3  # one image is missing
    page = report(scores, "--maps", "0").read_text()
    summary = json.loads(scores.with_suffix(".summary.json").read_text())
    concept, limits = next(iter(summary["gallery"]["anchors"].items()))
    mean = summary["by"]["concept"][concept]["cp"]["mean"]
    cells = "".join(f'<td class="number">{value}</td>' for value in (f"{limits['floor']:.3f}", f"{mean:.3f}", "-"))
    assert f"<bdi>{concept}</bdi></th>{cells}" in page
    assert 'id="concepts"' not in report(scored, "--maps", "0").read_text()


def test_the_product_of_both_means_is_that_of_the_summary(scored: Path) -> None:
    page = report(scored, "--maps", "0").read_text()
    methods = json.loads(scored.with_suffix(".summary.json").read_text())["by"]["method"]
    for name, figures in methods.items():
        row = page[page.index(f'<th scope="row" class="name"><bdi>{name}</bdi>') :]
        found = re.findall(r'<span class="value">(-?[\d.]+)</span> <span class="quiet">([^<]*)', row)[2]
        low, high = figures["cp_times_pf"]["interval_95"]
        ends = (f"±{(high - low) / 2:.3f}", f"[{low:.3f}, {high:.3f}]")
        assert found[0] == f"{figures['cp_times_pf']['mean']:.3f}"
        assert found[1] == ends[min(high, -low) > 0.9999 or high == 1]


def test_bars_show_scores_of_any_size_in_their_order(tmp_path: Path) -> None:
    """Also those of a user's function, which are no cosines."""
    values = {"a": (30, 40), "b": (80, 70), "c": (-20, -10)}
    lines = [
        {"sample_id": f"{name}{n}", "method": name, "concept": n, "key": n, "mine": value}
        for name, pair in values.items()
        for n, value in enumerate(pair)
    ]
    scores = write_csv(tmp_path / "scores.csv", lines)
    (tmp_path / "scores.summary.json").write_text(json.dumps({"settings": {}, "undefined": {"mine": 0}}))
    page = report(scores, "--maps", "0").read_text()
    means = [float(place) for place in re.findall('class="point" x1="([0-9.]+)"', page)[:3]]
    assert 0 < means[2] < means[0] < means[1] < 100
    ends = re.findall('class="whisker" x1="([0-9.]+)" x2="([0-9.]+)"', page)[:3]
    assert all(float(low) < mean < float(high) for (low, high), mean in zip(ends, means, strict=True))


def test_what_limits_comparisons_is_said(tmp_path: Path) -> None:
    lines = [
        {"method": method, "concept": concept, "key": key, "cp": 0.5}
        for method in ("a", "b")
        for concept in ("x", "y")
        for key in ((1, 2, 2) if method == "a" else (1,))
    ]
    page = report(write_csv(tmp_path / "scores.csv", lines), "--maps", "0").read_text()
    assert "a: 2 samples have the concept, key (else prompt) and seed of another; their mean is compared" in page
    assert "a and b, CP: samples without a partner, which are left out: 2" in page


def test_many_methods_are_compared_with_one_on_request(tmp_path: Path) -> None:
    """200 methods would be 19 900 pairs for each score."""
    methods = [f"m{number}" for number in range(13)]
    lines = [
        {"method": name, "concept": c, "key": c, "cp": n / 20 + c / 100}
        for n, name in enumerate(methods)
        for c in range(2)
    ]
    scores = write_csv(tmp_path / "scores.csv", lines)
    page = report(scores, "--maps", "0").read_text()
    assert "13 methods are not compared pair by pair" in page
    assert page.count("<bdi>m0</bdi> <span") == 0
    page = report(scores, "--maps", "0", "--a", "m0").read_text()
    assert page.count("<bdi>m0</bdi> <span") == 12


def test_pictures_that_are_missing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(table(tmp_path, ("a", "1", "0.3"), ("a", "2", "0.4")), "--maps", "0")
    assert "2 of 2 samples have no picture, because their files cannot be read" in capsys.readouterr().err


def test_an_interval_that_ends_at_the_range_has_both_ends(tmp_path: Path) -> None:
    """Two concepts with a CP of 0.9 and 0.99: Student's interval would reach 1.52."""
    lines = [{"method": "a", "concept": concept, "cp": cp} for concept, cp in (("x", 0.9), ("y", 0.99))]
    page = report(write_csv(tmp_path / "scores.csv", lines), "--maps", "0").read_text()
    assert '<span class="value">0.945</span> <span class="quiet">[0.373, 1.000]</span>' in page


def test_without_maps_no_checkpoint_and_no_summary_are_needed(tmp_path: Path) -> None:
    page = report(table(tmp_path, ("a", "1", "0.3")), "--maps", "0").read_text()
    assert "There was no summary file" in page


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (None, 2, "scores.summary.json is missing"),
        ({"model": "/no/such/folder"}, 1, "no checkpoint folder at /no/such/folder.*give --maps 0"),
        ({"checkpoint": "sha256:other"}, 1, "the checkpoint tiny is sha256:.*but the run used sha256:other"),
    ],
)
def test_maps_need_the_checkpoint_of_the_run(
    settings: dict[str, str] | None, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = table(tmp_path, ("a", "1", "0.3"))
    if settings is not None:
        used = {"model": "tiny", "dtype": "float32", "revision": None, "cache_dir": None, "checkpoint": ""} | settings
        summary = {"settings": used, "undefined": {"cp": 0}}
        (tmp_path / "scores.summary.json").write_text(json.dumps(summary))
    assert main(["report", str(scores), "--out", str(tmp_path / "r.html"), "--device", "cpu"]) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "r.pdf"], "give a name that ends with .html"),
        (["--out", "r.html", "--a", "c"], "--a is 'c'; the methods are a, b"),
    ],
)
def test_mistakes_are_named(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, ("a", "1", "0.3"), ("b", "1", "0.3"))
    assert main(["report", "scores.csv", *options, "--maps", "0"]) == 2
    assert message in capsys.readouterr().err


def test_the_policy_allows_the_script_and_the_style_of_the_page_and_nothing_else(scored: Path) -> None:
    page = report(scored, "--maps", "0").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#|data:|[\s{}])[\w:/.]+", page.partition("<script")[0]) == []


def test_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    error = f"generated_image {tmp_path / 'sub' / 'x.png'}: no such file"
    lines = dict.fromkeys(COLUMNS, "") | {
        "generated_image": str(tmp_path / "sub" / "x.png"),
        "reference_image": "r.png",
    }
    scores = write_csv(tmp_path / "scores.csv", [lines | {"cp": "0.5"}, lines | {"error": error}])
    page = report(scores, "--maps", "0").read_text()
    assert str(tmp_path) not in page
    assert "generated_image sub/x.png: no such file" in page


def test_json_in_a_script_cannot_end_it() -> None:
    value = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "\ud800", "&amp;"]
    text = script_json(value)
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == value


def test_forty_thousand_samples_fit_into_thirty_megabytes(tmp_path: Path) -> None:
    """Long prompts are cut, and the page says so. A shorter table keeps them whole."""
    prompt = "a photograph of a very particular subject in a long and winding scene " * 10
    lines = [
        dict(
            zip(COLUMNS, (f"sample-{n}", f"m{n % 8}", f"c{n // 8 % 40}", str(n // 8), f"{n % 977 / 977}"), strict=False)
        )
        | {"prompt": f"{n} {prompt}", "generated_image": f"images/{n}.png", "reference_image": f"{n % 40}.png"}
        for n in range(40_000)
    ]
    columns = [*COLUMNS, "prompt", "generated_image"]
    large = report(write_csv(tmp_path / "scores.csv", lines, columns), "--maps", "0", "--a", "m0")
    assert large.stat().st_size < 30e6
    data, pictures = blocks(large)
    assert data["count"] == 40_000
    assert data["texts"]["prompt"]["values"][7].endswith(f"… ({len(lines[7]['prompt'])} characters)")
    assert len(pictures) < 100
    small, _ = blocks(report(write_csv(tmp_path / "scores.csv", lines[:10], columns), "--maps", "0"))
    assert small["texts"]["prompt"]["values"][7] == lines[7]["prompt"]


def test_the_report_of_the_docs_is_written_by_this_page() -> None:
    """If this fails, write docs/examples/report.html anew, as docs/development.md says."""
    text = (Path(__file__).parents[3] / "docs" / "examples" / "report.html").read_text(encoding="utf-8")
    style, script = (
        page.resources.files(page.__package__).joinpath(name).read_text() for name in ("page.css", "page.js")
    )
    assert style in text
    assert script in text
