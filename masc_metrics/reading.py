"""Files of a checkpoint folder: JSON, weights, tokenizer and image-processor values, with errors that name the folder.

All networks of the package are read here under the same rules: safetensors only, no code from the hub, no network
access, no missing, unexpected or integer weights, and the global random state is not touched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
"""Files of a checkpoint that are downloaded and read. Of weights safetensors only: reading a pickle executes code."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"

_ATTENTION = (None, "eager", "sdpa")
"""Attention that config.json may ask for. Other names are packages or repositories, whose code would be loaded."""

_FLOAT_WEIGHTS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights, as safetensors names them."""

_BLOCK = 2**23
"""Bytes of a file that are digested at a time."""

_PLAUSIBLE = (1e-3, 1e3)
"""Smallest image_std, and largest value of both: beyond, all images are alike, or their features not finite."""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # the files use PIL's numbers


class CheckpointError(Exception):
    """A checkpoint that can be read but not used; the commands end with the exit code of an unusable checkpoint."""


class NotFiniteError(CheckpointError, RuntimeError):
    """Features of a network that are not finite, as by overflow in float16 or damaged weights."""


class UnfitFilesError(CheckpointError, ValueError):
    """Files whose values do not fit each other or the network, such as a tokenizer of another network."""


@dataclass(frozen=True, slots=True)
class ProcessorValues:
    """Values of an image-processor file.

    Attributes:
        file: the file they were read from.
        mean: subtracted from each channel after scaling.
        std: divides each channel after that.
        resample: "bilinear" or "bicubic".
        rescale_factor: multiplies pixel values in 0..255 first; 1/255 if the file does not say.
    """

    file: Path
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    rescale_factor: float


def load_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not valid JSON or does not hold an object; the text names the file.
    """
    text = file.read_bytes()
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply to be read as JSON; use the original file") from None
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: model.safetensors, or the shards that its index names.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the index is damaged, or names a file of another format or folder.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} holds no *.safetensors weights ({_WEIGHTS} or shards with an index), the only format that "
            "is read; convert them with model.save_pretrained(folder, safe_serialization=True)"
        )
    shard_of = load_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index} has no weight_map; download the checkpoint again")
    for shard in shard_of.values():
        # transformers reads any other file by torch.load, whatever it is told about safetensors.
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}; only *.safetensors files of its folder are read")
    return [folder / shard for shard in sorted(set(shard_of.values()))]


