"""Command-line options from the fields of a frozen dataclass, and their values from a YAML file."""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from masc_metrics.settings import DTYPE_NAMES

_Options = TypeVar("_Options")


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command.

    Attributes:
        name: its name on the command line.
        summary: its line in the list of commands.
        description: what it does.
        options: frozen dataclasses whose fields are its options.
        run: ``module:function``, called with an instance of each of them; returns the exit code. The module is imported
            when the command is run.
        defaults: defaults that differ from those of the fields, by field name.
    """

    name: str
    summary: str
    description: str
    options: tuple[type, ...]
    run: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


def function_of(command: Command) -> Callable[..., int]:
    """Import what a command runs."""
    module, _, name = command.run.partition(":")
    function: Callable[..., int] = getattr(import_module(module), name)
    return function


def option(default: Any = MISSING, *, compare: bool = True, positional: bool = False, **settings: Any) -> Any:
    """A dataclass field that is a command-line option; its help is its entry in the class's docstring.

    Args:
        default: value if the option is not given; without a default it is required.
        compare: whether the value affects the results; see :class:`masc_metrics.bench.run.Run`.
        positional: whether it is given by position instead of by name.
        settings: further arguments of ``argparse.ArgumentParser.add_argument``, such as ``type`` and ``choices``.
    """
    return field(default=default, compare=compare, metadata={"positional": positional, "settings": settings})


def option_of(kind: type, name: str) -> Any:
    """A dataclass field that is the same option as a field of another dataclass; its help is there too, or its own."""
    (item,) = (item for item in fields(kind) if item.name == name)
    return field(default=item.default, metadata={**item.metadata, "of": kind})


def options_of(kind: type) -> Any:
    """A dataclass field that holds an instance of another dataclass, whose fields are options of the same command."""
    return field(default_factory=kind, metadata={"kind": kind})


def _options(kind: type) -> Iterator[tuple[Field[Any], str]]:
    """Fields that are options, those of contained dataclasses included, with their help."""
    documentation = _field_documentation(kind)
    for item in fields(kind):
        if contained := item.metadata.get("kind"):
            yield from _options(contained)
        else:
            described = (
                documentation if item.name in documentation else _field_documentation(item.metadata.get("of", kind))
            )
            yield item, described.get(item.name, "")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], command: Command) -> None:
    """Add a sub-command with an option for each field, and ``--config``."""
    parser = commands.add_parser(
        command.name, help=command.summary, description=command.description, allow_abbrev=False
    )
    for kind in command.options:
        for item, documentation in _options(kind):
            settings = dict(item.metadata["settings"])
            text = documentation.replace("%", "%%")
            if item.metadata["positional"]:
                if item.default is not MISSING:
                    settings |= {"default": item.default, "nargs": "?"}
                    text += f" (default: {item.default})"
                parser.add_argument(item.name, help=text, **settings)
                continue
            default = command.defaults.get(item.name, item.default)
            if default is MISSING:
                settings["required"] = True
            elif default is False:
                settings |= {"action": "store_true"}
            else:
                settings["default"] = list(default) if settings.get("action") == "append" else default
                if default not in (None, ()):
                    text += f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
            parser.add_argument(_flag(item.name), help=text, **settings)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with options; options on the command line override it"
    )


def parse_options(command: Command, arguments: argparse.Namespace) -> tuple[Any, ...]:
    """An instance of each of the command's dataclasses."""

    def parsed(kind: type) -> Any:
        values = {}
        for item in fields(kind):
            contained = item.metadata.get("kind")
            values[item.name] = parsed(contained) if contained else _frozen(getattr(arguments, item.name))
        return kind(**values)

    return tuple(map(parsed, command.options))


