"""Metrics and callback in two processes, with strategies that replicate or shard a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes
from support.concept_cases import RecordingModel, three_concepts, validation
from support.trainers import collection, loader, noise, package, rows, third_party_warnings_ignored, toy, trainer

UNEVEN = 5  # a sampler pads it to six on two ranks
TOLERANCE = 1e-6


def ddp() -> dict[str, Any]:
    return {"strategy": "ddp"}


def fsdp() -> dict[str, Any]:
    """Lightning and torch require an accelerator for FSDP, except that torch accepts an explicit CPU device."""
    from lightning.pytorch.strategies import FSDPStrategy

    class OnCPU(FSDPStrategy):
        def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
            from torch.distributed.fsdp import FullyShardedDataParallel

            return FullyShardedDataParallel(
                model,
                device_id=torch.device("cpu"),
                mixed_precision=self.mixed_precision_config,
                sharding_strategy=self.sharding_strategy,
                **self.kwargs,
            )

    # Layers are gathered one at a time, so that ranks that do not call the same forwards are noticed.
    # Sharded checkpoints, because gathering the full state dict crashes on a CPU after training.
    return {"strategy": OnCPU(auto_wrap_policy={torch.nn.Linear}, state_dict_type="sharded")}


def fsdp2() -> dict[str, Any]:
    from lightning.pytorch.strategies import ModelParallelStrategy

    return {"strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}


def _fully_shard() -> Any:
    """Private before torch 2.6."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        from torch.distributed._composable.fsdp import fully_shard
    return fully_shard


STRATEGIES: dict[str, Callable[[], dict[str, Any]]] = {"ddp": ddp, "fsdp": fsdp, "fsdp2": fsdp2}


