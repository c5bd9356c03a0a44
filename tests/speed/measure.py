"""Speed on a CPU, by name: ``python tests/speed/measure.py evaluation --layers 27 --rounds 3``.

Every measurement prints what it found and adds it to ``results.json``; ``page.py`` makes docs/performance.md of that.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import workload
from workload import (
    ASPECTS,
    CP_NAMES,
    PF_NAMES,
    Evaluation,
    Ours,
    Theirs,
    checkpoint,
    interleaved,
    picture,
    ratio,
    seconds,
)

RESULTS = Path(__file__).parent / "results.json"


def evaluation(layers: int, rounds: int) -> dict[str, Any]:
    """36 samples of one concept against masc-metric, interleaved; and the scores' largest difference."""
    work, ours, theirs = Evaluation.of(), Ours(checkpoint(layers)), Theirs(checkpoint(layers))
    arguments = work.arguments
    few = Evaluation.of(2)
    ours(few.arguments), theirs(few)
    scores: dict[str, Any] = {}
    times = interleaved(
        {
            "ours": lambda: scores.update(ours=ours(arguments)),
            "theirs": lambda: scores.update(theirs=theirs(work)),
        },
        rounds,
        warm_up=False,
    )
    difference = abs(scores["ours"] - scores["theirs"]).max(axis=0)
    ours_s = statistics.median(times["ours"])
    return {
        "seconds": times,
        "times_theirs": ratio(times, "theirs", "ours"),
        "samples_a_second": len(work.generated) / ours_s,
        "flops_a_second": workload.flops_a_picture(layers) * (len(work.generated) + 1) / ours_s,
        "difference_cp": float(difference[0]),
        "difference_pf": float(difference[1]),
        "mean_cp": float(scores["ours"][:, 0].mean()),
        "mean_pf": float(scores["ours"][:, 1].mean()),
    }


def tower(layers: int, rounds: int) -> dict[str, Any]:
    """The evaluation's updates against the bare towers, ours and transformers' own, on its 37 distinct pictures."""
    from transformers import Siglip2VisionModel

    ours, work = Ours(checkpoint(layers)), Evaluation.of()
    arguments = work.arguments
    stock = Siglip2VisionModel.from_pretrained(workload.checkpoint(layers)).eval()
    stock.use_head = False  # nor does ours run it in the tower
    pixels = [torch.from_numpy(one.image)[None] for one in (work.reference, *work.generated)]
    shapes = torch.tensor([(32, 32)])
    patches = [_patches(ours, one) for one in pixels]
    with torch.no_grad():
        times = interleaved(
            {
                "updates": lambda: ours(arguments),
                "our tower": lambda: [ours.backbone._vision.encode(one) for one in pixels],
                "transformers' tower": lambda: [stock(one, torch.ones(one.shape[:2]), shapes) for one in patches],
            },
            rounds,
            warm_up=False,
        )
    return {
        "seconds": times,
        "over_ours": ratio(times, "updates", "our tower"),
        "over_transformers": ratio(times, "updates", "transformers' tower"),
    }


def _patches(ours: Ours, pixels: torch.Tensor) -> torch.Tensor:
    from masc_metrics.images import cut, normalise

    return cut(normalise(pixels, ours.backbone.checkpoint.processing), 16)


def bfloat16(layers: int, rounds: int) -> dict[str, Any]:
    """Our own bfloat16 against our own float32, and what it does to the scores."""
    work = Evaluation.of()
    arguments = work.arguments
    exact, rough = Ours(checkpoint(layers)), Ours(checkpoint(layers), dtype=torch.bfloat16)
    scores: dict[str, Any] = {}
    times = interleaved(
        {
            "float32": lambda: scores.update(exact=exact(arguments)),
            "bfloat16": lambda: scores.update(rough=rough(arguments)),
        },
        rounds,
        warm_up=False,
    )
    deviation = abs(scores["rough"] - scores["exact"])
    return {
        "seconds": times,
        "times_float32": ratio(times, "float32", "bfloat16"),
        **{f"{what}_cp": float(getattr(deviation, what)(axis=0)[0]) for what in ("max", "mean")},
        **{f"{what}_pf": float(getattr(deviation, what)(axis=0)[1]) for what in ("max", "mean")},
        "mean_shift_cp": float((scores["rough"] - scores["exact"]).mean(axis=0)[0]),
        "mean_shift_pf": float((scores["rough"] - scores["exact"]).mean(axis=0)[1]),
    }