def checkpoint_version(folder: Path, commit: str | None) -> str:
    """What a run records of a checkpoint and compares: its commit on the hub, or a digest of all files of a folder.

    The files of ``CHECKPOINT_FILES`` are read in full, in blocks on all processors. The digest is that of their names,
    sizes and blocks' digests.

    Raises:
        OSError: if a file cannot be read.
    """
    if commit is not None:
        return commit
    files = sorted({file for pattern in CHECKPOINT_FILES for file in folder.glob(pattern) if file.is_file()})
    sizes = [file.stat().st_size for file in files]
    blocks = [(file, start) for file, size in zip(files, sizes, strict=True) for start in range(0, size, _BLOCK)]
    digest = hashlib.sha256(json.dumps([[file.name, size] for file, size in zip(files, sizes, strict=True)]).encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for each in pool.map(_block_digest, *zip(*blocks, strict=True)):
            digest.update(each)
    return f"sha256:{digest.hexdigest()}"


def _block_digest(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return hashlib.sha256(stream.read(_BLOCK)).digest()


def check_folder(folder: Path) -> None:
    """Check that a folder is a complete checkpoint whose files are data and load no code or other checkpoint.

    Raises:
        FileNotFoundError: unless it holds config.json and all its safetensors weights.
        ValueError: if a file asks for code, other files or quantised weights; the text names the file and the entry.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a checkpoint")
    for file in weight_files(folder):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} lacks {file.name}, a part of its weights; download it again")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json); give a checkpoint with the adapter merged into it: "
            "model.merge_and_unload().save_pretrained(folder)"
        )
    _check_config(folder / "config.json")
    _check_sizes(folder)


def _check_config(file: Path) -> None:
    """Raise ValueError for an entry, at any depth, by which transformers would load code or another checkpoint."""
    for path, value in _entries(file):
        name = path.rpartition(".")[2]
        if name.endswith(("attn_implementation", "attn_implementation_internal", "experts_implementation")):
            asked = list(value.values()) if isinstance(value, dict) else [value]
            if wrong := [each for each in asked if each not in _ATTENTION]:
                raise ValueError(
                    f"{file} has {path} {wrong[0]!r}, code that is not transformers' own; remove the entry"
                )
        if name in ("quantization_config", "transformers_weights") and value is not None:
            raise ValueError(f"{file} has {path}, but only {_WEIGHTS} in floating point is read; give the original")
        if isinstance(value, dict) and value.get("use_pretrained_backbone") and isinstance(value.get("backbone"), str):
            raise ValueError(
                f"{file} takes weights from another checkpoint, backbone {value['backbone']!r}; set "
                "use_pretrained_backbone to false"
            )


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """All values of a JSON file at any depth with their paths, such as "vision_config.patch_size"."""
    left: list[tuple[str, Any]] = [("", load_json(file))]
    while left:
        path, value = left.pop()
        yield path, value
        if isinstance(value, dict):
            left += [(f"{path}.{key}".lstrip("."), each) for key, each in value.items()]
        elif isinstance(value, list):
            left += [(path, each) for each in value]


def _check_sizes(folder: Path) -> None:
    """Raise ValueError for a number of config.json that the weights cannot have, as building its network may not end.

    A network has no more layers than weights, and no side or width that exceeds the number of all their values.
    """
    try:
        shapes = [shape for _, _, shape in _weights_of(folder)]
    except Exception:  # the libraries raise any for damaged weights, which is an error when they are read
        return
    values = sum(map(math.prod, shapes))
    for path, value in _entries(folder / "config.json"):
        name = path.rpartition(".")[2]
        if not isinstance(value, (int, float)) or not any(part in name for part in (*_LAYERS, *_SIZES)):
            continue
        most = len(shapes) if any(part in name for part in _LAYERS) else values
        if value > most or ("heads" in name and value < 1):
            raise ValueError(
                f"{folder / 'config.json'} has {path} {value}, but the weights are {len(shapes)} tensors of {values} "
                "values; use the original config.json"
            )


_LAYERS = ("layers", "depth", "blocks", "stages")
_SIZES = (
    "size",
    "dim",
    "width",
    "channels",
    "heads",
    "embeddings",
    "queries",
    "patches",
    "registers",
    "tokens",
    "groups",
)
"""Parts of names in config.json whose values count layers, and whose values give a network's sizes."""


def _weights_of(folder: Path) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Name, dtype and shape of each weight, from the headers of the files."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is not a dict
                weight = weights.get_slice(name)
                yield name, weight.get_dtype(), weight.get_shape()


def _is_about_files(error: Exception) -> bool:
    """Whether an exception that a library raises while it reads files tells of their content.

    Libraries raise any exception, from KeyError to SafetensorError, for damaged files. But a lack of memory, permission
    or an installed package, a warning turned into an error, or an error of torch.compile says nothing about them.
    """
    if isinstance(error, OSError):
        return error.errno in (None, errno.ENOENT)
    if isinstance(error, (ImportError, MemoryError, Warning)):
        return False
    if isinstance(error, RuntimeError) and type(error) not in (RuntimeError, RecursionError):
        return False
    return "allocate memory" not in str(error) and "(os error " not in str(error)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' messages about unread towers and overridden defaults, and its progress bars."""
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
def readable(folder: Path, kind: str) -> Iterator[None]:
    """Turn any exception that libraries raise for a damaged folder into a ValueError that names it.

    Exceptions for other reasons, such as a lack of memory, are raised as they are.
    """
    try:
        yield
    except Exception as error:
        if not _is_about_files(error):
            raise
        raise ValueError(
            f"{folder} cannot be read as a {kind} ({type(error).__name__}: {' '.join(str(error).split())}); it may be "
            "damaged, or its config.json may not fit its weights: download it again"
        ) from error


@contextmanager
def usable(model: str) -> Iterator[None]:
    """Turn exceptions of a network for values of a wrong type in its files into UnfitFilesError that names it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise UnfitFilesError(
            f"{model} cannot be used ({type(error).__name__}: {' '.join(str(error).split())}); values in its "
            "JSON files may be wrong: use the original files"
        ) from error


class _OwnRandomNumbers(TorchDispatchMode):
    """Draw this thread's random numbers from a generator of its own.

    transformers 4 initialises random weights before it reads the real ones. Restoring the global state afterwards would
    rewind it for a training that draws from it in another thread.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._generator = torch.Generator()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            # torch.rand and its like have the argument in another overload.
            overload = func._overloadname.replace("default", "") or "generator"
            for name in (func._overloadname, overload, f"{overload}_generator"):
                candidate = getattr(func.overloadpacket, name, None)
                if candidate and any(argument.name == "generator" for argument in candidate._schema.arguments):
                    func, kwargs["generator"] = candidate, kwargs.get("generator") or self._generator
                    break
        return func(*args, **kwargs)


def read_network(
    folder: Path,
    class_name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    kind: str,
    part: str,
    options: Mapping[str, Any] | None = None,
    unused: tuple[str, ...] = (),
) -> Any:
    """Read a frozen network in eval mode through its transformers class; :func:`check_folder` has seen the folder.

    Args:
        folder: folder of the checkpoint.
        class_name: name of the transformers class.
        device: device of the network.
        dtype: dtype of the weights.
        kind: expected kind of the folder in error texts, such as "SigLIP2 checkpoint".
        part: part of it that is read, in error texts, such as "its vision tower".
        options: further arguments of ``from_pretrained``.
        unused: prefixes of weights in the file that the network does not use.

    Raises:
        ValueError: if the folder is damaged, or weights are missing, left over, not in floating point, or not finite
            in the dtype.
    """
    import transformers

    dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    with readable(folder, kind):
        integers = _integer_weights(folder, unused)
    if integers:
        name, dtype_in_file = min(integers.items())
        raise ValueError(
            f"{folder} has {len(integers)} weights of {part} that are not in floating point, such as {name} in "
            f"{dtype_in_file}; give the original checkpoint"
        )
    with (
        quiet_transformers(),
        readable(folder, kind),
        torch.inference_mode(False),
        torch.device("cpu"),
        _OwnRandomNumbers(),
    ):
        network, report = getattr(transformers, class_name).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{dtype_name: dtype, **(options or {})},
        )
    # transformers initialises missing weights randomly, drops unexpected ones, and only warns.
    unexpected = [key for key in report["unexpected_keys"] if not key.startswith(unused)]
    for verb, keys in (("lacks", report["missing_keys"]), ("has, beyond its config.json,", unexpected)):
        if keys:
            raise ValueError(
                f"{folder} {verb} {len(keys)} weights of {part}, such as {min(keys)}; use a complete checkpoint"
            )
    _check_finite(network, folder, part, dtype)
    return network.eval().requires_grad_(False).to(device)


def _check_finite(network: Any, folder: Path, part: str, dtype: torch.dtype) -> None:
    """Raise ValueError for a parameter that is not finite: 0.05 s per GB on a CPU."""
    broken = [
        name
        for name, values in network.named_parameters()
        if values.numel() and not torch.stack(values.detach().aminmax()).isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"{folder} has {len(broken)} weights of {part} that are not finite in {dtype}, such as {broken[0]}; give "
            "another dtype than float16, or the original checkpoint"
        )


def _integer_weights(folder: Path, unused: tuple[str, ...]) -> dict[str, str]:
    """Dtypes of the weights that would be cast from integers; buffers, such as positions, may be integers."""
    return {
        name: dtype
        for name, dtype, _ in _weights_of(folder)
        if dtype not in _FLOAT_WEIGHTS and name.endswith(("weight", "bias", "probe")) and not name.startswith(unused)
    }


def read_tokenizer(folder: Path, files: Sequence[str], remedy: str) -> Any:
    """Read the tokenizer of a checkpoint and set it to pad and truncate on the right.

    Args:
        folder: folder of the checkpoint.
        files: names of tokenizer files, at least one of which must exist.
        remedy: end of the error text, which says how to get a tokenizer.

    Raises:
        OSError: if there is no readable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        # transformers 5 silently builds an empty tokenizer if there is no file
        if not any((folder / name).is_file() for name in files):
            raise FileNotFoundError(f"none of {', '.join(files)} exists")
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if tokenizer.pad_token is None:
                raise ValueError("it has no pad_token")
            tokenizer.padding_side = tokenizer.truncation_side = "right"
            tokenizer([""], verbose=False)  # as it is used, so that wrong values in its files are found now
            tokenizer([""], padding="max_length", max_length=8, truncation=True)
    except Exception as error:
        if not _is_about_files(error):
            raise
        raise OSError(
            f"{folder} has no readable tokenizer ({type(error).__name__}: {' '.join(str(error).split())}); {remedy}"
        ) from error
    return tokenizer


def check_token_ids(ids: Tensor, embeddings: int, folder: Path) -> None:
    """Raise UnfitFilesError if a tokenizer gives an id without an embedding, on which torch would abort on a GPU."""
    if ids.numel() and (largest := int(ids.max())) >= embeddings:
        raise UnfitFilesError(
            f"{folder} has a tokenizer that gives the id {largest}, but its network has {embeddings} embeddings; use "
            "the tokenizer of this checkpoint"
        )


def read_processor_values(folder: Path) -> ProcessorValues:
    """Read the values of a checkpoint's image-processor file.

    Raises:
        FileNotFoundError: if there is no file with ``image_mean`` and ``image_std``.
        OSError: if the file cannot be read.
        ValueError: if a value is malformed or out of its range, or the resampling is neither bilinear nor bicubic.
    """
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            values = load_json(folder / name)
            values = values.get("image_processor", values)
            if "image_mean" in values and "image_std" in values:
                break
    else:
        raise FileNotFoundError(
            f"{folder} holds no {' or '.join(PROCESSOR_FILES)} with image_mean and image_std; save the processor next "
            "to the model: AutoProcessor.from_pretrained(original).save_pretrained(folder)"
        )
    file = folder / name
    resample = values.get("resample", 2)
    if not isinstance(resample, int) or resample not in _RESAMPLING:
        raise ValueError(f"{file} has resample {resample}; give 2 (bilinear) or 3 (bicubic)")
    with readable(file, "image processor"):
        mean, std = ([float(value) for value in values[key]] for key in ("image_mean", "image_std"))
        rescale_factor = float(values.get("rescale_factor", 1 / 255))
    check_normalisation(file, mean, std)
    if not (math.isfinite(rescale_factor) and rescale_factor > 0):
        raise ValueError(f"{file} has rescale_factor {rescale_factor}; give a number above 0, such as 1 / 255")
    return ProcessorValues(
        file=file,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=_RESAMPLING[resample],
        rescale_factor=rescale_factor,
    )


def check_normalisation(file: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless both have three finite values, and the standard deviation is above 0."""
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{file} has image_mean {mean} and image_std {std}; both need three values")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"{file} has image_mean {mean} and image_std {std}; give finite ones, and image_std above 0")
    if min(std) < _PLAUSIBLE[0] or max(*map(abs, mean), *std) > _PLAUSIBLE[1]:
        raise ValueError(
            f"{file} has image_mean {mean} and image_std {std}, which no network has; use the original file"
        )