def module_for(strategy: str, metrics: Any = None, **settings: Any) -> Any:
    module = toy(package("lightning"), metrics, **settings)
    if strategy == "fsdp2":

        def shard(self: Any) -> None:
            for layer in self.net:
                if any(True for _ in layer.parameters()):
                    _fully_shard()(layer, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
            _fully_shard()(self.net, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)

        type(module).configure_model = shard
    return module


def numbers(run: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if "val/" in name}


def work(rank: int, world: int, checkpoint: str, folder: Path) -> dict[str, Any]:
    """All cases in one process group, since starting processes is slower than the cases."""
    lightning = package("lightning")
    results: dict[str, Any] = {}

    def start(case: str, strategy: str, **settings: Any) -> Any:
        return trainer(lightning, folder / case, devices=world, **STRATEGIES[strategy](), **settings)

    with third_party_warnings_ignored():
        for strategy in STRATEGIES:
            for keyed in (True, False):
                run = start("metrics", strategy)
                run.fit(module_for(strategy, collection(checkpoint), keyed=keyed), noise(), loader(UNEVEN))
                results[f"metrics {strategy} {'with' if keyed else 'without'} ids"] = numbers(run)
            for precision in ("bf16-mixed", "bf16-true"):
                run = start("metrics", strategy, precision=precision)
                run.validate(module_for(strategy, collection(checkpoint), keyed=True), loader(UNEVEN), verbose=False)
                results[f"metrics {strategy} {precision}"] = numbers(run)
            recorder = RecordingModel()
            callback = validation(checkpoint, recorder, concepts=three_concepts(), panel_dir=folder / strategy)
            run = start("callback", strategy, callbacks=[callback])
            run.validate(module_for(strategy), loader(1), verbose=False)
            results[f"callback {strategy}"] = numbers(run), recorder.prompts
            callback = validation(checkpoint, RecordingModel(), concepts=three_concepts())
            run = start("callback", strategy, num_sanity_val_steps=2, callbacks=[callback])
            run.fit(module_for(strategy), noise())
            results[f"callback {strategy} in fit"] = numbers(run)

        callback = validation(checkpoint, RecordingModel(), concepts=three_concepts())
        for case, callbacks in (("with", [callback]), ("without", [])):
            module = module_for("ddp")
            start(case, "ddp", callbacks=callbacks, max_epochs=2).fit(module, noise())
            results[f"weights {case}"] = {name: value.clone() for name, value in module.state_dict().items()}

        for strategy in STRATEGIES:
            # Cases of equal length, because a checkpoint contains its path.
            for case, metrics in (("none", None), ("both", collection(checkpoint))):
                run = start(f"{case}-{strategy}", strategy, enable_checkpointing=True)
                run.fit(module_for(strategy, metrics), noise(), loader())
                files = [Path(run.checkpoint_callback.best_model_path)]
                files = [file for file in files[0].rglob("*") if file.is_file()] if files[0].is_dir() else files
                results[f"size {strategy} {case}"] = sum(file.stat().st_size for file in files)

        def fails(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
            if rank == 1:
                raise MemoryError("out of memory")
            return RecordingModel().generate(module, prompts, seed)

        run = start(
            "raises", "ddp", callbacks=[validation(checkpoint, RecordingModel(), generate=fails, on_error="raise")]
        )
        try:
            run.validate(module_for("ddp"), loader(1), verbose=False)
        except RuntimeError as error:
            results["raised"] = str(error), repr(error.__cause__)

        class Failing(RecordingModel):
            def segment(self, pictures: torch.Tensor, nouns: list[str]) -> torch.Tensor:
                if rank == 0:
                    raise RuntimeError("no segmenter")
                return super().segment(pictures, nouns)

        for strategy in ("fsdp", "fsdp2"):
            callback = validation(checkpoint, Failing(), on_error="raise", batch_size=1)
            run = start(f"segment-{strategy}", strategy, callbacks=[callback])
            try:
                run.validate(module_for(strategy), loader(1), verbose=False)
            except RuntimeError as error:
                results[f"segment {strategy}"] = str(error)

        def seeding(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
            lightning.seed_everything(seed, verbose=False)
            return RecordingModel().generate(module, prompts, seed)

        module = module_for("ddp")
        seen: list[int] = []
        type(module).on_train_batch_start = lambda self, values, _: seen.extend(values[:, 0].int().tolist())
        shuffled = torch.utils.data.DataLoader(torch.arange(8.0)[:, None].expand(8, 4), batch_size=2, shuffle=True)  # type: ignore[arg-type]
        run = start("seeds", "ddp", callbacks=[validation(checkpoint, RecordingModel(), generate=seeding)])
        run.validate(module, loader(1), verbose=False)
        run.fit(module, shuffled)
        results["seen"] = seen

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = start("warns", "ddp", callbacks=[validation(checkpoint, RecordingModel(), generate=fails)])
            run.validate(module_for("ddp"), loader(1), verbose=False)
        results["warned"] = (
            numbers(run),
            [str(warning.message) for warning in caught if "MaSCValidation" in str(warning.message)],
        )
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(work, 2, tmp_path_factory.mktemp("ranks"), str(checkpoint), folder)


def single_process(checkpoint: Path, order: list[int]) -> dict[str, float]:
    metrics = collection(checkpoint)
    values = rows(UNEVEN)
    for index in order:
        metrics.update(
            **{
                name: value[None] if isinstance(value, torch.Tensor) else [value]
                for name, value in values[index].items()
                if name != "id"
            }
        )
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["with ids", "bf16-mixed", "bf16-true"])
def test_sampler_repeats_count_once_with_ids(
    case: str, strategy: str, ranks: list[dict[str, Any]], checkpoint: Path
) -> None:
    for rank in ranks:
        truth = single_process(checkpoint, list(range(UNEVEN)))
        assert rank[f"metrics {strategy} {case}"] == pytest.approx(truth, abs=TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sampler_repeats_count_twice_without_ids(strategy: str, ranks: list[dict[str, Any]], checkpoint: Path) -> None:
    """The sampler repeats the first sample; the documentation says so."""
    for rank in ranks:
        truth = single_process(checkpoint, [*range(UNEVEN), 0])
        assert rank[f"metrics {strategy} without ids"] == pytest.approx(truth, abs=TOLERANCE)
    assert truth["val/cp"] != pytest.approx(single_process(checkpoint, list(range(UNEVEN)))["val/cp"], abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_have_equal_size_with_and_without_metrics(strategy: str, ranks: list[dict[str, Any]]) -> None:
    assert ranks[0][f"size {strategy} both"] == ranks[0][f"size {strategy} none"] > 1000


@pytest.fixture(scope="module")
def one_process(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    with third_party_warnings_ignored():
        lightning = package("lightning")
        callback = validation(checkpoint, RecordingModel(), concepts=three_concepts(), panel_size=None)
        run = trainer(lightning, tmp_path_factory.mktemp("single"), callbacks=[callback])
        run.validate(toy(lightning), loader(1), verbose=False)
        return numbers(run)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_callback_distributes_prompts_and_scores_as_one_process(
    strategy: str, ranks: list[dict[str, Any]], one_process: dict[str, float], folder: Path
) -> None:
    generated = []
    wanted = [prompt for concept in three_concepts() for prompt in concept.prompts]
    for rank in ranks:
        scores, prompts = rank[f"callback {strategy}"]
        assert scores == pytest.approx(one_process, abs=TOLERANCE)
        assert scores.keys() >= {"val/masc_cp", "val/masc_pf", "val/masc_cp/kitten", "val/masc_pf/rocket"}
        assert scores.keys() >= {"val/masc_identified", "val/masc_mean_reciprocal_rank", "val/masc_margin"}
        generated += prompts
        fitted = rank[f"callback {strategy} in fit"]
        assert fitted == ranks[0][f"callback {strategy} in fit"], "all ranks have equal scores, and none is undefined"
        assert len(fitted) == 15, "two scores with intervals, both of three concepts, and three of identification"
    if strategy == "ddp":
        assert sorted(generated) == sorted(wanted)
    else:  # three batches on two ranks: both generate the last one of a sharded model, and it counts once
        assert len(ranks[0][f"callback {strategy}"][1]) >= len(wanted) - 2
        assert len(generated) > len(wanted)
    assert sorted(Path(name).suffix for name in os.listdir(folder / strategy)) == [".csv", ".png"], "of rank 0 only"


def test_training_is_bit_identical_with_and_without_the_callback(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name, value in rank["weights without"].items():
            assert torch.equal(rank["weights with"][name], value), name


def test_generators_that_seed_everything_do_not_change_the_data_of_a_rank(ranks: list[dict[str, Any]]) -> None:
    """Lightning shuffles by a seed in the environment; ranks with different seeds would repeat and miss samples."""
    assert sorted(ranks[0]["seen"] + ranks[1]["seen"]) == list(range(8))


def test_errors_of_one_rank_are_raised_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(ranks):
        text, cause = result["raised"]
        assert text.startswith("MaSCValidation, rank 1: generate raised MemoryError: out of memory")
        assert ("MemoryError" in cause) == (rank == 1)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_ranks_of_sharded_models_stay_synchronised_until_an_error_is_raised(
    strategy: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        text = rank[f"segment {strategy}"]
        assert text.startswith("MaSCValidation, rank 0: segment raised RuntimeError: no segmenter")


def test_errors_of_one_rank_are_warned_about_once_and_keep_other_samples(ranks: list[dict[str, Any]]) -> None:
    texts = [text for rank in ranks for text in rank["warned"][1]]
    assert len(texts) == 1
    assert "CP is undefined for 2 and PF for 2 of 5 images" in texts[0]
    assert "out of memory" in texts[0]
    for rank in ranks:
        assert rank["warned"][0] == ranks[0]["warned"][0]
        assert rank["warned"][0]["val/masc_cp"] == rank["warned"][0]["val/masc_cp"]
