"""Which SigLIP2 checkpoint is meant, and what its files say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc_metrics.hub import fetch
from masc_metrics.images import ImageProcessing

DEFAULT_MODEL = "google/siglip2-so400m-patch16-naflex"

BUNDLED_MODEL = "tiny"
"""Name of the small checkpoint that comes with the package: offline, trained on rendered scenes alone."""

_BUNDLED_FOLDER = Path(__file__).parent / "assets" / BUNDLED_MODEL
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Names of PIL's numbers, which the files use."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that lies on this machine.

    Attributes:
        folder: holds config.json, safetensors weights, tokenizer and preprocessor files.
        commit: the hub's commit hash; None for a folder that did not come from the hub.
        model_type: "siglip2" for NaFlex checkpoints, "siglip" for fixed-resolution ones.
        processing: how images are prepared for it.
        text_length: positions of its text tower.
    """

    folder: Path
    commit: str | None
    model_type: str
    processing: ImageProcessing
    text_length: int


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """What a user asks for; equal sources are one checkpoint.

    Attributes:
        model: hub id, "tiny", or a folder's absolute path.
        revision: branch, tag or commit on the hub; None is its main branch.
        cache_dir: where downloads are kept; None is the hub's usual place.
        local_files_only: never use the network.
    """

    model: str
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False

    @classmethod
    def of(
        cls,
        model_name_or_path: str | os.PathLike[str],
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> CheckpointSource:
        """The source with its paths made absolute, so that two spellings of one folder are equal.

        "tiny" is the bundled checkpoint, even where a folder of that name lies; "./tiny" or a Path is the folder.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if the model is empty, or a folder with a revision.
        """
        if not isinstance(model_name_or_path, (str, os.PathLike)):
            raise TypeError(
                f"model_name_or_path is a {type(model_name_or_path).__name__}; give a hub id, a local folder or a "
                "SigLIP2Backbone"
            )
        model = os.fspath(model_name_or_path)
        if not model.strip():
            raise ValueError(f"model_name_or_path is empty; give {DEFAULT_MODEL!r}, another hub id, or a local folder")
        if revision is not None and not isinstance(revision, str):
            raise TypeError(f"revision is a {type(revision).__name__}; give a branch, tag or commit as a string")
        if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike)):
            raise TypeError(f"cache_dir is a {type(cache_dir).__name__}; give a folder")
        if not isinstance(local_files_only, bool):
            raise TypeError(f"local_files_only is a {type(local_files_only).__name__}; give True or False")
        if model_name_or_path == BUNDLED_MODEL:
            if revision is not None:
                raise ValueError(f"revision is {revision!r} but {model!r} comes with the package; leave it out")
            return cls(model)  # by name, not folder, so that a pickle fits another installation
        if isinstance(model_name_or_path, str) and model.lower() == BUNDLED_MODEL and not Path(model).is_dir():
            raise ValueError(
                f"model_name_or_path is {model_name_or_path!r}; the bundled checkpoint is {BUNDLED_MODEL!r}"
            )
        is_path = isinstance(model_name_or_path, os.PathLike)
        if is_path or Path(model).expanduser().is_dir() or _looks_like_path(model):
            if revision is not None:
                raise ValueError(f"revision is {revision!r} but {model!r} is a folder, which has none; leave one out")
            return cls(os.path.realpath(os.path.expanduser(model)))
        cache = None if cache_dir is None else os.path.realpath(os.path.expanduser(cache_dir))
        return cls(model, revision, cache, local_files_only)

    def resolve(self) -> Checkpoint:
        """Find the checkpoint on this machine, downloading it first if it must be and may be.

        Raises:
            OSError: if it cannot be had (FileNotFoundError, PermissionError, ConnectionError by reason); the text
                says how to get it.
            ValueError: if it is no SigLIP2 checkpoint.
        """
        if self.model == BUNDLED_MODEL:
            return _read(_BUNDLED_FOLDER, commit=None)
        if _looks_like_path(self.model):
            folder = Path(self.model)
            return _read(folder, commit=folder.name if folder.parent.name == "snapshots" else None)
        folder = fetch(self.model, self.revision, self.cache_dir, self.local_files_only)
        return _read(folder, commit=folder.name)


