"""All GPU figures in one process: ``python tests/speed/gpu.py`` on a machine with CUDA, with nothing else running.

The stages run most important first. Each stage's results, and each batch size of the evaluation, are written to
``$OUT/gpu.json`` (by default next to ``results.json``) as soon as they exist, so a run that is cut short keeps what it
has measured. A stage that fails is recorded with its error, and the next one runs. ``page.py`` turns the file into the
GPU tables of docs/performance.md. ``--layers 1 --quick --device cpu`` rehearses all stages on a CPU in less than a
minute, into ``gpu-rehearsal.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own builders
sys.path.insert(0, str(Path(__file__).parents[2]))  # the package, which need not be installed

import numpy as np
import torch
import workload
from support.gpu import counted_synchronizations
from torch import Tensor, nn
from workload import ASPECTS, CP_NAMES, MLP, PF_NAMES, WIDTH, Evaluation, Ours, Theirs, interleaved, ratio, seconds

from masc_metrics.cache import content_digests

SYNCHRONIZING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        device: device type, "cuda" or, for a rehearsal, "cpu".
        layers: layers of each tower; 27 is so400m's.
        shape: further arguments of :func:`workload.build`; so400m's by default.
        samples: samples of the evaluation.
        batches: values of ``encode_batch_size``.
        standard_batch: the one that the other stages use.
        product: side of the square matrix product that gives the card's own rate.
        pictures: distinct pictures of the longest run.
        rounds: timed repetitions.
        warm_up: untimed calls of the protocol for one pair.
        calls: timed calls of it.
    """

    device: str
    layers: int
    shape: dict[str, int] = field(default_factory=dict)
    samples: int = 36
    batches: tuple[int, ...] = (8, 16, 32, 64)
    standard_batch: int = 16
    product: int = 8192
    pictures: int = 512
    rounds: int = 5
    warm_up: int = 5
    calls: int = 20

    @classmethod
    def quick(cls, device: str, layers: int) -> Plan:
        """A rehearsal: every stage, on a narrow network and a few samples."""
        return cls(
            device=device,
            layers=layers,
            shape={"width": 64, "mlp": 128, "heads": 4, "vocabulary": 1000},
            samples=2,
            batches=(1, 2),
            standard_batch=2,
            product=64,
            pictures=8,
            rounds=1,
            warm_up=1,
            calls=2,
        )


