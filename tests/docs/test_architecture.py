"""Architecture as described in docs/development.md: order of imports, size of modules, and the public interface."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import masc_metrics
from masc_metrics import functional, scores

PACKAGE = Path(masc_metrics.__file__).parent

# Modules in dependency order: a module imports only modules before it. A folder is one module, unless its subfolders
# are listed. Optional modules follow the core.
CORE = [
    "arguments",
    "settings",
    "grid",
    "locks",
    "precision",
    "images",
    "masks",
    "prompts",
    "scores",
    "references",
    "transfer",
    "reading",
    "hub",
    "checkpoint",
    "onednn",
    "towers",
    "cache",
    "backbone",
    "functional",
    "sample_ids",
    "sample_metric",
    "metrics",
    "identification",
]
BENCH = [
    "bench/options",
    "bench/sample",
    "bench/run",
    "bench/commands",
    "bench/baselines",
    "bench",
    "bench/agreement",
    "bench/sensitivity",
    "bench/report",
    "bench/datasets",
]
OPTIONAL = [
    "segmenters",
    "scenes",
    "assets",
    "plots",
    "intervals",
    *BENCH,
    "validation",
    "integrations",
    "demo",
    "cli",
    "__main__",
]
MODULES = [*CORE, *OPTIONAL]
LONG_FILE = 300
"""Lines of code, without blank lines, comments and docstrings, above which a file is listed in the output."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(parts: Sequence[str]) -> str:
    """Entry of the list that contains a path inside the package: its first two parts if listed, else its first."""
    subfolder = "/".join(parts[:2])
    return subfolder if subfolder in MODULES else parts[0]


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, also inside functions."""
    imported = set()
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
                imported.add(module_of(parts[1:]))
    return imported


def code_lines(source: str) -> int:
    """Number of lines without blank lines, comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(number not in docstrings and line.strip() != "" and line.strip()[0] != "#" for number, line in lines)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_import_only_modules_before_them(file: Path) -> None:
    module = module_of(file.relative_to(PACKAGE).with_suffix("").parts)
    if module == "__init__":
        assert imports_of(file) <= set(CORE)
        return
    assert module in MODULES, f"{file} is not listed; add it to the list here and in docs/development.md"
    allowed = MODULES[: MODULES.index(module)] + ([module] if file.parent != PACKAGE else [])
    wrong = imports_of(file) & set(MODULES) - set(allowed)
    assert not wrong, f"{module} imports {sorted(wrong)}, which are after it in the list"


def test_development_page_lists_every_file() -> None:
    page = (PACKAGE.parent / "docs" / "development.md").read_text()
    for file in FILES:
        if file.name != "__init__.py":
            assert file.name in page, f"{file.name} is missing in docs/development.md"