def prefetch(source: CheckpointSource) -> Path:
    """Download a checkpoint ahead of time and return the folder to pass to machines without internet.

    Raises:
        OSError: if it cannot be had; the text says how to get it.
        ValueError: if it is no SigLIP2 checkpoint.
    """
    return source.resolve().folder


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "~", "/")) or os.path.isabs(model) or "\\" in model or model.count("/") > 1


def _read(folder: Path, commit: str | None) -> Checkpoint:
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}; check the path, or give a hub id")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no checkpoint; see `masc-metrics prefetch`")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no *.safetensors weights, the only ones that are read; convert them with "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    model_type = load_json(config_file).get("model_type")
    if model_type not in ("siglip2", "siglip"):
        raise ValueError(
            f"{folder} is a checkpoint of type {model_type!r}; give a SigLIP2 one, whose config.json says 'siglip2' "
            "(NaFlex) or 'siglip' (fixed resolution)"
        )
    from transformers import AutoConfig

    with quiet_transformers(), readable(folder):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    fixed_size = None if model_type == "siglip2" else int(config.vision_config.image_size)
    return Checkpoint(
        folder=folder,
        commit=commit,
        model_type=model_type,
        processing=_read_processing(folder, int(config.vision_config.patch_size), fixed_size),
        text_length=int(config.text_config.max_position_embeddings),
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No word from transformers of the tower left unread on purpose, or of defaults that this checkpoint overrides."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn whatever the libraries raise over a damaged folder into an error that names it."""
    try:
        yield
    except Exception as error:  # from KeyError to SafetensorError, by what is damaged
        raise ValueError(
            f"{folder} cannot be read as a SigLIP2 checkpoint ({type(error).__name__}: {error}); it may be damaged or "
            "its config.json may not fit its weights: download it again"
        ) from error


def read_tokenizer(folder: Path, needed: Sequence[str], remedy: str) -> Any:
    """A checkpoint's tokenizer, which pads and truncates on the right.

    Args:
        folder: the checkpoint's.
        needed: files of which one must be there.
        remedy: what to do if there is no tokenizer, for the error's end.

    Raises:
        OSError: if there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        # transformers 5 makes an empty tokenizer of nothing, without a word
        if not any((folder / name).is_file() for name in needed):
            raise FileNotFoundError(f"none of {', '.join(needed)} is there")
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything from OSError to TypeError, by what is missing
        raise OSError(
            f"{folder} has no tokenizer that can be read ({type(error).__name__}: {error}); {remedy}"
        ) from error
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _read_processing(folder: Path, patch_size: int, fixed_size: int | None) -> ImageProcessing:
    for name in _PROCESSOR_FILES:
        if (folder / name).is_file():
            values = load_json(folder / name)
            values = values.get("image_processor", values)
            if "image_mean" in values and "image_std" in values:
                break
    else:
        raise FileNotFoundError(
            f"{folder} holds no image processor file ({' or '.join(_PROCESSOR_FILES)}) with image_mean and image_std; "
            "save the processor beside the model: AutoProcessor.from_pretrained(original).save_pretrained(folder)"
        )
    resample = values.get("resample", 2)
    if resample not in RESAMPLE:
        raise ValueError(
            f"{folder / name} asks for PIL resampling {resample}; only 2 (bilinear) and 3 (bicubic) exist here"
        )
    with readable(folder / name):
        mean = [float(value) for value in values["image_mean"]]
        std = [float(value) for value in values["image_std"]]
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{folder / name} has image_mean {mean} and image_std {std}; both need three values")
    return ImageProcessing(
        patch_size=patch_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=RESAMPLE[resample],
        fixed_size=fixed_size,
    )


def load_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; ValueError names the file if it holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object")
    return values