class Bench:
    """What the stages share: the plan, the checkpoint, the work, and the results so far."""

    def __init__(self, plan: Plan, folder: Path, out: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.out = out
        self.device = torch.device(plan.device)
        self.results: dict[str, Any] = {"where": workload.where(), "plan": asdict(plan)}

    def save(self, stage: str, found: dict[str, Any]) -> None:
        """Write a stage's results so far."""
        self.results[stage] = found
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")

    @cached_property
    def checkpoint(self) -> Path:
        return workload.build(self.folder, self.plan.layers, **self.plan.shape)

    @cached_property
    def work(self) -> Evaluation:
        return Evaluation.of(self.plan.samples)

    def ours(self, dtype: torch.dtype, batch: int | None = None) -> Ours:
        return Ours(self.checkpoint, self.plan.device, dtype, batch or self.plan.standard_batch)

    def time(self, function: Callable[[], object], rounds: int | None = None) -> dict[str, float]:
        """Median, least and greatest seconds of several calls after one untimed call."""
        function()
        times = [seconds(function, self.plan.device) for _ in range(rounds or self.plan.rounds)]
        return {"median": statistics.median(times), "least": min(times), "greatest": max(times)}

    def memory(self) -> int:
        return torch.cuda.memory_allocated() if self.plan.device == "cuda" else 0

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.plan.device == "cuda" else 0

    def reset_peak(self) -> None:
        if self.plan.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    @property
    def product_rate(self) -> float:
        rate: float = self.results["products"]["bfloat16"]["square"]
        return rate


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def products(bench: Bench) -> dict[str, Any]:
    """Floating-point operations a second of matrix products: a large square one, and the tower's own shapes."""
    side, tokens = bench.plan.product, bench.plan.standard_batch * min(1024, bench.plan.product)
    shapes = {
        "square": (side, side, side),
        "attention projection": (tokens, WIDTH, WIDTH),
        "MLP, first": (tokens, WIDTH, MLP),
        "MLP, second": (tokens, MLP, WIDTH),
    }
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        found[name_of(dtype)] = {}
        for name, (rows, inner, columns) in shapes.items():
            a = torch.randn(rows, inner, device=bench.device, dtype=dtype)
            b = torch.randn(columns, inner, device=bench.device, dtype=dtype)
            flops = 2 * rows * inner * columns
            repeats = max(1, round(2e13 / flops)) if bench.plan.device == "cuda" else 1

            def run(a: Tensor = a, b: Tensor = b, repeats: int = repeats) -> None:
                for _ in range(repeats):
                    torch.nn.functional.linear(a, b)

            found[name_of(dtype)][name] = repeats * flops / bench.time(run)["median"]
    return found | {"unit": "FLOP/s", "tf32": torch.backends.cuda.matmul.allow_tf32}


def evaluation(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """CP and PF of all samples by batch size: speed, share of the card's own rate, memory."""
    before = bench.memory()
    ours = bench.ours(dtype)  # both towers are read here
    weights = bench.memory() - before
    arguments = bench.work.arguments
    flops = workload.flops_a_picture(bench.plan.layers) * (bench.plan.samples + 1)
    found: dict[str, Any] = {"weights_bytes": weights, "batches": {}}
    for batch in bench.plan.batches:
        ours = bench.ours(dtype, batch)
        ours.forget()
        try:
            ours(arguments)
        except torch.cuda.OutOfMemoryError:
            found["out_of_memory_at"] = batch
            break
        ours.forget()
        bench.reset_peak()
        start = bench.memory()
        ours(arguments)
        peak = bench.peak()
        took = bench.time(lambda ours=ours: ours(arguments))
        found["batches"][str(batch)] = {
            "seconds": took,
            "samples_a_second": bench.plan.samples / took["median"],
            "flops_a_second": flops / took["median"],
            "share_of_products": flops / took["median"] / bench.results["products"][name_of(dtype)]["square"],
            "peak_bytes": peak - before,
            "above_weights_bytes": peak - start,
        }
        bench.save(f"evaluation_{name_of(dtype)}", found)
    return found


def evaluation_bfloat16(bench: Bench) -> dict[str, Any]:
    return evaluation(bench, torch.bfloat16)


def evaluation_float32(bench: Bench) -> dict[str, Any]:
    return evaluation(bench, torch.float32)


def rival(bench: Bench) -> dict[str, Any]:
    """masc-metric on the same samples, interleaved with ours: in bfloat16, and in its own default against float32."""
    arguments = bench.work.arguments
    found: dict[str, Any] = {}
    for name, ours_dtype, theirs_dtype in (
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("default", torch.float32, None),
    ):
        ours, theirs = bench.ours(ours_dtype), Theirs(bench.checkpoint, bench.plan.device, theirs_dtype)
        few = Evaluation.of(1)
        ours(few.arguments), theirs(few)
        scores: dict[str, Any] = {}
        times = interleaved(
            {
                "ours": lambda ours=ours, scores=scores: scores.update(ours=ours(arguments)),
                "theirs": lambda theirs=theirs, scores=scores: scores.update(theirs=theirs(bench.work)),
            },
            min(3, bench.plan.rounds),
            bench.plan.device,
            warm_up=False,
        )
        difference = abs(scores["ours"] - scores["theirs"]).max(axis=0)
        found[name] = {
            "seconds": times,
            "ours_samples_a_second": bench.plan.samples / statistics.median(times["ours"]),
            "theirs_samples_a_second": bench.plan.samples / statistics.median(times["theirs"]),
            "times_theirs": ratio(times, "theirs", "ours"),
            "difference_cp": float(difference[0]),
            "difference_pf": float(difference[1]),
        }
        del theirs
    return found


def pair(bench: Bench) -> dict[str, Any]:
    """The paper's timing protocol: one pair of 512 x 512, synchronized, median, caches emptied before each call."""
    single = Evaluation.of(1)

    def median(function: Callable[[], object]) -> float:
        for _ in range(bench.plan.warm_up):
            function()
        return statistics.median(seconds(function, bench.plan.device) for _ in range(bench.plan.calls))

    def ours_only(ours: Ours, *parts: str) -> Callable[[], object]:
        return lambda: ours(single.arguments, parts)

    found: dict[str, Any] = {}
    for dtype, theirs_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float32, None)):
        ours = bench.ours(dtype)
        found[name_of(dtype)] = {
            "CP": median(ours_only(ours, "cp")),
            "PF": median(ours_only(ours, "pf")),
            "CP and PF": median(ours_only(ours, "cp", "pf")),
        }
        bench.save("pair", {"seconds": found})
        if workload.rival_is_installed():
            theirs = Theirs(bench.checkpoint, bench.plan.device, theirs_dtype)
            found[name_of(dtype)]["masc-metric"] = median(lambda theirs=theirs: theirs(single))
            del theirs
    return {"seconds": found}


