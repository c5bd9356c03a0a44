"""Where a SigLIP2 checkpoint comes from, and what its files say: download, lock, errors, preprocessing values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc_metrics.images import ImageProcessing

DEFAULT_MODEL = "google/siglip2-so400m-patch16-naflex"

# Weights as safetensors alone: a pickle runs code when it is read.
_FILES_NEEDED = ["*.json", "*.safetensors", "*.model", "*.txt"]
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, which the files use


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
        model: hub id or local folder.
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

        Raises:
            TypeError: if the model is neither a string nor a path.
            ValueError: if it is empty.
        """
        if not isinstance(model_name_or_path, (str, os.PathLike)):
            raise TypeError(
                f"model_name_or_path is a {type(model_name_or_path).__name__}; give a hub id, a local folder or a "
                "SigLIP2Backbone"
            )
        model = os.fspath(model_name_or_path)
        if not model.strip():
            raise ValueError(f"model_name_or_path is empty; give a hub id such as {DEFAULT_MODEL!r} or a local folder")
        if Path(model).expanduser().is_dir() or _looks_like_path(model):
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
        if _looks_like_path(self.model):
            folder = Path(self.model)
            return _read(folder, commit=folder.name if folder.parent.name == "snapshots" else None)
        folder = _fetch(self)
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


def _fetch(source: CheckpointSource) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = source.cache_dir or constants.HF_HUB_CACHE

    def snapshot(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                source.model,
                revision=source.revision,
                cache_dir=cache,
                local_files_only=local_files_only,
                allow_patterns=_FILES_NEEDED,
            )
        )

    with _explained(source):
        if source.local_files_only or constants.HF_HUB_OFFLINE:
            folder = snapshot(local_files_only=True)
            if not _is_complete(folder):
                raise LocalEntryNotFoundError(f"{folder} is incomplete")
            return folder
        with _one_process_at_a_time(source, Path(cache)) as waited:
            if waited:  # another process of this machine has just fetched it, unless it failed
                with suppress(LocalEntryNotFoundError):
                    folder = snapshot(local_files_only=True)
                    if _is_complete(folder):
                        return folder
            return snapshot(local_files_only=False)


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has its weights: an interrupted download leaves a folder without some of them."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / shard).is_file() for shard in _load_json(index)["weight_map"].values())
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def lock_file(source: CheckpointSource, cache: Path) -> Path:
    """The file that a process locks while it downloads this source."""
    name = hashlib.sha256(f"{source.model}@{source.revision}".encode()).hexdigest()[:16]
    return cache / f".masc-metrics-{name}.lock"


@contextmanager
def _one_process_at_a_time(source: CheckpointSource, cache: Path) -> Iterator[bool]:
    """Hold the lock of this source; yields whether another process held it before."""
    from filelock import FileLock, Timeout

    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file(source, cache))
        try:
            lock.acquire(timeout=0)
            waited = False
        except Timeout:
            lock.acquire()
            waited = True
    except OSError:  # a read-only cache, shared by a cluster: nothing will be written, so nothing needs the lock
        yield False
        return
    try:
        yield waited
    finally:
        lock.release()


@contextmanager
def _explained(source: CheckpointSource) -> Iterator[None]:
    """Turn the hub's errors into ones that say what to do."""
    from huggingface_hub import errors

    name = f"{source.model!r}" + (f" at revision {source.revision!r}" if source.revision else "")
    otherwise = "or pass the folder of a copy, made elsewhere by: masc-metrics prefetch " + source.model
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"checkpoint {name} is gated. Accept its licence at {_page(source.model)}, then log in with "
            f"`hf auth login` or set HF_TOKEN, {otherwise}"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"checkpoint {source.model!r} has no revision {source.revision!r}; see {_page(source.model)}/commits"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"checkpoint {name} is not on the hub, or is private. Check its name; if it is private or gated, accept "
            f"its licence and log in with `hf auth login` or set HF_TOKEN, {otherwise}"
        ) from None
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{source.model!r} is neither a folder nor a hub id ({error}); give a hub id such as {DEFAULT_MODEL!r} or "
            "a local folder"
        ) from None
    except errors.LocalEntryNotFoundError:
        asked_offline = source.local_files_only or bool(os.environ.get("HF_HUB_OFFLINE"))
        reason = "downloads are switched off" if asked_offline else "the hub cannot be reached"
        raise ConnectionError(
            f"checkpoint {name} is not (or not whole) in the local cache and {reason}. Run "
            f"`masc-metrics prefetch {source.model}` where there is internet (a gated one "
            " needs its licence accepted and `hf auth login` first) and pass the folder that it prints"
        ) from None
    except Exception as error:  # a broken transfer, a full disk: the hub's client has no common class for them
        raise OSError(
            f"checkpoint {name} could not be downloaded ({type(error).__name__}: {error}). Try again, {otherwise}"
        ) from error


def _page(model: str) -> str:
    return f"https://huggingface.co/{model}"


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
    model_type = _load_json(config_file).get("model_type")
    if model_type not in ("siglip2", "siglip"):
        raise ValueError(
            f"{folder} is a checkpoint of type {model_type!r}; give a SigLIP2 one, whose config.json says 'siglip2' "
            "(NaFlex) or 'siglip' (fixed resolution)"
        )
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    fixed_size = None if model_type == "siglip2" else int(config.vision_config.image_size)
    return Checkpoint(
        folder=folder,
        commit=commit,
        model_type=model_type,
        processing=_read_processing(folder, int(config.vision_config.patch_size), fixed_size),
        text_length=int(config.text_config.max_position_embeddings),
    )


def _read_processing(folder: Path, patch_size: int, fixed_size: int | None) -> ImageProcessing:
    for name in _PROCESSOR_FILES:
        if (folder / name).is_file():
            values = _load_json(folder / name)
            values = values.get("image_processor", values)
            if "image_mean" in values and "image_std" in values:
                break
    else:
        raise FileNotFoundError(
            f"{folder} holds no image processor file ({' or '.join(_PROCESSOR_FILES)}) with image_mean and image_std; "
            "save the processor beside the model: AutoProcessor.from_pretrained(original).save_pretrained(folder)"
        )
    resample = values.get("resample", 2)
    if resample not in _RESAMPLE:
        raise ValueError(
            f"{folder / name} asks for PIL resampling {resample}; only 2 (bilinear) and 3 (bicubic) exist here"
        )
    mean = [float(value) for value in values["image_mean"]]
    std = [float(value) for value in values["image_std"]]
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{folder / name} has image_mean {mean} and image_std {std}; both need three values")
    return ImageProcessing(
        patch_size=patch_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=_RESAMPLE[resample],
        fixed_size=fixed_size,
    )


def _load_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object")
    return values
