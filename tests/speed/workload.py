"""What the benchmarks work on: checkpoints of the real shape with random weights, one evaluation, and the clock."""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own builders

import numpy as np
import torch
from PIL import Image
from support.checkpoints import build_checkpoint

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing, release_backbones
from masc_metrics.scenes import SCENES, Picture, Subject, render

WIDTH, MLP, HEADS, LAYERS, VOCABULARY = 1152, 4304, 16, 27, 256_000
"""so400m's shape."""

ASPECTS = ((512, 512), (768, 512), (512, 768), (1024, 512), (512, 1024), (640, 480), (480, 640), (896, 512))
"""Eight aspect ratios, as (height, width)."""

PROMPTS, SEEDS_A_PROMPT = 9, 4
SUBJECT = Subject("star", "red", "blue", "striped")

FOLDER = Path(tempfile.gettempdir()) / "masc_metrics_benchmarks"


@cache
def checkpoint(layers: int) -> Path:
    """A checkpoint of so400m's shape with this many layers in each tower; built once a machine."""
    return build(FOLDER, layers)


def build(
    folder: Path,
    layers: int,
    *,
    width: int = WIDTH,
    mlp: int = MLP,
    heads: int = HEADS,
    vocabulary: int = VOCABULARY,
) -> Path:
    """A checkpoint with random weights in a folder, unless it is there already; of so400m's shape by default."""
    folder = folder / f"so400m-random-{layers}-layers-naflex"  # masc-metric reads the family from the name
    if not (folder / "done").exists():
        build_checkpoint(folder, width=width, mlp=mlp, layers=layers, heads=heads, vocab_size=vocabulary)
        (folder / "done").touch()
    return folder


def picture(seed: int, size: tuple[int, int] = (512, 512), scene: str = SCENES[0]) -> Picture:
    return render(SUBJECT, scene, seed=seed, size=size)


@dataclass(frozen=True)
class Evaluation:
    """One concept of DreamBench++: one reference, nine prompts, four pictures each."""

    reference: Picture
    generated: tuple[Picture, ...]
    subject: str = SUBJECT.name

    @classmethod
    def of(cls, samples: int = PROMPTS * SEEDS_A_PROMPT) -> Evaluation:
        scenes = [SCENES[1 + index // SEEDS_A_PROMPT % PROMPTS] for index in range(samples)]
        pictures = tuple(picture(1 + index, scene=scene) for index, scene in enumerate(scenes))
        return cls(picture(0), pictures)

    @cached_property
    def for_the_rival(self) -> list[tuple[Any, ...]]:
        """Arguments of masc-metric's ``score`` for each sample, converted once."""
        reference, mask = pil(self.reference), mask_of(self.reference)
        return [(reference, mask, pil(one), mask_of(one), one.caption, self.subject) for one in self.generated]

    @property
    def arguments(self) -> dict[str, Any]:
        """What both metrics take."""
        return {
            "generated_images": [torch.from_numpy(one.image) for one in self.generated],
            "generated_masks": [torch.from_numpy(one.mask) for one in self.generated],
            "reference_images": [torch.from_numpy(self.reference.image)] * len(self.generated),
            "reference_masks": [torch.from_numpy(self.reference.mask)] * len(self.generated),
            "prompts": [one.caption for one in self.generated],
            "subjects": [self.subject] * len(self.generated),
        }


CP_NAMES = ("generated_images", "reference_images", "reference_masks")
PF_NAMES = ("generated_images", "generated_masks", "prompts", "subjects")


class Ours:
    """Both metrics, a score a sample, from the towers as they were read; nothing encoded yet at each call."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 16) -> None:
        settings: dict[str, Any] = {"dtype": dtype, "reduction": "none", "encode_batch_size": batch}
        self.cp = MaSCConceptPreservation(folder, **settings).to(device)
        self.pf = MaSCPromptFollowing(folder, **settings).to(device)
        self.backbone = self.cp.backbone.load(text_tower=True)

    def forget(self) -> None:
        self.backbone.cache.clear()
        self.backbone.text_cache.clear()
        self.cp.reset()
        self.pf.reset()

    def __call__(self, arguments: Mapping[str, Any], scores: Sequence[str] = ("cp", "pf")) -> np.ndarray:
        """(samples, scores): CP and PF, with nothing kept from an earlier call."""
        self.forget()
        metrics = {"cp": (self.cp, CP_NAMES), "pf": (self.pf, PF_NAMES)}
        for metric, names in (metrics[score] for score in scores):
            metric.update(**{name: arguments[name] for name in names})
        return torch.stack([metrics[score][0].compute() for score in scores], dim=1).cpu().numpy()


class Theirs:
    """masc-metric 0.3.0: ``MaSC.score``, a sample a call."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        from masc import MaSC

        self.scorer = MaSC(str(folder), device=device, dtype=dtype)

    def __call__(self, evaluation: Evaluation) -> np.ndarray:
        results = [self.scorer.score(*sample) for sample in evaluation.for_the_rival]
        return np.array([(result.cp, result.pf) for result in results])


def rival_is_installed() -> bool:
    """Whether masc-metric can be imported, installed or found on PYTHONPATH."""
    return find_spec("masc") is not None


def pil(one: Picture) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(one.image.transpose(1, 2, 0)))


def mask_of(one: Picture) -> np.ndarray:
    return one.mask.astype(np.uint8) * 255


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function in each round, one after the other, every second round backwards."""
    if warm_up:
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds):
        for name in list(functions)[:: 1 if index % 2 == 0 else -1]:
            times[name].append(seconds(functions[name], device))
    return times


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median, least and greatest of the rounds' own ratios: what the machine does in between falls out."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def flops_a_picture(layers: int, patches: int = 1024) -> float:
    """Multiply-adds count as two; norms and activations are left out."""
    products = 2 * patches * (4 * WIDTH**2 + 2 * WIDTH * MLP)
    attention = 4 * patches**2 * WIDTH
    return float(layers * (products + attention) + 2 * patches * 768 * WIDTH)


def where() -> dict[str, str]:
    """Machine, versions and date."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = f"{len(names)} x {names[0]}" if names else processor
    packages = ("torch", "transformers", "torchmetrics", "masc-metric", "numpy")
    return {
        "date": date.today().isoformat(),
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": _driver() if torch.cuda.is_available() else "none",
        "cuda": torch.version.cuda or "none",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """Version of the NVIDIA driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def release() -> None:
    """Let every network's memory go."""
    release_backbones()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