def overhead(bench: Bench) -> dict[str, Any]:
    """What ``update`` takes beyond the bare tower, for new and known pictures, given on the CPU and on the device.

    Updates have one part and four parts of ``encode_batch_size`` samples. Pictures of 512 x 512 need no resize. Prompts
    are known in all cases.
    """
    ours, batch = bench.ours(torch.bfloat16), bench.plan.standard_batch
    vision = ours.backbone._vision
    found: dict[str, Any] = {}
    for count in (batch, 4 * batch):
        arguments = Evaluation.of(count).arguments
        references = [torch.from_numpy(workload.picture(1000 + index).image) for index in range(count)]
        cp_arguments = {name: arguments[name] for name in CP_NAMES} | {"reference_images": references}
        pf_arguments = {name: arguments[name] for name in PF_NAMES}
        pixels = torch.stack([*references, *arguments["generated_images"]]).to(bench.device)
        for metric_name, metric, values, pictures in (
            ("CP", ours.cp, cp_arguments, 2 * count),
            ("PF", ours.pf, pf_arguments, count),
        ):
            tower = _tower(vision, pixels[:pictures], batch)
            for where, given in (("CPU", values), ("device", _on_device(values, bench.device))):
                functions = {
                    "new": _update(ours, metric, given, forget=True),
                    "tower": tower,
                    "known": _update(ours, metric, given, forget=False),
                }
                times = interleaved(functions, 2 * bench.plan.rounds, bench.plan.device)
                found[f"{metric_name}, {count} samples, pictures on the {where}"] = {
                    "seconds": {name: statistics.median(each) for name, each in times.items()},
                    "new_over_tower": ratio(times, "new", "tower"),
                    "known_over_tower": ratio(times, "known", "tower"),
                }
                bench.save("overhead", found)
    digest = bench.time(lambda: content_digests(pixels), 3 * bench.plan.rounds)["median"]
    encoding = bench.time(_tower(vision, pixels, batch), bench.plan.rounds)["median"]
    return found | {"digest_over_tower": digest / encoding}


def _tower(vision: Any, pixels: Tensor, batch: int) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            for part in torch.split(pixels, batch):
                vision.encode(part)

    return run


def _update(ours: Ours, metric: Any, values: dict[str, Any], *, forget: bool) -> Callable[[], object]:
    def run() -> None:
        if forget:
            ours.backbone.cache.clear()
        metric.reset()
        metric.update(**values)

    return run


def _on_device(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: [value.to(device) if isinstance(value, Tensor) else value for value in each]
        for name, each in values.items()
    }


def profile(bench: Bench) -> dict[str, Any]:
    """One update of CP and PF of new pictures: expensive kernels, idle time between kernels, synchronizations."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    ours = bench.ours(torch.bfloat16)
    arguments = Evaluation.of(2 * bench.plan.standard_batch).arguments
    ours(arguments)
    on_cuda = bench.plan.device == "cuda"
    with counted_synchronizations(bench.device) as synchronizations:
        ours(arguments)

    def events(*activities: ProfilerActivity) -> list[Any]:
        for _ in range(2):  # the first profile pays for the profiler's own start
            with profiler(activities=list(activities)) as run:
                ours(arguments)
                if on_cuda:
                    torch.cuda.synchronize()
        return list(run.events() or [])

    # Recording every operation of the host would slow it down and leave the GPU idle.
    kind, activity = (DeviceType.CUDA, ProfilerActivity.CUDA) if on_cuda else (DeviceType.CPU, ProfilerActivity.CPU)
    on_device = [event for event in events(activity) if event.device_type == kind]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    by_name: dict[str, list[float]] = {}
    for event in kernels:
        by_name.setdefault(event.name, []).append(event.time_range.elapsed_us())
    busy, idle = _busy_and_idle([(event.time_range.start, event.time_range.end) for event in on_device])
    total = sum(map(sum, by_name.values())) or 1.0
    expensive = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:10]
    on_host = events(ProfilerActivity.CPU, ProfilerActivity.CUDA) if on_cuda else []
    calls = [event.name for event in on_host if event.name in SYNCHRONIZING]
    return {
        "kernels": [
            {"name": name[:120], "calls": len(times), "milliseconds": sum(times) / 1e3, "share": sum(times) / total}
            for name, times in expensive
        ],
        "launched": len(kernels),
        "copies": len(on_device) - len(kernels),
        "busy_milliseconds": busy / 1e3,
        "idle_milliseconds": idle / 1e3,
        "idle_share": idle / (busy + idle) if busy + idle else 0.0,
        "synchronizing_calls": {name: calls.count(name) for name in sorted(set(calls))},
        "synchronizing_operations": len(synchronizations),
    }


def _busy_and_idle(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Microseconds in which any kernel runs, and in which none does, between the first start and the last end."""
    busy, end = 0.0, None
    for start, stop in sorted(intervals):
        busy += max(0.0, stop - max(start, end)) if end is not None else stop - start
        end = stop if end is None else max(end, stop)
    first = min((start for start, _ in intervals), default=0.0)
    return busy, (end or first) - first - busy