def test_files_of_pictures_are_opened_at_one_place_with_its_formats() -> None:
    opening = [
        file.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert opening == ["images.py"], "use images.open_picture"


def test_file_names_say_what_a_file_contains() -> None:
    for file in FILES:
        assert "util" not in file.stem
        assert "helper" not in file.stem


def test_long_files_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A remark, not a failure: no file is split because of its length."""
    assert code_lines('"""Docstring\nof two lines."""\n\n# comment\nx = 1  # code\ny = """text"""\n') == 2
    for file in FILES:
        if (count := code_lines(file.read_text())) > LONG_FILE:
            with capsys.disabled():
                print(f"\nremark: {file.relative_to(PACKAGE.parent)} has {count} lines of code")


def test_importing_the_package_imports_no_heavy_dependencies() -> None:
    program = (
        "import sys, torchmetrics\n"
        "before = set(sys.modules)\n"
        "import masc_metrics\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'transformers', 'lightning', 'huggingface_hub', 'matplotlib', 'tqdm'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["sensitivity", "--help"], ["--version"]])
def test_help_of_the_command_line_imports_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from masc_metrics.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'torchmetrics', 'transformers', 'numpy', 'PIL', 'scipy'}\n"
        "    print(end.code, sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


SURFACE = {
    "MaSCConceptPreservation": "class",
    "MaSCPromptFollowing": "class",
    "MaSCIdentification": "class",
    "SigLIP2Backbone": "class",
    "PatchFeatures": "class",
    "DEFAULT_MODEL": "str",
    "functional": "module",
    "scores": "module",
    "load_backbone": "function",
    "release_backbones": "function",
    "strip_subject": "function",
}


def test_public_names_are_listed() -> None:
    assert set(masc_metrics.__all__) == set(SURFACE)
    for name, kind in SURFACE.items():
        value = getattr(masc_metrics, name)
        assert {
            "class": inspect.isclass(value),
            "module": inspect.ismodule(value),
            "function": inspect.isfunction(value),
            "str": isinstance(value, str),
        }[kind]


def test_public_signatures_do_not_change() -> None:
    shared = (
        "(self, model_name_or_path, *, revision, cache_dir, local_files_only, max_num_patches, dtype, reduction, "
        "encode_batch_size{}, **metric_kwargs)"
    )

    def names(function: object) -> str:
        parameters = []
        for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
            star = {inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            if parameter.kind == inspect.Parameter.KEYWORD_ONLY and "*" not in parameters:
                parameters.append("*")
            parameters.append(star + parameter.name)
        return f"({', '.join(parameters)})"

    assert names(masc_metrics.MaSCConceptPreservation.__init__) == shared.format(", reference_reduction")
    assert names(masc_metrics.MaSCPromptFollowing.__init__) == shared.format(", pooling, strip_subject")
    assert names(masc_metrics.MaSCConceptPreservation.update) == (
        "(self, generated_images, reference_images, reference_masks, sample_ids)"
    )
    assert names(masc_metrics.MaSCPromptFollowing.update) == (
        "(self, generated_images, generated_masks, prompts, subjects, sample_ids, reference_images, reference_masks)"
    )
    assert names(functional.concept_preservation) == (
        "(generated_images, reference_images, reference_masks, *, backbone, max_num_patches, encode_batch_size, "
        "reference_reduction)"
    )
    assert names(functional.concept_matrix) == names(functional.concept_preservation)
    assert names(functional.match_maps) == names(functional.concept_preservation).replace(", reference_reduction", "")
    assert names(functional.transfer_masks) == f"{names(functional.match_maps)[:-1]}, refine)"
    assert names(masc_metrics.MaSCIdentification.update) == "(self, generated_images, targets, sample_ids)"
    assert names(functional.prompt_following) == (
        "(generated_images, generated_masks, prompts, subjects, *, backbone, max_num_patches, encode_batch_size, "
        "pooling, strip_subject, reference_images, reference_masks)"
    )


def test_public_names_are_documented_with_meaning_range_and_source() -> None:
    for function in (functional.concept_preservation, functional.prompt_following, scores.masked_max_cosine):
        text = inspect.getdoc(function) or ""
        for part in ("Args:", "Returns:", "[-1, 1]", "Raises:", "Source:"):
            assert part in text, f"{function.__name__} lacks {part}"
    assert "Source:" in (inspect.getdoc(masc_metrics.MaSCIdentification) or "")
    for metric in (masc_metrics.MaSCConceptPreservation, masc_metrics.MaSCPromptFollowing):
        text = inspect.getdoc(metric) or ""
        for part in ("Args:", "Range [-1, 1], higher is better", "Raises:", "Source:"):
            assert part in text
    for name in masc_metrics.__all__:
        if SURFACE[name] != "str":
            assert inspect.getdoc(getattr(masc_metrics, name)), f"{name} has no docstring"


def test_docstring_examples_run() -> None:
    examples = 0
    for file in FILES:
        if ">>>" in file.read_text():
            relative = file.relative_to(PACKAGE.parent).with_suffix("")
            result = doctest.testmod(importlib.import_module(".".join(relative.parts).removesuffix(".__init__")))
            assert result.failed == 0
            examples += result.attempted
    assert examples > 10


WITHOUT_SLOTS = {"Loader"}
"""Their base classes have no slots."""


def test_every_dataclass_is_frozen_and_has_slots() -> None:
    found: list[tuple[str, set[str]]] = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                if isinstance(call, ast.Name) and call.id == "dataclass":
                    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                    found.append((node.name, {ast.unparse(keyword) for keyword in keywords}))
    assert {"ImageBatch", "TransferredMasks", "MaskSensitivity", "Move", "Segmentation", "Run"} <= {
        name for name, _ in found
    }
    for name, keywords in found:
        needed = {"frozen=True"} if name in WITHOUT_SLOTS else {"frozen=True", "slots=True"}
        assert needed <= keywords, f"{name} has {sorted(keywords)}"