def overhead(layers: int, rounds: int) -> dict[str, Any]:
    """What an update of 8 samples takes beyond the vision tower for the same pictures."""
    ours, work = Ours(checkpoint(layers)), Evaluation.of(8)
    arguments = work.arguments
    references = [torch.from_numpy(picture(100 + index).image) for index in range(8)]
    apart = arguments | {"reference_images": references}
    pixels = [image[None] for image in (*arguments["generated_images"], *references)]

    def update(metric: Any, names: tuple[str, ...], values: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            ours.backbone.cache.clear()
            metric.update(**{name: values[name] for name in names})

        return run

    def encode(count: int) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for part in torch.split(torch.cat(pixels[:count]), 1):
                    ours.backbone._vision.encode(part)

        return run

    cases = {
        "CP, a reference each": (update(ours.cp, CP_NAMES, apart), 16),
        "CP, one reference": (update(ours.cp, CP_NAMES, arguments), 9),
        "PF, prompts met before": (update(ours.pf, PF_NAMES, arguments), 8),
    }
    ours(arguments)  # the prompts are met here
    found: dict[str, Any] = {"seconds": {}}
    for name, (updating, pictures) in cases.items():
        times = interleaved({"update": updating, "tower": encode(pictures)}, rounds)
        found["seconds"][name] = times
        found[name] = {key: value - 1 for key, value in ratio(times, "update", "tower").items()}
    return found


def cached(layers: int, rounds: int) -> dict[str, Any]:
    """An update of 8 samples whose pictures are all known, over the tower's time for them: ``overhead``, more quietly.

    The difference of two long times drowns in what else a shared machine does; this has all of an update but the
    tower, and the normalising and cutting of pictures before it.
    """
    ours, work = Ours(checkpoint(layers)), Evaluation.of(8)
    arguments = work.arguments
    pixels = [torch.from_numpy(one.image)[None] for one in (work.reference, *work.generated)]
    ours(arguments)

    def tower() -> None:
        with torch.no_grad():
            for one in pixels:
                ours.backbone._vision.encode(one)

    large = [torch.from_numpy(picture(200 + index, (1024, 1024)).image) for index in range(8)]
    resized = arguments | {"generated_images": large}
    updates = {
        name: functools.partial(metric.update, **{key: values[key] for key in names})
        for name, metric, names, values in (
            ("CP", ours.cp, CP_NAMES, arguments),
            ("CP, pictures of 1024 x 1024", ours.cp, CP_NAMES, resized),
            ("PF", ours.pf, PF_NAMES, arguments),
        )
    }
    times = interleaved({**updates, "tower": tower}, rounds)
    return {"seconds": times, **{name: ratio(times, name, "tower") for name in updates}}


def lookup(layers: int, rounds: int) -> dict[str, Any]:
    """Digest and cache look-up of a picture against its encoding."""
    from masc_metrics.cache import content_digests

    ours = Ours(checkpoint(layers))
    pixels = torch.from_numpy(picture(0).image)[None]
    cache = ours.backbone.cache
    ours.backbone.encode_images(pixels)
    keys = list(cache._tensors)

    def look() -> None:
        content_digests(pixels).tolist()
        cache.get(keys[0])

    with torch.no_grad():
        times = interleaved({"look-up": look, "encoding": lambda: ours.backbone._vision.encode(pixels)}, 5 * rounds)
    return {"seconds": times, "share": ratio(times, "look-up", "encoding")}


def once(layers: int, rounds: int) -> dict[str, Any]:
    """How many pictures and prompts of the evaluation pass the towers."""
    from support.batches import counted_encodings

    ours = Ours(checkpoint(layers))
    with counted_encodings() as counts:
        ours(Evaluation.of().arguments)
    return dict(counts)


def sample(layers: int, rounds: int) -> dict[str, Any]:
    """What one more sample costs a validation: CP of a new picture of a known concept, then its PF."""
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        ours, work = Ours(checkpoint(layers), dtype=dtype), Evaluation.of(rounds + 1)
        times: dict[str, list[float]] = {"CP, new picture": [], "PF, new prompt": [], "PF, known prompt": []}
        for index, one in enumerate(work.generated):
            arguments = Evaluation(work.reference, (one,)).arguments | {"prompts": [f"{one.caption}, number {index}"]}
            for name, metric, names in (
                ("CP, new picture", ours.cp, CP_NAMES),
                ("PF, new prompt", ours.pf, PF_NAMES),
                ("PF, known prompt", ours.pf, PF_NAMES),
            ):
                values = {key: arguments[key] for key in names}
                times[name].append(seconds(lambda metric=metric, values=values: metric.update(**values)))
        # The first reads the towers' pages and encodes the reference.
        found[str(dtype).removeprefix("torch.")] = {name: statistics.median(took[1:]) for name, took in times.items()}
        workload.release()
    return {"seconds": found}


def shapes(layers: int, rounds: int) -> dict[str, Any]:
    """64 pictures of eight aspect ratios, mixed, against 64 of one shape with as many patches."""
    ours = Ours(checkpoint(layers))
    processing = ours.backbone.checkpoint.processing
    mixed = [torch.from_numpy(picture(index, ASPECTS[index % 8]).image) for index in range(64)]
    counts = [rows * columns for size in ASPECTS for rows, columns in [processing.grid(*size, 1024)]]
    mean = statistics.mean(counts)
    size = min(ASPECTS, key=lambda size: abs(counts[ASPECTS.index(size)] - mean))
    alike = [torch.from_numpy(picture(index, size).image) for index in range(64)]

    def encode(pictures: list[torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            ours.backbone.cache.clear()
            for start in range(0, 64, 16):
                ours.backbone.encode_images(pictures[start : start + 16])

        return run

    times = interleaved({"mixed": encode(mixed), "alike": encode(alike)}, rounds, warm_up=False)
    return {
        "seconds": times,
        "patches_mixed": sum(counts) * 8,
        "patches_alike": 64 * counts[ASPECTS.index(size)],
        "mixed_over_alike": ratio(times, "mixed", "alike"),
    }


def sweep(layers: int, rounds: int) -> dict[str, Any]:
    """Pictures a second against pictures in a pass, patches, and layers: the plot."""
    from masc_metrics.images import resize

    ours = Ours(checkpoint(layers))
    vision, processing = ours.backbone._vision, ours.backbone.checkpoint.processing
    images = [torch.from_numpy(picture(index).image) for index in range(16)]
    found: dict[str, dict[str, float]] = {"batch": {}, "patches": {}, "layers": {}}

    def rate(tower: Any, batch: int, side: int) -> float:
        pixels = torch.stack([resize(image, (side, side), processing) for image in images[:batch]])
        with torch.no_grad():
            times = [seconds(lambda: tower.encode(pixels)) for _ in range(rounds + 1)][1:]
        return batch / statistics.median(times)

    for batch in (1, 2, 4, 8, 16):
        found["batch"][str(batch)] = rate(vision, batch, 32)
    for side in (8, 16, 24, 32, 40):
        found["patches"][str(side * side)] = rate(vision, 1, side)
    for depth in (2, 6, 12, 27):
        found["layers"][str(depth)] = rate(Ours(checkpoint(depth)).backbone._vision, 1, 32)
        workload.release()
    return {"pictures_a_second": found}


def processes(layers: int, rounds: int) -> dict[str, Any]:
    """Two processes of one thread on two cores against one process of one thread, on 16 samples."""
    from support.processes import run

    times: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(rounds):
        for name, world in (("one", 1), ("two", 2)):
            with tempfile.TemporaryDirectory() as folder:
                took = run(_one_rank, world, Path(folder), layers, limit_s=600)
            times[name].append(max(took))
    return {"seconds": times, "speed_up": ratio(times, "one", "two")}


def _one_rank(rank: int, world: int, layers: int) -> float:
    ours, work = Ours(checkpoint(layers)), Evaluation.of(16)
    mine = Evaluation(work.reference, work.generated[rank::world])
    few = Evaluation(work.reference, work.generated[:1])
    ours(few.arguments)
    torch.distributed.barrier()
    return seconds(lambda: ours(mine.arguments))


def imports(layers: int, rounds: int) -> dict[str, Any]:
    """Importing the package against importing torchmetrics, in fresh interpreters."""

    def importing(name: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

    times = interleaved({"ours": importing("masc_metrics"), "torchmetrics": importing("torchmetrics")}, 5 * rounds)
    return {"seconds": times, "over_torchmetrics": ratio(times, "ours", "torchmetrics")}


def products(layers: int, rounds: int) -> dict[str, Any]:
    """The machine's own rate of matrix products of the tower's shapes, in each dtype."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1024, workload.WIDTH, dtype=dtype)
        weight = torch.randn(workload.MLP, workload.WIDTH, dtype=dtype)
        flops = 2 * len(x) * weight.numel()
        repeats = 5

        def run(x: torch.Tensor = x, weight: torch.Tensor = weight, repeats: int = repeats) -> None:
            for _ in range(repeats):
                torch.nn.functional.linear(x, weight)

        run()
        found[str(dtype).removeprefix("torch.")] = repeats * flops / min(seconds(run) for _ in range(3 * rounds))
    return {"flops_a_second": found}


MEASUREMENTS = {
    function.__name__: function
    for function in (
        products,
        imports,
        once,
        lookup,
        overhead,
        cached,
        sample,
        tower,
        evaluation,
        bfloat16,
        shapes,
        processes,
        sweep,
    )
}


def record(file: Path, name: str, settings: dict[str, Any], found: dict[str, Any]) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    key = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    known[key] = {"where": workload.where(), **found}
    file.write_text(json.dumps(known, indent=1) + "\n")
    print(key, json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=MEASUREMENTS, help="what to measure")
    parser.add_argument("--layers", type=int, default=6, help="6 for a quick look, 27 for so400m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for name in arguments.names:
        found = MEASUREMENTS[name](arguments.layers, arguments.rounds)
        record(arguments.results, name, {"layers": arguments.layers, "device": "cpu"}, found)
        workload.release()


if __name__ == "__main__":
    main()
