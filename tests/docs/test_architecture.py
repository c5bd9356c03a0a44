"""The house as docs/development.md draws it: imports run down one list, the core stays small, the surface is listed."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import masc_metrics
from masc_metrics import functional, scores

PACKAGE = Path(masc_metrics.__file__).parent

# A room imports from rooms above it alone. A folder is one room unless its own folders are listed; what is optional
# comes after the core.
CORE = [
    "arguments",
    "grid",
    "precision",
    "images",
    "masks",
    "prompts",
    "scores",
    "hub",
    "reading",
    "checkpoint",
    "onednn",
    "towers",
    "cache",
    "backbone",
    "functional",
    "sample_ids",
    "sample_metric",
    "metrics",
]
BENCH = ["bench/options", "bench/run", "bench/baselines", "bench", "bench/agreement", "bench/datasets"]
OPTIONAL = ["scenes", "assets", "plots", "integrations", "demo", *BENCH, "cli", "__main__"]
ROOMS = [*CORE, *OPTIONAL]
CODE_LINES_OF_A_LARGE_FILE = 300

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return room_in(file.relative_to(PACKAGE).with_suffix("").parts)


def room_in(parts: Sequence[str]) -> str:
    """The innermost room on the way to a module, else its own name."""
    inner = "/".join(parts[:2])
    return inner if inner in ROOMS else parts[0]


def imports_of(file: Path) -> set[str]:
    """Rooms that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write masc_metrics.{node.module}"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "masc_metrics" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "masc_metrics" and len(parts) > 1:
                found.add(room_in(parts[1:]))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_down_the_list(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        assert imports_of(file) <= set(CORE)
        return
    assert room in ROOMS, f"{file} is in no room; add it to the list here and in docs/development.md"
    above = ROOMS[: ROOMS.index(room)] + ([room] if file.parent != PACKAGE else [])
    upward = imports_of(file) & set(ROOMS) - set(above)
    assert not upward, f"{room} imports {sorted(upward)}, which stand below it"


def test_the_house_is_drawn_as_it_stands() -> None:
    drawn = (PACKAGE.parent / "docs" / "development.md").read_text()
    for file in FILES:
        if file.name != "__init__.py":
            assert file.name in drawn, f"{file.name} is missing in docs/development.md"


def code_lines(text: str) -> int:
    """Lines that are neither blank, comment nor docstring."""
    tree = ast.parse(text)
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docstrings for n, line in lines)


def test_modules_are_named_by_content() -> None:
    for file in FILES:
        count = code_lines(file.read_text())
        if count > CODE_LINES_OF_A_LARGE_FILE:
            print(f"{file.relative_to(PACKAGE)} has {count} lines of code")  # a remark, not a failure
        assert "util" not in file.stem
        assert "helper" not in file.stem


def test_importing_the_package_imports_nothing_heavy_of_its_own() -> None:
    program = (
        "import sys, torchmetrics\n"
        "before = set(sys.modules)\n"
        "import masc_metrics\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'transformers', 'lightning', 'huggingface_hub', 'matplotlib', 'tqdm'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


SURFACE = {
    "MaSCConceptPreservation": "class",
    "MaSCPromptFollowing": "class",
    "SigLIP2Backbone": "class",
    "PatchFeatures": "class",
    "DEFAULT_MODEL": "str",
    "functional": "module",
    "scores": "module",
    "load_backbone": "function",
    "release_backbones": "function",
    "strip_subject": "function",
}


def test_the_public_surface_is_what_is_listed() -> None:
    assert set(masc_metrics.__all__) == set(SURFACE)
    for name, kind in SURFACE.items():
        value = getattr(masc_metrics, name)
        assert {
            "class": inspect.isclass(value),
            "module": inspect.ismodule(value),
            "function": inspect.isfunction(value),
            "str": isinstance(value, str),
        }[kind]


def test_signatures_are_the_promised_ones() -> None:
    shared = (
        "(self, model_name_or_path, *, revision, cache_dir, local_files_only, max_num_patches, dtype, reduction, "
        "encode_batch_size{}, **metric_kwargs)"
    )

    def names(function: object) -> str:
        bare = []
        for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
            star = {inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            if parameter.kind == inspect.Parameter.KEYWORD_ONLY and "*" not in bare:
                bare.append("*")
            bare.append(star + parameter.name)
        return f"({', '.join(bare)})"

    assert names(masc_metrics.MaSCConceptPreservation.__init__) == shared.format("")
    assert names(masc_metrics.MaSCPromptFollowing.__init__) == shared.format(", pooling, strip_subject")
    assert names(masc_metrics.MaSCConceptPreservation.update) == (
        "(self, generated_images, reference_images, reference_masks, sample_ids)"
    )
    assert names(masc_metrics.MaSCPromptFollowing.update) == (
        "(self, generated_images, generated_masks, prompts, subjects, sample_ids)"
    )
    assert names(functional.concept_preservation) == (
        "(generated_images, reference_images, reference_masks, *, backbone, max_num_patches, encode_batch_size)"
    )
    assert names(functional.match_maps) == names(functional.concept_preservation)
    assert names(functional.prompt_following) == (
        "(generated_images, generated_masks, prompts, subjects, *, backbone, max_num_patches, encode_batch_size, "
        "pooling, strip_subject)"
    )


def test_every_public_name_is_documented_with_meaning_range_and_source() -> None:
    for function in (functional.concept_preservation, functional.prompt_following, scores.masked_max_cosine):
        text = inspect.getdoc(function) or ""
        for part in ("Args:", "Returns:", "[-1, 1]", "Raises:", "Source:"):
            assert part in text, f"{function.__name__} lacks {part}"
    for metric in (masc_metrics.MaSCConceptPreservation, masc_metrics.MaSCPromptFollowing):
        text = inspect.getdoc(metric) or ""
        for part in ("Args:", "Range [-1, 1], higher is better", "Raises:", "Source:"):
            assert part in text
    for name in masc_metrics.__all__:
        if SURFACE[name] != "str":
            assert inspect.getdoc(getattr(masc_metrics, name)), f"{name} has no docstring"


def test_every_example_in_a_docstring_runs_as_it_stands() -> None:
    found = 0
    for file in FILES:
        if ">>>" in file.read_text():
            relative = file.relative_to(PACKAGE.parent).with_suffix("")
            result = doctest.testmod(importlib.import_module(".".join(relative.parts).removesuffix(".__init__")))
            assert result.failed == 0
            found += result.attempted
    assert found > 10


def test_values_that_cross_a_border_are_frozen() -> None:
    from masc_metrics.checkpoint import Checkpoint, CheckpointSource
    from masc_metrics.images import ImageBatch, ImageProcessing
    from masc_metrics.integrations.concept_scores import ConceptScores, Failure
    from masc_metrics.integrations.concepts import Concept, Order
    from masc_metrics.masks import MaskBatch
    from masc_metrics.plots import PanelRow, Shot
    from masc_metrics.scenes import ConceptBenchmark, Picture, Subject

    core = (masc_metrics.PatchFeatures, Checkpoint, CheckpointSource, ImageBatch, ImageProcessing, MaskBatch)
    optional = (Concept, ConceptBenchmark, ConceptScores, Failure, Order, PanelRow, Picture, Shot, Subject)
    for value in (*core, *optional):
        assert is_dataclass(value)
        assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "__slots__" in vars(value)
