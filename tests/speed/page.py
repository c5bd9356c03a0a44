"""Figures into docs/performance.md and its plot: ``python tests/speed/page.py`` after ``measure.py``.

A block between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced by the table of that name; all else is left alone.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import RESULTS

DOCS = Path(__file__).parents[2] / "docs"
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
        "CP, new picture": "CP of a new picture, its reference met before",
        "PF, new prompt": "PF of a picture that CP has met, new prompt",
        "PF, known prompt": "PF of such a picture, prompt met before",
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
        ["both updates over our tower alone, 37 pictures, 6 layers", spread(tower["over_ours"], "{:.3f}")],
        ["the same over transformers' own tower", spread(tower["over_transformers"], "{:.3f}")],
    ]
    overhead = results["overhead layers=6 device=cpu"]
    for name in ("CP, a reference each", "CP, one reference", "PF, prompts met before"):
        low, middle, high = (per_cent(overhead[name][key]) for key in ("least", "median", "greatest"))
        rows.append([f"`update` beyond the tower, 8 samples, 6 layers: {name}", f"{middle} ({low} to {high})"])
    cached = results["cached layers=6 device=cpu"]
    for name in ("CP", "CP, pictures of 1024 x 1024", "PF"):
        what = f"`update` of 8 known pictures of one reference over the tower's time for them, 6 layers: {name}"
        rows.append([what, per_cent(cached[name]["median"])])
    look = results["lookup layers=6 device=cpu"]["share"]["median"]
    once = results["once layers=6 device=cpu"]
    shapes = results["shapes layers=2 device=cpu"]
    processes = results["processes layers=6 device=cpu"]
    imports = results["imports layers=6 device=cpu"]
    rows += [
        ["digest and look-up of a picture over its encoding, 6 layers", f"{100 * look:.2f} %"],
        ["the evaluation's passes", f"{once['images']} pictures, {once['texts']} prompts"],
        [
            f"64 pictures of 8 aspect ratios ({shapes['patches_mixed']} patches) over 64 of one "
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
    return table(["pictures, 8 an update, 2 layers", "time a picture", "peak resident"], rows)


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
        "memory ours_cp layers=27": "ours, CP alone",
        "memory ours_both layers=27": "ours, CP and PF",
        "memory theirs layers=27": "masc-metric 0.3.0 (always both)",
    }
    rows = [[name, f"{results[key]['8']['peak_gib']:.2f} GiB"] for key, name in names.items()]
    return table(["float32, 27 layers, 8 samples", "peak resident memory of the process"], rows)


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
            ("batch", "pictures in a pass (6 layers, 1024 patches)"),
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
    axes[0].set(ylabel="pictures a second")
    axes[0].set_ylim(0, 1.1 * max(rates["batch"].values()))
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    results = json.loads(RESULTS.read_text())
    text = PAGE.read_text()
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"{PAGE} has no block {name}"
        found = block(results)
        text = pattern.sub(lambda match, found=found: f"{match[1]}{found}\n{match[2]}", text)
    PAGE.write_text(text)
    plot(results)


if __name__ == "__main__":
    main()