def expand_config(arguments: Sequence[str], commands: Mapping[str, Command]) -> list[str]:
    """Replace ``--config FILE`` by the options in the file, which come before those on the command line, and ``~``.

    A ``~`` that begins a value, or what follows its equals sign, is the home folder: shells replace it in unquoted
    words only, not in ``--out=~/x``, and never in a file. A folder ``~`` is ``./~``.

    Keys of the file are names of options, with underscores or dashes. A list gives a repeatable option several times;
    a mapping gives ``name=value``.

    Raises:
        ValueError: if the file is not a YAML mapping, or has a key that is not an option of the command.
        OSError: if it cannot be read.
    """
    parser = argparse.ArgumentParser(prog="masc-metrics", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    arguments = list(map(_with_home, arguments))
    found, rest = parser.parse_known_args(arguments)
    if not found.config or not rest or rest[0] not in commands:
        return arguments
    if len(found.config) > 1:
        raise ValueError(f"--config is given {len(found.config)} times; put all options into one file")
    command = commands[rest[0]]
    return [rest[0], *map(_with_home, _config_arguments(found.config[0], command)), *rest[1:]]


def _with_home(argument: str) -> str:
    return re.sub(r"(?:^|(?<==))~[^/\\=]*", lambda found: os.path.expanduser(found[0]), argument)


def _config_arguments(file: Path, command: Command) -> list[str]:
    found = (item for kind in command.options for item, _ in _options(kind))
    options = {item.name: item for item in found if not item.metadata["positional"]}
    arguments: list[str] = []
    seen: set[str] = set()
    for key, value in _config_values(file):
        name = str(key).replace("-", "_")
        if name not in options:
            raise ValueError(f"--config {file} has {key!r}; the options of {command.name} are {', '.join(options)}")
        if name in seen:
            raise ValueError(f"--config {file} has {key!r} twice; give each option once")
        seen.add(name)
        is_flag, repeatable = (
            options[name].default is False,
            options[name].metadata["settings"].get("action") == "append",
        )
        if is_flag != isinstance(value, bool) and value is not None:
            remedy = "true or false" if is_flag else "a value, or leave it out"
            raise ValueError(f"--config {file}: {key} is {str(value).lower() if not is_flag else value}; give {remedy}")
        if isinstance(value, dict):
            value = [f"{part}={content}" for part, content in value.items()]
        if value is True:
            arguments.append(_flag(name))
        elif isinstance(value, list) and repeatable:
            for part in value:
                arguments += [_flag(name), *map(str, part)] if isinstance(part, list) else [f"{_flag(name)}={part}"]
        elif value is not None and value is not False:
            arguments.append(f"{_flag(name)}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return arguments


def _config_values(file: Path) -> list[tuple[Any, Any]]:
    """Keys and values of a YAML mapping, repeated keys included."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ValueError(f"--config {file} is empty; give a mapping of options to values")
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"--config {file} is not a mapping; give one option a line, as in 'batch_size: 8'")
        loader = yaml.SafeLoader(text)
        return [(loader.construct_object(key), loader.construct_object(value, deep=True)) for key, value in node.value]
    except FileNotFoundError:
        raise FileNotFoundError(f"--config {file}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {file} cannot be read as YAML: {' '.join(str(error).split())}") from error


def _field_documentation(kind: type) -> dict[str, str]:
    """Text of each field in the ``Attributes`` section of a dataclass's docstring."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def positive_integer(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def non_negative_integer(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def any_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated choices, without repetitions."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        given = tuple(part.lower() if part.lower() in choices else part for part in given)
        for part in given:
            if part not in choices:
                hint = did_you_mean(part, choices)
                raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(choices)}{hint}")
        return tuple(dict.fromkeys(given))

    return parse


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """A hint at the choice that a name is close to; empty if there is none."""
    close = difflib.get_close_matches(name.lower().replace("_", "-"), choices, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def device_name(text: str) -> str:
    """The device that a word means: "gpu" is cuda, "0" is cuda:0, and "CUDA" is cuda."""
    name = text.strip().lower()
    name = f"cuda:{name}" if name.isdecimal() else name
    return "cuda" + name[len("gpu") :] if name == "gpu" or name.startswith("gpu:") else name


def dtype_name(text: str) -> str:
    """Name of a dtype that is given by it or by its short name, such as "bf16"."""
    name = DTYPE_NAMES.get(text, text)
    if name not in DTYPE_NAMES.values():
        known = ", ".join(f"{name} ({short})" for short, name in DTYPE_NAMES.items())
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {known}")
    return name


def fraction(text: str) -> float:
    """Parse a number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value
