"""Files of a checkpoint folder: JSON, weights, tokenizer and image-processor values, with errors that name the folder.

All networks of the package are read here under the same rules: safetensors only, no remote code, no network access, no
missing or unexpected weights, and the global random state is preserved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # the files use PIL's numbers


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
        ValueError: if the file is not valid JSON or does not hold an object; the text names the file.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return values


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError unless the folder holds config.json and safetensors weights."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a checkpoint")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no *.safetensors weights, the only format that is read; convert them with "
            "model.save_pretrained(folder, safe_serialization=True)"
        )


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
    """Turn any exception that libraries raise for a damaged folder into a ValueError that names it."""
    try:
        yield
    except Exception as error:  # anything from KeyError to SafetensorError, depending on what is damaged
        raise ValueError(
            f"{folder} cannot be read as a {kind} ({type(error).__name__}: {error}); it may be damaged, or its "
            "config.json may not fit its weights: download it again"
        ) from error


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
    """Read a frozen network in eval mode through its transformers class.

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
        ValueError: if the folder is damaged, or weights are missing or left over.
    """
    import transformers

    dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    # transformers 4 initialises random weights before it reads the real ones, which would affect a running training.
    preserved_rng = torch.random.fork_rng(devices=[])
    with (
        quiet_transformers(),
        readable(folder, kind),
        torch.inference_mode(False),
        torch.device("cpu"),
        preserved_rng,
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
    return network.eval().requires_grad_(False).to(device)


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
    except Exception as error:  # transformers raises anything from OSError to TypeError
        raise OSError(f"{folder} has no readable tokenizer ({type(error).__name__}: {error}); {remedy}") from error
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def read_processor_values(folder: Path) -> ProcessorValues:
    """Read the values of a checkpoint's image-processor file.

    Raises:
        FileNotFoundError: if there is no file with ``image_mean`` and ``image_std``.
        ValueError: if a value is malformed, or the resampling is neither bilinear nor bicubic.
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
    if resample not in _RESAMPLING:
        raise ValueError(f"{file} has resample {resample}; give 2 (bilinear) or 3 (bicubic)")
    with readable(file, "image processor"):
        mean, std = ([float(value) for value in values[key]] for key in ("image_mean", "image_std"))
        rescale_factor = float(values.get("rescale_factor", 1 / 255))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{file} has image_mean {mean} and image_std {std}; both need three values")
    return ProcessorValues(
        file=file,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resample=_RESAMPLING[resample],
        rescale_factor=rescale_factor,
    )
