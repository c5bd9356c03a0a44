"""Two and three gloo processes give the results of one process on all data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes
from support.batches import PATCHES, batch, rows
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

SAMPLES = 7
ALL = list(range(SAMPLES))
UNDEFINED = (1, 5)


def data(undefined: bool = False) -> dict[str, Any]:
    values = batch(SAMPLES)
    if undefined:
        for index in UNDEFINED:
            values["reference_masks"][index] = False
            values["generated_masks"][index] = True
    return values


def collection(checkpoint: str, **settings: Any) -> MetricCollection:
    return MetricCollection(
        {
            "cp": MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, **settings),
            "pf": MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES, **settings),
        }
    )


def feed(metrics: MetricCollection, values: dict[str, Any], indices: list[int], keyed: bool, size: int = 2) -> None:
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        metrics.update(**rows(values, *part), **({"sample_ids": torch.tensor(part)} if keyed else {}))


def uneven(rank: int, world: int) -> list[int]:
    """The last rank has all remaining samples, the other ranks have one sample each."""
    return ALL[rank : rank + 1] if rank < world - 1 else ALL[rank:]


def without_data(rank: int, world: int) -> list[int]:
    """Rank 1 has all samples, the other ranks have none."""
    return ALL if rank == 1 else []


def padded(rank: int, world: int) -> list[int]:
    """Lightning's sampler: seven samples are not divisible by two or three, so the last ones are repeats."""
    return list(DistributedSampler(ALL, num_replicas=world, rank=rank, shuffle=True, seed=3))  # type: ignore[arg-type]


def empty(rank: int, world: int) -> list[int]:
    return []


Share = Callable[[int, int], list[int]]
# name: distribution of the samples, whether they have ids, settings, whether some samples are undefined
CASES: dict[str, tuple[Share, bool, dict[str, Any], bool]] = {
    "uneven": (uneven, False, {}, False),
    "uneven_undefined": (uneven, False, {}, True),
    "without_data": (without_data, False, {}, False),
    "padded_ids": (padded, True, {}, False),
    "padded_ids_undefined": (padded, True, {}, True),
    "without_data_ids": (without_data, True, {}, False),
    "none_uneven": (uneven, False, {"reduction": "none"}, True),
    "none_without_data": (without_data, False, {"reduction": "none"}, False),
    "none_padded_ids": (padded, True, {"reduction": "none"}, True),
    "none_without_data_ids": (without_data, True, {"reduction": "none"}, False),
    "none_ids_on_cpu_lists": (padded, True, {"reduction": "none", "compute_on_cpu": True}, False),
    "empty": (empty, False, {}, False),
    "empty_none": (empty, True, {"reduction": "none"}, False),
}


def work(rank: int, world: int, checkpoint: str) -> dict[str, Any]:
    """All cases in one process group, since starting processes is slower than the cases."""
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for name, (share, keyed, settings, undefined) in CASES.items():
        metrics = collection(checkpoint, **settings)
        feed(metrics, data(undefined), share(rank, world), keyed)
        results[name] = metrics.compute()
    # After a compute, each rank continues with its own states, not with the synchronised ones.
    metrics = collection(checkpoint)
    indices = ALL[rank::world]  # at least two each: without an update, compute returns torchmetrics' cached value
    feed(metrics, data(), indices[:1], keyed=False)
    metrics.compute()
    feed(metrics, data(), indices[1:], keyed=False)
    results["continued"] = metrics.compute()
    # A rank whose update fails after a compute synchronises with the others; its own samples are those of before.
    names = ("generated_images", "reference_images", "reference_masks")
    metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES)
    metric.update(**{name: value for name, value in rows(data(), rank).items() if name in names})
    metric.compute()
    arguments = {name: value for name, value in rows(data(), world + rank).items() if name in names}
    if rank == 0:
        metric.update(**arguments)
    else:
        with pytest.raises(TypeError):
            metric.update(**arguments | {"reference_masks": None})
    results["refused"] = metric.compute()
    # Synchronisation in forward.
    metric = MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, dist_sync_on_step=True)
    results["step"] = metric(**{n: v for n, v in rows(data(), rank).items() if n in names})
    return results


@pytest.fixture(scope="module", params=[2, 3], ids=["2 processes", "3 processes"])
def ranks(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return processes.run(work, request.param, folder, str(checkpoint))


def single_process(checkpoint: Path, settings: dict[str, Any], undefined: bool) -> dict[str, Tensor]:
    metrics = collection(str(checkpoint), **{k: v for k, v in settings.items() if k == "reduction"})
    feed(metrics, data(undefined), ALL, keyed=False)
    values: dict[str, Tensor] = metrics.compute()
    return values


@pytest.mark.filterwarnings("ignore:.*samples are undefined")
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("empty")])
def test_several_processes_equal_one_process(name: str, ranks: list[dict[str, Any]], checkpoint: Path) -> None:
    _, _, settings, undefined = CASES[name]
    expected = single_process(checkpoint, settings, undefined)
    for rank in ranks:
        for metric in ("cp", "pf"):
            assert rank[name][metric].shape == expected[metric].shape
            assert torch.allclose(rank[name][metric], expected[metric], atol=1e-6, equal_nan=True)


def test_a_refused_update_after_a_compute_does_not_return_the_cached_result(
    ranks: list[dict[str, Any]], checkpoint: Path
) -> None:
    metric = MaSCConceptPreservation(str(checkpoint), max_num_patches=PATCHES)
    accepted = rows(data(), *range(len(ranks) + 1))
    metric.update(*(accepted[name] for name in ("generated_images", "reference_images", "reference_masks")))
    for rank in ranks:
        assert rank["refused"].item() == pytest.approx(metric.compute().item(), abs=1e-6)


def test_compute_without_data_is_nan_or_empty(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert all(value.isnan() for value in rank["empty"].values())
        assert all(value.shape == (0,) for value in rank["empty_none"].values())


def test_accumulation_continues_after_a_compute(ranks: list[dict[str, Any]], checkpoint: Path) -> None:
    expected = single_process(checkpoint, {}, undefined=False)
    for rank in ranks:
        for metric in ("cp", "pf"):
            assert torch.allclose(rank["continued"][metric], expected[metric], atol=1e-6)


def test_synchronised_forward_equals_the_mean_over_ranks(ranks: list[dict[str, Any]], checkpoint: Path) -> None:
    metrics = collection(str(checkpoint))
    metrics.update(**rows(data(), *range(len(ranks))))
    for rank in ranks:
        assert torch.allclose(rank["step"], metrics.compute()["cp"], atol=1e-6)


def test_padding_repeats_without_ids_change_the_mean(checkpoint: Path) -> None:
    """Hence the cases with ids can fail: two ranks have eight samples out of seven."""
    metrics = collection(str(checkpoint))
    feed(metrics, data(), [index for rank in range(2) for index in padded(rank, 2)], keyed=False)
    expected = single_process(checkpoint, {}, undefined=False)
    assert not torch.allclose(metrics.compute()["cp"], expected["cp"], atol=1e-4)