def size(bench: Bench) -> dict[str, Any]:
    """Pictures of eight aspect ratios against pictures of one; and time and memory against their number."""
    ours = bench.ours(torch.bfloat16)
    processing = ours.backbone.checkpoint.processing
    generator = torch.Generator().manual_seed(0)

    def noise(height: int, width: int) -> Tensor:
        coarse = torch.randint(0, 256, (3, height // 16, width // 16), dtype=torch.uint8, generator=generator)
        return coarse.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)

    count = bench.plan.pictures
    mixed = [noise(*ASPECTS[index % len(ASPECTS)]) for index in range(count)]
    patches = [rows * columns for height, width in ASPECTS for rows, columns in [processing.grid(height, width, 1024)]]
    alike = [noise(512, 512) for _ in range(count)]

    # Enough a call for full passes of every aspect ratio.
    a_call = len(ASPECTS) * bench.plan.standard_batch

    def encode(pictures: list[Tensor]) -> Callable[[], None]:
        def run() -> None:
            ours.backbone.cache.clear()
            for start in range(0, len(pictures), a_call):
                ours.backbone.encode_images(pictures[start : start + a_call], batch_size=bench.plan.standard_batch)

        return run

    rounds = min(2, bench.plan.rounds)
    times = interleaved({"mixed": encode(mixed), "alike": encode(alike)}, rounds, bench.plan.device)
    growth = {}
    number = 8
    while number <= count:
        run = encode(alike[:number])
        run()
        bench.reset_peak()
        start = bench.memory()
        took = seconds(run, bench.plan.device)
        growth[str(number)] = {"seconds": took, "peak_above_weights_and_cache_bytes": bench.peak() - start}
        number *= 4
    return {
        "pictures": count,
        "mixed_over_alike": ratio(times, "mixed", "alike"),
        "mean_patches_mixed": statistics.mean(patches),
        "patches_alike": 1024,
        "growth": growth,
    }


def deviation(bench: Bench) -> dict[str, Any]:
    """How far bfloat16 and float16 move CP and PF from float32, on random weights."""
    arguments = bench.work.arguments
    exact = bench.ours(torch.float32)(arguments)
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        try:
            moved = abs(bench.ours(dtype)(arguments) - exact)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an overflow of float16 is an answer too
            found[name_of(dtype)] = {"error": str(error)}
            continue
        found[name_of(dtype)] = {
            f"{statistic}_{score}": float(getattr(moved, statistic)(axis=0)[column])
            for statistic in ("mean", "max")
            for column, score in enumerate(("cp", "pf"))
        }
    return found


def variants(bench: Bench) -> dict[str, Any]:
    """Possible ways to speed the tower up, none of them in the package: what each would gain, and move."""
    ours, batch = bench.ours(torch.bfloat16), bench.plan.standard_batch
    vision = ours.backbone._vision
    pixels = torch.from_numpy(np.stack([workload.picture(index).image for index in range(batch)])).to(bench.device)

    def encode() -> Tensor:
        with torch.no_grad():
            return vision.encode(pixels)

    expected = encode().float()
    plain = bench.time(encode)["median"]
    found: dict[str, Any] = {"as it is": {"seconds": plain}}
    for name, changed in (
        ("GELU inside the product", _gelu_in_product),
        ("CUDA graph of the encoder", _graphed_encoder),
        ("torch.compile of the encoder", _compiled_encoder),
    ):
        try:
            start = time.perf_counter()
            with torch.no_grad(), changed(vision.network, batch, bench.device):
                moved = (encode().float() - expected).abs().max().item()
                set_up = time.perf_counter() - start
                took = bench.time(encode)["median"]
                found[name] = {
                    "seconds": took,
                    "gain": plain / took,
                    "largest_feature_difference": moved,
                    "set_up_seconds": set_up,
                }
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a variant that does not work here is a result
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return found


class _FusedGELULinear(nn.Module):
    """GELU(x W^T + b) as one cuBLASLt product, whose epilogue has the tanh form."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        product = torch.ops.aten._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)
        result: Tensor = product.reshape(*x.shape[:-1], -1)
        return result


@contextmanager
def _gelu_in_product(network: Any, batch: int, device: torch.device) -> Iterator[None]:
    mlps = [layer.mlp for layer in network.encoder.layers]
    kept = [(mlp.fc1, mlp.activation_fn) for mlp in mlps]
    for mlp in mlps:
        mlp.fc1, mlp.activation_fn = _FusedGELULinear(mlp.fc1), nn.Identity()
    try:
        yield
    finally:
        for mlp, (first, activation) in zip(mlps, kept, strict=True):
            mlp.fc1, mlp.activation_fn = first, activation


@contextmanager
def _replaced_encoder(network: Any, encoder: Any) -> Iterator[None]:
    forward = network.encoder.forward
    network.encoder.forward = encoder
    try:
        yield
    finally:
        network.encoder.forward = forward


@contextmanager
def _graphed_encoder(network: Any, batch: int, device: torch.device) -> Iterator[None]:
    forward = network.encoder.forward
    static = torch.zeros(batch, 1024, network.config.hidden_size, device=device, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(inputs_embeds=static, attention_mask=None)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(inputs_embeds=static, attention_mask=None)

    def replay(inputs_embeds: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        static.copy_(inputs_embeds)
        graph.replay()
        return output

    with _replaced_encoder(network, replay):
        yield


@contextmanager
def _compiled_encoder(network: Any, batch: int, device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        raise NotImplementedError("measured on CUDA only")
    with _replaced_encoder(network, torch.compile(network.encoder.forward, dynamic=False)):
        yield


STAGES: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    products,
    evaluation_bfloat16,
    evaluation_float32,
    rival,
    pair,
    overhead,
    profile,
    size,
    deviation,
    variants,
)


def run(plan: Plan, out: Path, limit_s: float, only: list[str] | None = None) -> int:
    """Run the stages, write each result at once; returns how many failed."""
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan, Path(folder), out)
        for stage in STAGES:
            name, began = stage.__name__, time.monotonic()
            if only and name not in only and name != "products":
                continue
            if began - start > limit_s:
                result: dict[str, Any] = {"left_out": f"not started after {limit_s:.0f} s"}
            elif stage is rival and not workload.rival_is_installed():
                result = {"left_out": "masc-metric is not installed"}
            else:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        result = stage(bench)
                except Exception as error:  # the other stages are worth having
                    traceback.print_exc()
                    failed += 1
                    result = bench.results.get(name, {}) | {"error": f"{type(error).__name__}: {error}"}
            bench.save(name, result | {"stage_seconds": time.monotonic() - began})
            print(f"{time.monotonic() - start:6.1f} s  {name}: {json.dumps(result)[:2000]}", flush=True)
    workload.release()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--layers", type=int, default=workload.LAYERS, help="layers of each tower [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="every stage on a narrow network and a few samples")
    parser.add_argument("--limit", type=float, default=400, help="seconds after which no stage starts [%(default)s]")
    parser.add_argument("--only", nargs="+", choices=[stage.__name__ for stage in STAGES], help="stages to run")
    parser.add_argument("--out", type=Path, help="JSON file to write [$OUT/gpu.json, or next to results.json]")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --layers 1 --quick rehearses the stages on a CPU")
    plan = (Plan.quick if arguments.quick else Plan)(arguments.device, arguments.layers)
    name = "gpu.json" if plan == Plan("cuda", workload.LAYERS) else "gpu-rehearsal.json"
    out = arguments.out or Path(os.environ.get("OUT", Path(__file__).parent)) / name
    try:
        out.open("a").close()
    except OSError as error:
        parser.error(f"--out is {out}, which cannot be written: {error.strerror}")
    sys.exit(1 if run(plan, out, arguments.limit, arguments.only) else 0)


if __name__ == "__main__":
    main()
