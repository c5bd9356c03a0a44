"""Figures into docs/performance.md and its plot: ``python tests/speed/page.py`` after ``measure.py`` and ``gpu.py``.

A block between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced by the table of that name; all else is left alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import RESULTS
from support.blocks import with_block

DOCS = Path(__file__).parents[2] / "docs"
GPU_RESULTS = RESULTS.with_name("gpu.json")
PAGE, PLOT = DOCS / "performance.md", DOCS / "throughput.png"

Results = dict[str, Any]


def spread(ratio: dict[str, float], form: str = "{:.2f}") -> str:
    """Median, and the least and greatest of the rounds."""
    middle, least, greatest = (form.format(ratio[key]) for key in ("median", "least", "greatest"))
    return f"{middle} ({least} to {greatest})"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def per_cent(value: float) -> str:
    return f"{100 * value:.1f} %"


def machine(results: Results) -> str:
    where = results["evaluation layers=27 device=cpu"]["where"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "torchmetrics", "masc-metric"))
    on = f"{where['processor']}, {where['threads']} threads, no GPU"
    return f"{on}; Python {where['python']}, {versions}; {where['date']}"


def rival(results: Results) -> str:
    rows = []
    for layers in (27, 6):
        found = results[f"evaluation layers={layers} device=cpu"]
        theirs = found["seconds"]["theirs"]
        rows.append(
            [
                f"{layers} layers",
                f"{found['samples_a_second']:.3f}",
                f"{36 / statistics.median(theirs):.3f}",
                spread(found["times_theirs"]),
                str(len(theirs)),
                f"{found['difference_cp']:.1e}",
                f"{found['difference_pf']:.1e}",
            ]
        )
    return table(
        [
            "checkpoint",
            "ours, samples/s",
            "masc-metric, samples/s",
            "times faster",
            "rounds",
            "CP differs",
            "PF differs",
        ],
        rows,
    )


def sample(results: Results) -> str:
    seconds = results["sample layers=27 device=cpu"]["seconds"]
    whats = {
        "CP, new picture": "CP of a new image, its reference met before",
        "PF, new prompt": "PF of an image that CP has met, new prompt",
        "PF, known prompt": "PF of such an image, prompt met before",
    }
    rows = [
        [text, *(f"{seconds[dtype][what]:.2f} s" for dtype in ("float32", "bfloat16"))] for what, text in whats.items()
    ]
    return table(["27 layers, 512 x 512 pixels, 1024 patches", "float32", "bfloat16"], rows)


def limit(results: Results) -> str:
    rate = results["products layers=6 device=cpu"]["flops_a_second"]["float32"]
    rows = [
        ["float32 matrix products of the tower's shape, by torch's own call", f"{rate / 1e9:.0f} GFLOP/s"],
    ]
    for layers in (27, 6):
        reached = results[f"evaluation layers={layers} device=cpu"]["flops_a_second"]
        what = f"the evaluation of 36 samples, {layers} layers, everything included"
        rows.append([what, f"{reached / 1e9:.0f} GFLOP/s, {per_cent(reached / rate)}"])
    tower = results["tower layers=6 device=cpu"]
    rows += [
        ["both updates over our tower, 37 images, 6 layers", spread(tower["over_ours"], "{:.3f}")],
        ["the same over transformers' own tower", spread(tower["over_transformers"], "{:.3f}")],
    ]
    overhead = results["overhead layers=6 device=cpu"]
    for name in ("CP, a reference each", "CP, one reference", "PF, prompts met before"):
        low, middle, high = (per_cent(overhead[name][key]) for key in ("least", "median", "greatest"))
        rows.append([f"`update` beyond the tower, 8 samples, 6 layers: {name}", f"{middle} ({low} to {high})"])
    cached = results["cached layers=6 device=cpu"]
    for name in ("CP", "CP, pictures of 1024 x 1024", "PF"):
        label = name.replace("pictures", "images")
        what = f"`update` of 8 known images of one reference over the tower's time for them, 6 layers: {label}"
        rows.append([what, per_cent(cached[name]["median"])])
    look = results["lookup layers=6 device=cpu"]["share"]["median"]
    once = results["once layers=6 device=cpu"]
    shapes = results["shapes layers=2 device=cpu"]
    processes = results["processes layers=6 device=cpu"]
    imports = results["imports layers=6 device=cpu"]
    rows += [
        ["digest and look-up of an image over its encoding, 6 layers", f"{100 * look:.2f} %"],
        ["the evaluation's passes", f"{once['images']} images, {once['texts']} prompts"],
        [
            f"64 images of 8 aspect ratios ({shapes['patches_mixed']} patches) over 64 of one "
            f"({shapes['patches_alike']}), 2 layers",
            spread(shapes["mixed_over_alike"]),
        ],
        ["two processes of a thread over one, 16 samples, 6 layers", f"{spread(processes['speed_up'])} times"],
        ["`import masc_metrics` over `import torchmetrics`", spread(imports["over_torchmetrics"])],
    ]
    return table(["what", "figure"], rows)


def size(results: Results) -> str:
    rows = []
    for count, found in results["memory ours_cp_in_eights layers=2"].items():
        if count != "where":
            (said,) = [float(text.split()[1]) for text in found["said"] if text.startswith("seconds")]
            rows.append([count, f"{said / int(count) * 1e3:.0f} ms", f"{found['peak_gib']:.2f} GiB"])
    return table(["images, 8 an update, 2 layers", "time an image", "peak resident"], rows)


def bfloat16(results: Results) -> str:
    found = results["bfloat16 layers=27 device=cpu"]
    rows = [
        ["times the samples a second of float32", spread(found["times_float32"])],
        *(
            [
                f"{score.upper()} of a sample moves by",
                f"{found[f'mean_{score}']:.1e} in the mean, {found[f'max_{score}']:.1e} at most",
            ]
            for score in ("cp", "pf")
        ),
        *(
            [f"the mean {score.upper()} of all 36 moves by", f"{found[f'mean_shift_{score}']:+.1e}"]
            for score in ("cp", "pf")
        ),
    ]
    return table(["bfloat16, 27 layers, 36 samples", ""], rows)


def memory(results: Results) -> str:
    names = {
        "memory ours_cp layers=27": "ours, only CP",
        "memory ours_both layers=27": "ours, CP and PF",
        "memory theirs layers=27": "masc-metric 0.3.0 (always both)",
    }
    rows = [[name, f"{results[key]['8']['peak_gib']:.2f} GiB"] for key, name in names.items()]
    return table(["float32, 27 layers, 8 samples", "peak resident memory of the process"], rows)


NOT_MEASURED = (
    "Nothing has been measured on a GPU yet. `python tests/speed/gpu.py` measures all figures of this section there, "
    "and `python tests/speed/page.py` writes them here."
)


def gpu(results: Results) -> str:
    """Tables of gpu.json, which may have been cut short: what is missing is left out."""
    if not results or results["plan"]["device"] != "cuda" or results["plan"]["shape"]:
        return NOT_MEASURED  # a rehearsal measures nothing
    where, plan = results["where"], results["plan"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "torchmetrics", "masc-metric"))
    head = (
        f"{where['gpu']}, driver {where['driver']}, CUDA {where['cuda']}; Python {where['python']}, {versions}; "
        f"{where['date']}. {plan['layers']} layers, images of 512 x 512, 1024 patches, random weights."
    )
    measured = {
        name: stage
        for name, stage in results.items()
        if name in GPU_TABLES and "error" not in stage and "left_out" not in stage
    }
    missing = [name for name in GPU_TABLES if name not in measured]
    parts = [head, *(GPU_TABLES[name](stage, plan) for name, stage in measured.items())]
    if bars := _bars(measured, plan):
        parts.append(table(["aim for bfloat16 on an H100 or H200", "measured", ""], bars))
    if missing:
        parts.append(f"Not measured in this run: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _products(stage: Results, plan: Results) -> str:
    rows = [
        [name, *(f"{stage[dtype][name] / 1e12:.0f} TFLOP/s" for dtype in ("bfloat16", "float32"))]
        for name in stage["bfloat16"]
    ]
    return table(["matrix products", "bfloat16", "float32"], rows)


def _evaluation(dtype: str) -> Callable[[Results, Results], str]:
    def tabulated(stage: Results, plan: Results) -> str:
        rows = [
            [
                batch,
                f"{found['samples_a_second']:.1f}",
                per_cent(found["share_of_products"]),
                f"{found['peak_bytes'] / 1e9:.2f} GB",
                f"{found['above_weights_bytes'] / 1e9:.2f} GB",
            ]
            for batch, found in stage["batches"].items()
        ]
        head = [f"{plan['samples']} samples, {dtype}: `encode_batch_size`", "samples/s", "share of the product rate"]
        return table([*head, "peak memory", "above the weights"], rows)

    return tabulated


def _rival(stage: Results, plan: Results) -> str:
    rows = [
        [
            f"masc-metric in {'bfloat16' if name == 'bfloat16' else 'its default, float32'}",
            f"{found['ours_samples_a_second']:.1f}",
            f"{found['theirs_samples_a_second']:.1f}",
            spread(found["times_theirs"], "{:.1f}"),
            f"{found['difference_cp']:.1e}",
            f"{found['difference_pf']:.1e}",
        ]
        for name, found in stage.items()
        if name != "stage_seconds"
    ]
    head = ["the same samples", "ours, samples/s", "masc-metric, samples/s", "times faster", "CP differs", "PF differs"]
    return table(head, rows)


def _pair(stage: Results, plan: Results) -> str:
    dtypes = ("bfloat16", "float32")
    times = {dtype: stage["seconds"][dtype] for dtype in dtypes}
    rows = [[name, *(f"{1e3 * times[dtype][name]:.1f} ms" for dtype in dtypes)] for name in times["bfloat16"]]
    return table(["one pair, nothing cached, median of 20 calls", *dtypes], rows)


def _overhead(stage: Results, plan: Results) -> str:
    rows = [
        [name, spread(found["new_over_tower"]), spread(found["known_over_tower"])]
        for name, found in stage.items()
        if isinstance(found, dict)
    ]
    text = table(["`update` over the bare tower", "new images", "known images"], rows)
    if "digest_over_tower" in stage:
        text += f"\n\nThe 128-bit digest takes {per_cent(stage['digest_over_tower'])} of the tower's time."
    return text


def _profile(stage: Results, plan: Results) -> str:
    rows = [
        [f"`{kernel['name']}`", str(kernel["calls"]), f"{kernel['milliseconds']:.2f} ms", per_cent(kernel["share"])]
        for kernel in stage["kernels"]
    ]
    text = (
        f"One update of CP and PF launches {stage['launched']} kernels; no kernel runs in "
        f"{per_cent(stage['idle_share'])} of the time. {stage['synchronizing_operations']} operations synchronize."
    )
    return f"{text}\n\n{table(['kernel', 'calls', 'time', 'share'], rows)}"


def _size(stage: Results, plan: Results) -> str:
    mixed = (
        f"{stage['pictures']} images of 8 aspect ratios ({stage['mean_patches_mixed']:.0f} patches in the mean) over "
        f"as many of one ({stage['patches_alike']}): {spread(stage['mixed_over_alike'])} times as long."
    )
    rows = [
        [
            number,
            f"{1e3 * found['seconds'] / int(number):.2f} ms",
            f"{found['peak_above_weights_and_cache_bytes'] / 1e9:.2f} GB",
        ]
        for number, found in stage["growth"].items()
    ]
    return f"{mixed}\n\n{table(['images', 'time an image', 'peak memory above the weights'], rows)}"


def _deviation(stage: Results, plan: Results) -> str:
    rows = []
    for dtype, found in stage.items():
        if dtype != "stage_seconds":
            cells = (f"{found[f'mean_{score}']:.1e} ({found[f'max_{score}']:.1e})" for score in ("cp", "pf"))
            rows.append([dtype, *((found["error"], "") if "error" in found else cells)])
    return table(["against float32, mean (largest) of the samples", "CP moves by", "PF moves by"], rows)


def _variants(stage: Results, plan: Results) -> str:
    rows = [
        [
            name,
            found.get("error") or f"{1e3 * found['seconds']:.1f} ms",
            f"{found['gain']:.2f}" if "gain" in found else "",
            f"{found['largest_feature_difference']:.1e}" if "largest_feature_difference" in found else "",
        ]
        for name, found in stage.items()
        if name != "stage_seconds"
    ]
    return table(["ways to speed the tower up, not in the package", "time a pass", "gain", "features move by"], rows)


GPU_TABLES: dict[str, Callable[[Results, Results], str]] = {
    "products": _products,
    "evaluation_bfloat16": _evaluation("bfloat16"),
    "evaluation_float32": _evaluation("float32"),
    "rival": _rival,
    "pair": _pair,
    "overhead": _overhead,
    "profile": _profile,
    "size": _size,
    "deviation": _deviation,
    "variants": _variants,
}


def _bars(stages: Results, plan: Results) -> list[list[str]]:
    """What the figures are meant to reach, what they reach, and whether that is enough."""
    rows: list[list[str]] = []

    def bar(aim: str, value: float, reached: bool, form: str) -> None:
        rows.append([aim, form.format(value), "reached" if reached else "**missed**"])

    batches = stages.get("evaluation_bfloat16", {}).get("batches", {})
    if found := batches.get("16"):
        share = found["share_of_products"]
        bar("at least 60 % of the product rate at batch 16", 100 * share, share >= 0.6, "{:.1f} %")
    if "rival" in stages:
        times = stages["rival"]["bfloat16"]["times_theirs"]["median"]
        bar("at least 15 times masc-metric's samples a second", times, times >= 15, "{:.1f}")
    if found := batches.get("8"):
        peak, above = found["peak_bytes"] / 1e9, found["above_weights_bytes"] / 1e9
        bar("at most 3.2 GB in all at batch 8", peak, peak <= 3.2, "{:.2f} GB")
        bar("at most 0.9 GB above the weights at batch 8", above, above <= 0.9, "{:.2f} GB")
    if "overhead" in stages:
        found = stages["overhead"]
        worst = max(each["new_over_tower"]["median"] for each in found.values() if isinstance(each, dict))
        bar("`update` of new images at most 1.05 of the bare tower", worst, worst <= 1.05, "{:.3f}")
    return rows


BLOCKS: dict[str, Callable[[Results], str]] = {
    function.__name__: function for function in (machine, sample, rival, limit, size, bfloat16, memory)
}


def plot(results: Results) -> None:
    import matplotlib.pyplot as plt

    rates = results["sweep layers=6 device=cpu"]["pictures_a_second"]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, (name, label) in zip(
        axes,
        (
            ("batch", "images in a pass (6 layers, 1024 patches)"),
            ("patches", "patches (6 layers)"),
            ("layers", "layers (1024 patches)"),
        ),
        strict=True,
    ):
        places = [int(place) for place in rates[name]]
        axis.plot(places, list(rates[name].values()), "o-", color="#8a2c6b")
        axis.set(xlabel=label, xscale="log", yscale="linear" if name == "batch" else "log")
        axis.set_xticks(places, [str(place) for place in places])
        if name != "batch":
            low, high = min(rates[name].values()), max(rates[name].values())
            ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low / 2 < tick < 2 * high]
            axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="images a second")
    axes[0].set_ylim(0, 1.1 * max(rates["batch"].values()))
    figure.savefig(PLOT, dpi=110)


def with_blocks(text: str, results: Results, gpu_results: Results) -> str:
    """The page with every block made anew."""
    for name, found in {**{name: block(results) for name, block in BLOCKS.items()}, "gpu": gpu(gpu_results)}.items():
        text = with_block(text, name, found)
    return text


def gpu_results() -> Results:
    found: Results = json.loads(GPU_RESULTS.read_text()) if GPU_RESULTS.exists() else {}
    return found


def main() -> None:
    results = json.loads(RESULTS.read_text())
    PAGE.write_text(with_blocks(PAGE.read_text(), results, gpu_results()))
    plot(results)


if __name__ == "__main__":
    main()
