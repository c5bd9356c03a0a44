"""Readers of scores and human ratings: every format, made in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from masc_metrics.bench.agreement.names import concept_of, method_name, sample_key
from masc_metrics.bench.agreement.ratings import Scores, read_ratings, read_scores

KITTEN, MOTORCYCLE = "live_subject_animal_00_kitten-0", "object_00_motorcycle-3"


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def one(source: Path, score: str = "cp", *, name: str | None = None, seeds: str = "mean") -> Scores:
    (scores,) = read_scores(source, score, name=name, seeds=seeds)
    return scores


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("textual_inversion_sd_gs7_5_step100_seed42_torch_float16", "textual_inversion_sd"),
        ("dreambooth_sd_gs7_5_step100_seed42_torch_float16", "dreambooth_sd"),
        ("dreambooth_lora_sdxl_gs7_5_step100_seed42_torch_float16", "dreambooth_lora_sdxl"),
        ("blip_diffusion_gs7_5_step100_seed42_torch_float16", "blip_diffusion"),
        ("emu2_gs3_step50_seed42_torch_bfloat16", "emu2"),
        (
            "ip_adapter_plus_vit_h_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16",
            "ip_adapter_plus_vit_h_sdxl",
        ),
        (
            "ip_adapter_plus_vit_huge_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16",
            "ip_adapter_plus_vit_h_sdxl",
        ),
        (
            "ip_adapter_plus_sdxl_vit_huge_scale0_6_gs7_5_step100_seed42_torch_float16",
            "ip_adapter_plus_vit_h_sdxl",
        ),
        ("ip_adapter_vit_g_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16", "ip_adapter_vit_g_sdxl"),
        ("ip_adapter_vit_giant_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16", "ip_adapter_vit_g_sdxl"),
        ("ip_adapter_vit_giant_sdxl", "ip_adapter_vit_g_sdxl"),
        ("emu2_seed42", "emu2"),
        ("emu2_step50", "emu2"),
        ("IP-Adapter-Plus ViT-H SDXL", "ip_adapter_plus_vit_h_sdxl"),
        ("Textual Inversion SD", "textual_inversion_sd"),
        ("BLIP-Diffusion", "blip_diffusion"),
        ("emu2", "emu2"),
        ("my_steps_and_seeds", "my_steps_and_seeds"),
        ("seed42", "seed42"),
        ("_seed42", "_seed42"),  # removing it would leave nothing
    ],
)
def test_methods_have_the_short_names_of_the_rating_files(written: str, short: str) -> None:
    assert method_name(written) == short
    assert method_name(short) == short


@pytest.mark.parametrize(
    ("written", "key", "concept"),
    [
        (MOTORCYCLE, MOTORCYCLE, "object_00_motorcycle"),
        ("object_00_motorcycle-3_0", MOTORCYCLE, "object_00_motorcycle"),
        ("live_subject_animal_04_cotton-top_tamarin-7_12", "live_subject_animal_04_cotton-top_tamarin-7", None),
        ("object_09_t-shirt-10", "object_09_t-shirt-10", "object_09_t-shirt"),
        ("dog/on_the-beach", "dog/on_the-beach", "dog"),
        ("dog-beach", "dog-beach", "dog"),
        ("dog", "dog", "dog"),
    ],
)
def test_keys_have_no_seed_and_concepts_no_prompt(written: str, key: str, concept: str | None) -> None:
    assert sample_key(written) == key
    assert concept_of(key) == (concept or "live_subject_animal_04_cotton-top_tamarin")


TABLE = f"""method,key,cp,pf,dino-i,error
dreambooth_sd,{KITTEN},0.5,0.25,0.125,
dreambooth_sd,{MOTORCYCLE},nan,,0.5,no mask
emu2_gs3_step50_seed42_torch_bfloat16,{KITTEN},0.25,,1,
emu2_gs3_step50_seed42_torch_bfloat16,{KITTEN},0.75,0.5,0,
,{KITTEN},0.5,0.5,0.5,
"""


def test_score_file_gives_one_scorer_per_column_and_counts_dropped_cells(tmp_path: Path) -> None:
    file = write(tmp_path / "scores.csv", TABLE)
    cp, dino = read_scores(file, "cp", columns=["cp", "no-such", "dino-i"])
    assert (cp.name, cp.column, dino.name) == ("cp", "cp", "dino-i")
    assert cp.values == {("dreambooth_sd", KITTEN): 0.5, ("emu2", KITTEN): 0.5}
    assert cp.dropped == {"undefined (nan)": 1, "row without method or key": 1}
    assert dino.values[("dreambooth_sd", MOTORCYCLE)] == 0.5
    assert one(file, "pf").values == {("dreambooth_sd", KITTEN): 0.25, ("emu2", KITTEN): 0.5}
    assert one(file, "pf").dropped == {"empty": 2, "row without method or key": 1}
    assert [part.name for part in read_scores(file, "cp", columns=["cp", "pf"], name="masc")] == ["masc:cp", "masc:pf"]
    assert one(file, name="masc").name == "masc"


def test_last_seed_counts_on_request_and_the_others_are_dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "scores.csv", TABLE)
    last = one(file, seeds="last")
    assert last.values[("emu2", KITTEN)] == 0.75
    assert last.dropped["overwritten by a later number of its key"] == 1
    assert (last.seeds, one(file).seeds) == ("last", "mean")


def test_last_seed_is_the_last_by_file_name_in_any_order_of_rows(tmp_path: Path) -> None:
    for seeds in (range(11), range(10, -1, -1)):
        content = {f"{MOTORCYCLE}_{seed}": seed for seed in seeds}
        assert one(write(tmp_path / "emu2.json", content), seeds="last").values == {("emu2", MOTORCYCLE): 9}
        rows = "".join(f"emu2,{MOTORCYCLE},{seed},a/tgt_image/3_{seed}.jpg\n" for seed in seeds)
        table = one(write(tmp_path / "s.csv", f"method,key,cp,generated_image\n{rows}"), seeds="last")
        assert table.values == {("emu2", MOTORCYCLE): 9}
        assert table.dropped == {"overwritten by a later number of its key": 10}


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    rows = [("a", f"object_00_x-{prompt}_{seed}", prompt + seed / 2) for prompt in range(900) for seed in range(2)]
    rows.append(("b", "object_00_x-0", float("nan")))
    method, key, cp = zip(*rows, strict=True)
    table = pyarrow.table({"method": method, "key": key, "cp": cp})
    pyarrow.parquet.write_table(table, tmp_path / "scores.parquet")
    scores = one(tmp_path / "scores.parquet")
    assert scores.values == {("a", f"object_00_x-{prompt}"): prompt + 0.25 for prompt in range(900)}
    assert scores.dropped == {"undefined (nan)": 1}


def test_undefined_scores_are_counted_apart_from_empty_cells_and_with_their_reason(tmp_path: Path) -> None:
    rows = f"a,{KITTEN}_0,nan,0\na,{KITTEN}_1,nan,0.0\na,{KITTEN}_2,nan,5\na,{KITTEN}_3,,\na,{MOTORCYCLE},0.5,7\n"
    file = write(tmp_path / "s.csv", f"method,key,cp,reference_subject_patches\n{rows}")
    assert one(file).dropped == {
        "undefined (nan): reference mask that covers no patch by more than half": 2,
        "undefined (nan)": 1,
        "empty": 1,
    }
    (other,) = read_scores(write(tmp_path / "t.csv", file.read_text().replace(",cp,", ",dino-i,")), "cp",
                           columns=["dino-i"])  # fmt: skip
    assert other.dropped == {"undefined (nan)": 3, "empty": 1}


def test_folder_of_json_is_one_scorer_with_the_name_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data_dino_rating"
    write(folder / "dreambooth_sd.json", {f"{KITTEN}_0": 70.5, f"{MOTORCYCLE}_0": 20, f"{MOTORCYCLE}_1": 30})
    write(folder / "ip_adapter_vit_giant_sdxl.json", {KITTEN: None, MOTORCYCLE: 1})
    write(folder / "._emu2.json", "\x00")
    scores = one(folder)
    assert scores.name == "data_dino_rating"
    assert scores.values == {
        ("dreambooth_sd", KITTEN): 70.5,
        ("dreambooth_sd", MOTORCYCLE): 25,
        ("ip_adapter_vit_g_sdxl", MOTORCYCLE): 1,
    }
    assert scores.dropped == {"empty": 1}
    assert one(folder, seeds="last").values[("dreambooth_sd", MOTORCYCLE)] == 30


def test_pair_in_json_is_cp_and_pf(tmp_path: Path) -> None:
    file = write(tmp_path / "emu2.json", {KITTEN: [3, 1], MOTORCYCLE: [4, 0]})
    assert one(file, "cp").values == {("emu2", KITTEN): 3, ("emu2", MOTORCYCLE): 4}
    assert one(file, "pf", name="GPT-4o").values == {("emu2", KITTEN): 1, ("emu2", MOTORCYCLE): 0}


def test_judges_are_known_by_their_kind_and_not_by_their_numbers(tmp_path: Path) -> None:
    numbers = {KITTEN: 0, MOTORCYCLE: 4}
    for folder, judge in (
        ("data_gpt_rating/concept_preservation_gpt4v_full", True),
        ("data_gpt_rating", True),
        ("data_human_rating/merged_data/group1", True),
        ("data_dino_rating", False),
        ("gpt", False),
    ):
        file = write(tmp_path / folder / "emu2.json", numbers)
        assert one(file.parent).rates_0_to_4 is one(file).rates_0_to_4 is judge
    table = write(tmp_path / "data_gpt_rating" / "s.csv", f"method,key,cp\nemu2,{KITTEN},0\nemu2,{MOTORCYCLE},4\n")
    assert not one(table).rates_0_to_4
    for source in (table, tmp_path / "gpt"):
        (scores,) = read_scores(source, "cp", judge=True)
        assert scores.rates_0_to_4
    file = write(tmp_path / "gpt" / "emu2.json", {KITTEN: 70})
    assert one(file).values == {("emu2", KITTEN): 70}
    with pytest.raises(ValueError, match=rf"emu2.json, key {KITTEN}: 70 is not a rating from 0 to 4; correct it"):
        read_scores(file, "cp", judge=True)


def raw(root: Path) -> Path:
    for group, shift in (("group1", 0), ("group2", 1)):
        folder = root / "raw_data" / group
        write(folder / "1-dreambooth_sd.json", {KITTEN: [1 + shift, 0], MOTORCYCLE: [2, 2 + shift]})
        write(folder / "2-dreambooth_sd.json", {KITTEN: [3, 4 - shift]})
        write(folder / "1-emu2.json", {KITTEN: [0, None]})
    return root


def test_raw_ratings_of_several_files_are_merged_and_the_last_file_counts(tmp_path: Path) -> None:
    for source in (raw(tmp_path / "data_human_rating"), tmp_path, tmp_path / "data_human_rating" / "raw_data"):
        first, second = read_ratings(source, "cp")
        assert (first.name, second.name) == ("group1", "group2")
        assert first.values == {
            ("dreambooth_sd", KITTEN): 3,
            ("dreambooth_sd", MOTORCYCLE): 2,
            ("emu2", KITTEN): 0,
        }
        assert first.dropped == {"overwritten by a later number of its key": 1}
    _, second = read_ratings(tmp_path, "pf")
    assert second.values == {("dreambooth_sd", KITTEN): 3, ("dreambooth_sd", MOTORCYCLE): 3}
    assert second.dropped == {"overwritten by a later number of its key": 1, "empty": 1}


def test_merged_ratings_are_preferred_and_only_the_score_is_read(tmp_path: Path) -> None:
    raw(tmp_path)
    for group, rating in (("group1", 1), ("group2", 2), ("group3", 4)):
        write(tmp_path / "merged_data" / group / "dreambooth_sd-cp.json", {KITTEN: rating})
        write(tmp_path / "merged_data" / group / "dreambooth_sd-pf.json", {KITTEN: 0})
    (tmp_path / "merged_data" / "notes").mkdir()
    groups = read_ratings(tmp_path, "cp")
    assert [group.name for group in groups] == ["group1", "group2", "group3"]
    assert [group.values for group in groups] == [{("dreambooth_sd", KITTEN): rating} for rating in (1, 2, 4)]
    assert [group.values for group in read_ratings(tmp_path / "merged_data", "pf")] == [
        {("dreambooth_sd", KITTEN): 0}
    ] * 3
    assert one(tmp_path / "merged_data" / "group2").values == {("dreambooth_sd", KITTEN): 2}  # people as a scorer


def test_table_of_ratings_has_one_column_per_group(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", f"method,key,ann,bob,eve\nemu2,{KITTEN},4,0,\nemu2,{MOTORCYCLE},3.5,1,2\n")
    groups = read_ratings(file, "cp")
    assert [group.name for group in groups] == ["ann", "bob", "eve"]
    assert [group.values[("emu2", MOTORCYCLE)] for group in groups] == [3.5, 1, 2]
    assert [dict(group.dropped) for group in groups] == [{}, {}, {"empty": 1}]


def test_groups_can_be_chosen_among_the_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", f"method,key,seed,ann,bob,eve,set\nemu2,{KITTEN},3,4,0,1,live\n")
    assert [group.name for group in read_ratings(file, "cp", groups=["bob", "ann"])] == ["bob", "ann"]
    raw(tmp_path)
    write(tmp_path / "raw_data" / "pilot" / "1-emu2.json", {KITTEN: [1, 1]})
    assert [group.name for group in read_ratings(tmp_path, "cp")] == ["group1", "group2", "pilot"]
    named = read_ratings(tmp_path, "cp", groups=["group2", "group1"])
    assert [group.name for group in named] == ["group2", "group1"]
    with pytest.raises(ValueError, match=r"r.csv has 1 groups of raters \(ann\); give two or more"):
        read_ratings(file, "cp", groups=["ann", "ann"])
    for name in ("key", ""):
        with pytest.raises(ValueError, match=rf"--group is '{name}'; the groups of .*r.csv are seed, ann"):
            read_ratings(file, "cp", groups=["ann", name])
    with pytest.raises(ValueError, match=r"column set: 'live' is not a finite .* name those by --group"):
        read_ratings(file, "cp")
    with pytest.raises(ValueError, match=r"empty.csv lists no ratings"):
        read_ratings(write(tmp_path / "empty.csv", "method,key,ann,bob\n"), "cp")
    with pytest.raises(ValueError, match=r"--group is 'anna'; the groups of .*r.csv are seed, ann, bob, eve, set"):
        read_ratings(file, "cp", groups=["anna", "bob"])
    with pytest.raises(ValueError, match=r"--group is 'group3'; the groups of .* are group1, group2, pilot"):
        read_ratings(tmp_path, "cp", groups=["group1", "group3"])


def test_later_json_line_may_add_a_group(tmp_path: Path) -> None:
    lines = (
        {"method": "emu2", "key": KITTEN, "ann": 1},
        {"method": "emu2", "key": MOTORCYCLE, "ann": 2, "bob": 3},
    )
    file = write(tmp_path / "r.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    ann, bob = read_ratings(file, "cp")
    assert (ann.name, bob.name) == ("ann", "bob")
    assert bob.values == {("emu2", MOTORCYCLE): 3}
    assert bob.dropped == {"empty": 1}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("emu2.json", "{", r"emu2.json cannot be read as JSON: .*; correct it"),
        ("emu2.json", [1, 2], r"emu2.json holds an array; give an object of keys"),
        ("emu2.json", {KITTEN: "good"}, rf"emu2.json, key {KITTEN}: 'good' is not a finite number; correct it"),
        ("emu2.json", {KITTEN: True}, r"True is not a finite number"),
        ("emu2.json", {KITTEN: {"score": 3}}, r"\{'score': 3\} is not a finite number"),
        ("emu2.json", {KITTEN: [1, 2, 3]}, rf"key {KITTEN}: \[1, 2, 3\] is not a pair"),
        ("emu2.json", {KITTEN: None}, r"holds no number for 'emu2' \(1 x empty\)"),
        (
            "s.csv",
            f"method,key,cp\na,{KITTEN},1\na,{KITTEN},x\n",
            rf"line 3, method a, key {KITTEN}, column cp: 'x' is",
        ),
        ("s.csv", f"method,key,cp\na,{KITTEN},inf\n", r"'inf' is not a finite number"),
        ("s.csv", f"method,key,pf\na,{KITTEN},1\n", r"s.csv has no column cp; give one of pf"),
        ("s.csv", "method,cp\na,1\n", r"s.csv lacks the column key"),
        ("s.csv", "method,key,cp\n", r"s.csv lists no scores"),
        ("s.csv", f"method,key,cp\na,{KITTEN},\n", r"holds no number for 'cp' \(1 x empty\)"),
        (
            "s.csv",
            f"method,key,cp\na_step500,{KITTEN},1\na_step900,{KITTEN},0\n",
            r"line 3, .*'a_step500' and 'a_step900' are both 'a'",
        ),
    ],
)
def test_unusable_scores_are_named_with_the_remedy(tmp_path: Path, name: str, content: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        one(write(tmp_path / name, content))


def test_unusable_ratings_are_named_with_the_remedy(tmp_path: Path) -> None:
    raw(tmp_path)
    bad = write(tmp_path / "raw_data" / "group2" / "9-emu2.json", {KITTEN: [5, 0]})
    with pytest.raises(ValueError, match=rf"9-emu2.json, key {KITTEN}: 5 is not a rating from 0 to 4; correct it"):
        read_ratings(tmp_path, "cp")
    bad.unlink()
    with pytest.raises(ValueError, match=r"r.csv has 1 groups of raters \(ann\); give two or more"):
        read_ratings(write(tmp_path / "r.csv", f"method,key,ann\na,{KITTEN},1\n"), "cp")
    with pytest.raises(ValueError, match=r"line 2, .* column ann: '-1' is not a rating"):
        read_ratings(write(tmp_path / "r.csv", f"method,key,ann,bob\na,{KITTEN},-1,2\n"), "cp")
    with pytest.raises(ValueError, match=r"group1 has 0 groups of raters .* raw_data/<group>"):
        read_ratings(tmp_path / "raw_data" / "group1", "cp")
    with pytest.raises(ValueError, match=r"r.txt is neither a folder nor a table"):
        read_ratings(tmp_path / "r.txt", "cp")
    with pytest.raises(ValueError, match=r"holds no <method>.json"):
        read_scores(tmp_path / "raw_data", "cp")
    with pytest.raises(ValueError, match=r"seeds is 'first'; give 'mean' or 'last'"):
        read_scores(write(tmp_path / "s.csv", TABLE), "cp", seeds="first")
