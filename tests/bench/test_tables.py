"""Tables in files: what is read is what the file says, and what is written is what its name says."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sample_lists import rows, write_csv, written

from masc_metrics.bench import runner, tables
from masc_metrics.bench.sample import (
    COLUMNS,
    FILES,
    MEASURES,
    NUMBERS,
    Sample,
    SampleResult,
    columns,
    relative_to,
    table_row,
)
from masc_metrics.bench.sample_list import read_samples
from masc_metrics.bench.tables import printable, quoted, read_rows, stored_picture, text_table, write_table
from masc_metrics.cli import main

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--workers", "0", "--quiet")


def score(samples: Path, out: str, *options: str) -> int:
    return main(["score", str(samples), "--out", str(samples.parent / out), *TINY, *options])


def parquet(file: Path, listed: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), file)
    return file


# Forms of lists


def as_tabs(listed: list[dict[str, str]]) -> bytes:
    return "\n".join("\t".join(line) for line in (list(listed[0]), *(row.values() for row in listed))).encode()


def as_array(listed: list[dict[str, str]]) -> bytes:
    return json.dumps(listed, indent=2).encode()


def as_csv(listed: list[dict[str, str]], separator: str = ",") -> bytes:
    return "\n".join(separator.join(line) for line in (list(listed[0]), *(row.values() for row in listed))).encode()


def with_marks_and_spaces(listed: list[dict[str, str]]) -> bytes:
    return b"\xef\xbb\xbf" * 2 + as_csv([{f" {name} ": cell for name, cell in row.items()} for row in listed])


def with_backslashes(listed: list[dict[str, str]]) -> bytes:
    return as_csv([row | {name: row[name].replace("/", "\\") for name in FILES} for row in listed])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("list.tsv", as_tabs),
        ("list.json", as_array),
        ("list.csv", with_marks_and_spaces),
        ("list.csv", with_backslashes),
        ("list.txt", as_csv),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_other_forms_of_a_list_give_its_samples(
    tmp_path: Path, name: str, form: Callable[[list[dict[str, str]]], bytes]
) -> None:
    samples = written(tmp_path, 3)
    (tmp_path / name).write_bytes(form(rows(samples)))
    expected, found = (read_samples(file).samples for file in (samples, tmp_path / name))
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        for column in (*COLUMNS, "sample_id", "method", "concept", "key"):
            assert getattr(one, column) == getattr(other, column)


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", gzip.compress(HEADER.encode(), mtime=0), "is compressed; unpack it first"),
        ("a.csv", gzip.compress(HEADER.encode(), mtime=0), "is compressed; unpack it first"),
        ("a.xlsx", b"PK\x03\x04", "is a spreadsheet; save it as .csv, .tsv, .jsonl or .parquet"),
        ("a.csv", b"PK\x03\x04", "is a spreadsheet or a ZIP archive; save it as"),
        ("a.csv", b"PAR1....PAR1", "is Parquet; rename it to end with .parquet"),
        ("a.csv", HEADER.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.csv", b'[{"prompt": "a"}]', "it looks like JSON: rename it to end with .jsonl or .json"),
        (
            "a.csv",
            f"{HEADER}\na,b,c,d,caf\xe9,f\n".encode("latin-1"),
            "line 2 cannot be read as CSV in UTF-8: byte 0xe9",
        ),
        (
            "a.csv",
            HEADER.replace(",", "\t").encode(),
            "its cells are separated by '\\t'; give a comma-separated header",
        ),
        ("a.tsv", HEADER.encode(), "its cells are separated by ','; give a tab-separated header line"),
        ("a.jsonl", b'[\n{"prompt": "a"}\n]', "an array of objects must end with .json"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "if it has one object per line, rename it to end with .jsonl"),
        ("a.json", b'{"prompt": {"0": "a"}}', "holds an object; give an array of objects, one per row"),
        ("a.json", b'["a"]', "row 1 holds a string; give one object per line"),
    ],
)
def test_file_of_another_kind_is_refused_in_one_line_that_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="a\\.") as error:
        read_samples(tmp_path / name)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


# Cells

CELLS = ([1, "a"], {"a": 1}, True, False)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("column", ["prompt", "subject", "generated_image", "sample_id", "method", "key"])
def test_cell_that_is_no_text_is_an_error_where_text_is_used(tmp_path: Path, column: str, cell: object) -> None:
    row = dict.fromkeys((*COLUMNS, "sample_id", "method", "key"), "a") | {column: cell}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for file in (tmp_path / "a.jsonl", parquet(tmp_path / "a.parquet", [row | {column: _arrow(cell)}])):
        with pytest.raises(ValueError, match=rf"{column} is (an array|an object|true or false); give text"):
            read_samples(file)


def _arrow(cell: object) -> object:
    return ["1", "a"] if isinstance(cell, list) else cell


def test_bytes_are_no_text(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [dict.fromkeys(COLUMNS, "a") | {"prompt": b"a cat"}])
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: prompt is a bytes; give text"):
        read_samples(file)


def test_numbers_are_their_text_and_other_columns_are_json(tmp_path: Path) -> None:
    row: dict[str, object] = dict.fromkeys(COLUMNS, "a")
    row |= {"prompt": 7, "subject": None, "key": 1.5, "tags": ["a", "é"], "used": True, "note": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (sample,) = read_samples(tmp_path / "a.jsonl").samples
    assert (sample.prompt, sample.subject, sample.key) == ("7", None, "1.5")
    assert sample.extra == {"tags": '["a", "é"]', "used": "true", "note": None}


def test_readers_of_scores_refuse_cells_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "a", "concept": "c", "key": ["k"], "cp": 0.5, "pf": 0.5}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    file = str(tmp_path / "a.jsonl")
    for arguments in (["compare", file], ["agreement", file, file, "--score", "cp"]):
        assert main(arguments) == 2
        assert "a.jsonl, line 1: key is an array; give text" in capsys.readouterr().err


def test_error_texts_quote_at_most_200_characters_of_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 100_000
    samples = written(tmp_path, 3)
    first = rows(samples)
    assert quoted(long) == f"'{'x' * 196}..."
    spoiled = [first[0] | {"generated_image": long}, first[1] | {"prompt": f"{long}\ud800"}, first[2]]
    spoiled.append(first[2] | {"sample_id": long, "generated_mask": long, "subject": long})
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, spoiled)))
    assert score(tmp_path / "long.jsonl", "scores.jsonl") == 3
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, [spoiled[3]] * 2)))
    assert score(tmp_path / "twice.jsonl", "twice_scores.jsonl") == 2
    (tmp_path / "scored.jsonl").write_text(json.dumps({"method": long, "concept": long, "key": long, "cp": long}))
    assert main(["compare", str(tmp_path / "scored.jsonl")]) == 2
    assert main(["agreement", *[str(tmp_path / "scored.jsonl")] * 2, "--score", "cp"]) == 2
    printed = capsys.readouterr().err
    assert "x" * 150 in printed
    assert "x" * 201 not in printed
    assert all("x" * 201 not in row.cells["error"] for row in read_rows(tmp_path / "scores.jsonl"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Ja\rb\x07", "\\x1b[2Ja\\rb\\x07"),
        ("a\nb\tc\x9b", "a\\nb\\tc\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("ça 猫 👩\u200d👧 a\u00a0b", "ça 猫 👩\u200d👧 a\u00a0b"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_escaped_on_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_ids_methods_and_prompts_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    listed = rows(samples)
    for index, row in enumerate(listed):
        row |= {"method": f"\x1b[31m{index % 2}", "prompt": "\x1b]0;title\x07 a", "concept": f"\x1b[1m{index // 2}"}
        row |= {"sample_id": f"\x1b[2J{index}", "key": "\x1b[3m"}
    listed[0]["generated_mask"] = "\x1b[2J.png"
    assert score(write_csv(samples, listed), "scores.csv") == 3
    assert main(["compare", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr()
    assert "\\x1b[31m0" in printed.out
    assert "\\x1b[2J" in printed.err
    assert "\x1b" not in printed.out + printed.err
    assert rows(tmp_path / "scores.csv")[1]["sample_id"] == "\x1b[2J1", "the table has them as they are"


# Written tables

ROWS = [{"a": "x,\ty\n", "b": 0.1}, {"a": None, "b": float("nan")}, {"a": "=1+1", "b": None}, {"a": "é", "b": -2.0}]


@pytest.mark.parametrize("ending", tables.WRITTEN)
def test_table_is_written_as_its_name_says_and_read_again(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"t{ending}"
    write_table(file, ROWS, ("a", "b"), ("b",))
    found = [row.cells for row in read_rows(file)]
    empty = "" if ending in (".csv", ".tsv") else None
    assert [row["a"] for row in found] == ["x,\ty\n", empty, "=1+1", "é"]
    assert [None if not row["b"] else float(row["b"]) for row in found[::3]] == [0.1, -2.0]
    assert (found[1]["b"], found[2]["b"]) == ("nan", empty)
    first = file.read_bytes()
    if ending in (".jsonl", ".ndjson"):
        assert json.loads(first.splitlines()[0]) == {"a": "x,\ty\n", "b": 0.1}
        assert b"NaN" not in first, "JSON has no such number"
    if ending == ".tsv":
        assert first.startswith(b"a\tb\r\n")


@pytest.mark.parametrize("name", ["t.json", "t.xlsx", "t", "t.csv.gz", "t.txt"])
def test_other_names_of_tables_are_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 2)
    assert score(samples, name) == 2
    assert f"{name}; give a name that ends with .csv, .tsv, .jsonl, .ndjson or .parquet" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give a name that ends with"):
        write_table(tmp_path / name, ROWS, ("a", "b"), ("b",))
    assert not (tmp_path / name).exists()


def test_scores_in_every_format_are_equal_and_can_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 6)
    write_csv(samples, [row | {"key": "0", "concept": f"object_{i // 2}"} for i, row in enumerate(rows(samples))])
    found, compared, agreed = {}, {}, {}
    for ending in tables.WRITTEN:
        out = tmp_path / ending[1:] / f"scores{ending}"
        out.parent.mkdir()
        assert score(samples, f"{ending[1:]}/{out.name}") == 0
        found[ending] = [(row.cells["sample_id"], f"{float(row.cells['cp'] or 'nan'):.6f}") for row in read_rows(out)]
        capsys.readouterr()
        assert main(["compare", str(out)]) == 0
        compared[ending] = capsys.readouterr().out
        ratings = [
            {"method": row["method"], "key": row["key"], "g": i % 5, "h": i % 4} for i, row in enumerate(rows(samples))
        ]
        write_table(tmp_path / f"ratings{ending}", ratings, ("method", "key", "g", "h"), ("g", "h"))
        arguments = [str(out), str(tmp_path / f"ratings{ending}"), "--score", "cp", "--replicates", "0"]
        assert main(["agreement", *arguments]) == 0
        agreed[ending] = capsys.readouterr().out.replace(f"{ending}:", ":").replace(f"/{ending[1:]}/", "/")
        assert not list(tmp_path.glob("**/*.part"))
    for results in (found, compared, agreed):
        assert set(map(str, results.values())) == {str(results[".csv"])}


def test_every_number_of_a_result_is_a_number_in_parquet(tmp_path: Path) -> None:
    sample = Sample(1, "1", "a", None, "b", None, "p", None)
    result = SampleResult(
        0,
        {"cp": 0.5},
        dict.fromkeys(MEASURES, 1.0),
        mask_confidence=0.5,
        mask_check=0.5,
        reference_mask_confidence=0.5,
        prompt_tokens_cut=3,
    )
    row = table_row(sample, result, relative_to(tmp_path))
    write_table(tmp_path / "t.parquet", [row], columns(("cp",)), ("cp", *NUMBERS))
    (found,) = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert {name for name, cell in row.items() if isinstance(cell, int | float)} == {"cp", *NUMBERS}
    assert found == row


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_are_written_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(tables, "_TEXT_ROWS", 100)
    count = 3000
    listed = ({"sample_id": f"{number}", "prompt": "long " * 200, "cp": number / 2} for number in range(count))
    write_table(tmp_path / f"one{ending}", [{"sample_id": "0", "prompt": "p", "cp": 1.0}], ("cp",), ("cp",))
    tracemalloc.start()
    write_table(tmp_path / f"t{ending}", listed, ("sample_id", "prompt", "cp"), ("cp",))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # the texts have three megabytes
    found = read_rows(tmp_path / f"t{ending}")
    assert [row.cells["sample_id"] for row in found] == [str(number) for number in range(count)]
    assert found[-1].cells == {"sample_id": "2999", "prompt": "long " * 200, "cp": "1499.5"}


@pytest.mark.parametrize("file", ["a/b.png", "a/../b.png", "../b.png", "/x/b.png", "b.png", "a/", "a/..", "./a//b.png"])
def test_files_are_named_relative_to_a_folder_as_by_relpath(tmp_path: Path, file: str) -> None:
    for start in (tmp_path, tmp_path / "deep" / "er", Path("/"), Path()):
        for each in (file, str(tmp_path / file)):
            assert relative_to(start)(each) == os.path.relpath(each, start)


# Pictures in Parquet


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return written(tmp_path, 6)


def with_pictures(samples: Path, form: Callable[[bytes, str], object]) -> list[dict[str, Any]]:
    return [
        row | {name: form((samples.parent / row[name]).read_bytes(), row[name]) for name in FILES}
        for row in rows(samples)
    ]


def hugging_face(content: bytes, name: str) -> object:
    return {"bytes": content, "path": Path(name).name}


def plain(content: bytes, name: str) -> object:
    return content


@pytest.mark.parametrize("form", [hugging_face, plain])
@pytest.mark.parametrize("groups", [1000, 2])
def test_pictures_in_parquet_give_the_scores_of_files(
    listed: Path, form: Callable[[bytes, str], object], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_PICTURE_ROWS", 2)
    stored = listed.with_name("stored.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(with_pictures(listed, form)), stored, row_group_size=groups)
    assert score(listed, "files.csv") == 0
    assert score(stored, "stored.csv") == 0
    files, found = (rows(listed.with_name(f"{name}.csv")) for name in ("files", "stored"))
    for name in ("sample_id", "cp", "pf", "reference_coverage", "generated_subject_patches", "method", "concept"):
        assert [row[name] for row in found] == [row[name] for row in files]
    assert found[4]["generated_image"] == "stored.parquet#generated_image:4"
    assert found[4]["reference_image"] == "stored.parquet#reference_image:1", "equal pictures have one place"
    again = write_csv(listed.with_name("again.csv"), [{name: row[name] for name in COLUMNS} for row in found])
    assert score(again, "again_scores.csv") == 0
    assert [row["cp"] for row in rows(listed.with_name("again_scores.csv"))] == [row["cp"] for row in files]


def test_picture_without_bytes_is_the_file_of_its_path(listed: Path) -> None:
    stored = parquet(
        listed.with_name("paths.parquet"),
        [row | {name: {"bytes": None, "path": row[name]} for name in FILES} for row in rows(listed)],
    )
    # A column of nulls has no type; the datasets library writes binary.
    table = pyarrow.parquet.read_table(stored)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for name in FILES:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pyarrow.parquet.write_table(table, stored)
    assert [s.generated_image for s in read_samples(stored).samples] == [
        s.generated_image for s in read_samples(listed).samples
    ]


def test_few_pictures_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PICTURE_ROWS", 3)
    contents = [bytes([number]) * 100 for number in range(10)]
    file = parquet(tmp_path / "p.parquet", [{"picture": content} for content in contents])
    places = [f"{file}#picture:{row}" for row in (0, 1, 7, 2, 9, 9, 0)]
    assert [stored_picture(place) for place in places] == [contents[row] for row in (0, 1, 7, 2, 9, 9, 0)]
    assert tables._pictures(os.getpid(), str(file), "picture")._batch.num_rows <= 3
    for wrong in (f"{file}#picture:10", f"{file}#other:0"):
        with pytest.raises(OSError, match="has no picture in column"):
            stored_picture(wrong)
    assert stored_picture(str(tmp_path / "a.png")) is None


def test_broken_picture_in_parquet_is_an_error_of_its_row(listed: Path) -> None:
    cells = with_pictures(listed, hugging_face)
    cells[1]["generated_image"] = {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": "1.png"}
    assert score(parquet(listed.with_name("broken.parquet"), cells), "broken.csv") == 3
    errors = [row["error"] for row in rows(listed.with_name("broken.csv"))]
    assert [bool(error) for error in errors] == [False, True, False, False, False, False]
    assert "broken.parquet#generated_image:1: cannot be read as an image" in errors[1]


def test_what_is_printed_of_a_long_line_is_its_beginning_and_its_end() -> None:
    line = printable(f"noun {'x' * 10_000_000}; give a shorter noun")
    assert len(line) == 4000
    assert line.startswith("noun x")
    assert line.endswith("x; give a shorter noun")
    assert printable("x" * 4000) == "x" * 4000


def test_a_long_cell_widens_a_table_to_200_characters() -> None:
    assert list(map(len, text_table([["method", "cp"], ["x" * 10_000_000, "0.5"]]))) == [204, 205]


# Formulas

FORMULA = ("=", "+", "-", "@", "\t", "\r")


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@given(
    cells=st.lists(
        st.tuples(
            st.sampled_from(
                ["", "'", "''", "=", "+", "-", "@", "\t", "\r", "'=", "' +", " =", "-1", "-1e3", "nan", "[", '"']
            ),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
        ).map("".join),
        min_size=3,
        max_size=3,
    )
)
def test_escaped_formulas_are_safe_and_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, ending: str, cells: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("formulas")
    names = ("a", "=b", "'=b")
    row = dict(zip(names, cells, strict=True)) | {"n": -0.5}
    for name, escape in (("plain", False), ("escaped", True)):
        write_table(folder / f"{name}{ending}", [row], (*names, "n"), ("n",), escape_formulas=escape)
    (plain,), (read,) = (read_rows(folder / f"{name}{ending}") for name in ("plain", "escaped"))
    assert read.cells.keys() == row.keys() == plain.cells.keys()
    with (folder / f"escaped{ending}").open(newline="", encoding="utf-8") as stream:
        header, stored = csv.reader(stream, delimiter="\t" if ending == ".tsv" else ",")
    assert header == ["a", "'=b", "''=b", "n", "escaped_formulas"]
    marked = json.loads(stored[-1] or "[]")
    for name, cell, text in zip(names, cells, stored, strict=False):
        is_number = re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", cell.strip(), re.ASCII)
        assert not text.lstrip(" ").startswith(FORMULA) or is_number
        assert text == (f"'{cell}" if name in marked else cell)
        assert read.cells[name] == (cell if name in marked else plain.cells[name])
    assert stored[-2] == "-0.5"


def test_a_table_without_the_column_of_escaped_formulas_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,'=b\n'=1+1,'-x\n")
    assert read_rows(file)[0].cells == {"a": "'=1+1", "'=b": "'-x"}


def test_joined_tables_with_and_without_escaped_formulas_are_read_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    lines = [{"a": "'=1", "escaped_formulas": '["a"]'}, {"a": "'=1", "escaped_formulas": "nan"}, {"a": "'=1"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [row.cells for row in read_rows(file)] == [{"a": "=1"}, {"a": "'=1"}, {"a": "'=1"}]


@pytest.mark.parametrize("cell", ["yes", '{"a": 1}', '["b"]', "[1]"])
def test_another_column_of_the_name_of_escaped_formulas_is_refused(tmp_path: Path, cell: str) -> None:
    file = write_csv(tmp_path / "t.csv", [{"a": "1", "escaped_formulas": cell}])
    with pytest.raises(
        ValueError, match=r"t.csv, line 2: escaped_formulas is .*, not a JSON list of columns; leave it"
    ):
        read_rows(file)


def test_compare_report_and_agreement_read_escaped_tables_as_the_original_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 6)
    texts = [
        {
            "sample_id": f"=cmd({i})",
            "method": ("=HYPERLINK(1)", "'@b")[i % 2],
            "key": "-k",
            "concept": f"@{i // 2}",
            "prompt": f"+{row['prompt']}",
            "seed": "-1",
        }
        for i, row in enumerate(rows(samples))
    ]
    write_csv(samples, [row | changed for row, changed in zip(rows(samples), texts, strict=True)])
    printed = {}
    for name, options in (("plain", ()), ("escaped", ("--escape-formulas",))):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "scores.csv"
        assert score(samples, f"{name}/scores.csv", *options) == 0
        ratings = [{"method": t["method"], "key": t["key"], "g": i % 5, "h": i % 4} for i, t in enumerate(texts)]
        numbers = ("g", "h")
        write_table(
            out.with_name("ratings.csv"), ratings, ("method", "key", *numbers), numbers, escape_formulas=bool(options)
        )
        capsys.readouterr()
        assert main(["compare", str(out)]) == 0
        assert main(["report", str(out), "--out", str(out.with_suffix(".html")), "--maps", "0"]) == 0
        agreement = [str(out), str(out.with_name("ratings.csv")), "--score", "cp", "--replicates", "0"]
        assert main(["agreement", *agreement]) == 0
        printed[name] = capsys.readouterr().out.replace(f"{name}/", "")
    assert printed["plain"] == printed["escaped"]
    assert "=HYPERLINK(1)" in printed["plain"]
    stored = rows(tmp_path / "escaped" / "scores.csv")
    assert [row["sample_id"] for row in stored] == [f"'=cmd({i})" for i in range(6)]
    assert {row["method"] for row in stored} == {"'=HYPERLINK(1)", "'@b"}
    assert {row["seed"] for row in stored} == {"-1"}, "a number stays a number"
    plain, escaped = (read_rows(tmp_path / name / "scores.csv") for name in printed)
    assert [row.cells for row in plain] == [row.cells for row in escaped]
    summary = json.loads((tmp_path / "escaped" / "scores.summary.json").read_text())
    assert summary["settings"]["escape_formulas"] is True


@pytest.mark.parametrize("options", [("--escape-formulas",), ()])
def test_escaping_may_be_switched_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    samples = written(tmp_path, 4)
    write_csv(samples, [row | {"method": "=1+1"} for row in rows(samples)])
    first = () if options else ("--escape-formulas",)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_table", raise_full_disk)
        assert score(samples, "scores.csv", *first) == 2
    assert score(samples, "scores.csv", *options) == 0
    assert {row["method"] for row in rows(tmp_path / "scores.csv")} == {"'=1+1" if options else "=1+1"}
    assert {row.cells["method"] for row in read_rows(tmp_path / "scores.csv")} == {"=1+1"}
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["settings"]["escape_formulas"] is bool(options)


def raise_full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_formulas_are_escaped_in_tables_of_text_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    assert score(written(tmp_path, 2), f"scores{ending}", "--escape-formulas") == 2
    assert (
        f"--escape-formulas is given, but --out is {tmp_path}/scores{ending}, in which no cell is a formula; leave it"
        in (capsys.readouterr().err)
    )
