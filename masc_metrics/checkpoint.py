"""SigLIP2 checkpoints: their sources, and the configuration in their files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc_metrics.arguments import check_type
from masc_metrics.hub import fetch
from masc_metrics.images import ImageProcessing
from masc_metrics.reading import check_folder, load_json, quiet_transformers, read_processor_values, readable
from masc_metrics.settings import BUNDLED_MODEL, DEFAULT_MODEL

_BUNDLED_FOLDER = Path(__file__).parent / "assets" / BUNDLED_MODEL


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        folder: folder with config.json, safetensors weights, tokenizer and preprocessor files.
        commit: commit hash on the hub; None for a folder that is not from the hub.
        model_type: "siglip2" for NaFlex checkpoints, "siglip" for fixed-resolution ones.
        processing: preprocessing of images.
        text_length: number of positions of the text tower.
    """

    folder: Path
    commit: str | None
    model_type: str
    processing: ImageProcessing
    text_length: int


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Source of a checkpoint; equal sources refer to the same checkpoint.

    Attributes:
        model: hub id, "tiny", or absolute path of a folder.
        revision: branch, tag or commit on the hub; None is the main branch.
        cache_dir: folder for downloads; None is the default cache of the hub.
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
        """Create a source with absolute paths, so that different spellings of a path are equal.

        "tiny" is the bundled checkpoint, even if a folder of that name exists; "./tiny" or a Path is the folder.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if the model is empty, or a revision is given for a folder.
        """
        check_type(
            "model_name_or_path",
            model_name_or_path,
            (str, os.PathLike),
            "a hub id, a local folder or a SigLIP2Backbone",
        )
        model = os.fspath(model_name_or_path)
        if not model.strip():
            raise ValueError(f"model_name_or_path is empty; give {DEFAULT_MODEL!r}, another hub id, or a local folder")
        if revision is not None:
            check_type("revision", revision, str, "a branch, tag or commit as a string")
        if cache_dir is not None:
            check_type("cache_dir", cache_dir, (str, os.PathLike), "a folder")
        check_type("local_files_only", local_files_only, bool, "True or False")
        if model_name_or_path == BUNDLED_MODEL:
            if revision is not None:
                raise ValueError(f"revision is {revision!r} but {model!r} is the bundled checkpoint; omit revision")
            return cls(model)  # the name, not the folder, so that a pickle is valid in another installation
        if isinstance(model_name_or_path, str) and model.lower() == BUNDLED_MODEL and not Path(model).is_dir():
            raise ValueError(
                f"model_name_or_path is {model_name_or_path!r}; the bundled checkpoint is {BUNDLED_MODEL!r}"
            )
        is_path = isinstance(model_name_or_path, os.PathLike)
        if is_path or Path(model).expanduser().is_dir() or _looks_like_path(model):
            if revision is not None:
                raise ValueError(f"revision is {revision!r} but {model!r} is a folder; omit revision or give a hub id")
            return cls(os.path.realpath(os.path.expanduser(model)))
        cache = None if cache_dir is None else os.path.realpath(os.path.expanduser(cache_dir))
        return cls(model, revision, cache, local_files_only)

    def resolve(self) -> Checkpoint:
        """Find the checkpoint on this machine, or download it if necessary and allowed.

        Raises:
            OSError: if the checkpoint is not available (FileNotFoundError, PermissionError or ConnectionError); the
                error text says how to get it.
            ValueError: if it is not a SigLIP2 checkpoint.
        """
        if self.model == BUNDLED_MODEL:
            return _read(_BUNDLED_FOLDER, commit=None)
        return _read(*self.locate())

    def locate(self, command: str = "masc-metrics prefetch") -> tuple[Path, str | None]:
        """Find the folder of a checkpoint of any kind, or download it if necessary and allowed.

        Args:
            command: downloads the checkpoint, for error texts, as in :func:`masc_metrics.hub.fetch`.

        Returns:
            The folder, and its commit on the hub; None for a folder that is not from the hub.

        Raises:
            OSError: as :meth:`resolve`.
        """
        if not _looks_like_path(self.model):
            folder = fetch(self.model, self.revision, self.cache_dir, self.local_files_only, command)
            return folder, folder.name
        folder = Path(self.model)
        if not folder.is_dir():
            raise FileNotFoundError(f"no checkpoint folder at {folder}; check the path, or give a hub id")
        in_cache = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
        return folder, folder.name if in_cache else None


def prefetch(source: CheckpointSource) -> Path:
    """Download a checkpoint and return its folder, which can be copied to machines without internet access.

    Raises:
        OSError: if the checkpoint is not available; the error text says how to get it.
        ValueError: if it is not a SigLIP2 checkpoint.
    """
    return source.resolve().folder


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "~", "/")) or os.path.isabs(model) or "\\" in model or model.count("/") > 1


def _read(folder: Path, commit: str | None) -> Checkpoint:
    check_folder(folder)
    model_type = load_json(folder / "config.json").get("model_type")
    if model_type not in ("siglip2", "siglip"):
        raise ValueError(
            f"{folder} is a checkpoint of type {model_type!r}; give a SigLIP2 checkpoint, whose model_type is "
            "'siglip2' (NaFlex) or 'siglip' (fixed resolution)"
        )
    from transformers import AutoConfig

    with quiet_transformers(), readable(folder, "SigLIP2 checkpoint"):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        sizes = {
            "vision_config.patch_size": int(config.vision_config.patch_size),
            "text_config.max_position_embeddings": int(config.text_config.max_position_embeddings),
        }
        if model_type == "siglip":
            sizes["vision_config.image_size"] = int(config.vision_config.image_size)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{folder / 'config.json'} has {name} {size}; use the original config.json")
    values = read_processor_values(folder)
    return Checkpoint(
        folder=folder,
        commit=commit,
        model_type=model_type,
        processing=ImageProcessing(
            patch_size=sizes["vision_config.patch_size"],
            mean=values.mean,
            std=values.std,
            resample=values.resample,
            fixed_size=sizes.get("vision_config.image_size"),
        ),
        text_length=sizes["text_config.max_position_embeddings"],
    )
