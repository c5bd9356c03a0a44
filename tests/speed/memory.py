"""Memory, by name: ``python tests/speed/memory.py ours_cp theirs --layers 27``; each case in a fresh process.

Results go where those of ``measure.py`` go. Resident memory is the process's peak, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import torch
import workload
from workload import CP_NAMES, Evaluation, Ours, Theirs

from masc_metrics import MaSCConceptPreservation

GIB = 2**30


def ours_cp(layers: int, samples: int) -> None:
    metric = MaSCConceptPreservation(workload.checkpoint(layers))
    arguments = Evaluation.of(samples).arguments
    metric.update(**{name: arguments[name] for name in CP_NAMES})
    metric.compute()


def ours_both(layers: int, samples: int) -> None:
    Ours(workload.checkpoint(layers))(Evaluation.of(samples).arguments)


def ours_both_released(layers: int, samples: int) -> None:
    ours, arguments = Ours(workload.checkpoint(layers)), Evaluation.of(samples).arguments
    ours(arguments)
    ours.backbone.release_text_tower()
    print(f"after release {_resident_now() / GIB:.3f}", file=sys.stderr)


def theirs(layers: int, samples: int) -> None:
    Theirs(workload.checkpoint(layers))(Evaluation.of(samples))


def ours_cp_in_eights(layers: int, samples: int) -> None:
    """Ever new pictures, 8 an update, with the mean: what an evaluation of any size keeps."""
    metric = MaSCConceptPreservation(workload.checkpoint(layers))
    first = Evaluation.of(8).arguments
    generator = torch.Generator().manual_seed(0)
    metric.update(**{name: first[name] for name in CP_NAMES})  # the tower is read, the reference met
    start = time.perf_counter()
    for _ in range(samples // 8):
        images = torch.randint(0, 256, (8, 3, 512, 512), dtype=torch.uint8, generator=generator)
        metric.update(images, first["reference_images"], first["reference_masks"])
    print(f"seconds {time.perf_counter() - start}", file=sys.stderr)
    state = sum(value.nbytes for value in metric.metric_state.values() if isinstance(value, torch.Tensor))
    print(f"state bytes {state}", file=sys.stderr)


CASES = {case.__name__: case for case in (ours_cp, ours_both, ours_both_released, theirs, ours_cp_in_eights)}


def _resident_now() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Of this process only; getrusage starts at the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measured(case: str, layers: int, samples: int) -> dict[str, Any]:
    """Peak resident GiB of the case in a fresh process, and what it says itself."""
    program = [sys.executable, __file__, "--child", case, "--layers", str(layers), "--samples", str(samples)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("after", "seconds", "state"))]
    return {"samples": samples, "peak_gib": float(done.stdout.split()[-1]), "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--child", choices=CASES)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--samples", type=int, nargs="+", default=[8])
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    arguments = parser.parse_args()
    if arguments.child:
        CASES[arguments.child](arguments.layers, arguments.samples[0])
        print(_peak() / GIB)
        return
    build = [sys.executable, "-c", f"import workload; workload.checkpoint({arguments.layers})"]
    subprocess.run(build, check=True, cwd=Path(__file__).parent)  # so that no case is charged for it
    for case in arguments.cases:
        found = {str(samples): measured(case, arguments.layers, samples) for samples in arguments.samples}
        measure.record(arguments.results, f"memory {case}", {"layers": arguments.layers}, found)


if __name__ == "__main__":
    main()
