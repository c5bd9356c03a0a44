"""Metrics in a LightningModule: logs, checkpoints, training and precision under a Trainer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.batches import PATCHES, batch, counted_encodings
from support.trainers import (
    NAMES,
    collection,
    loader,
    noise,
    package,
    rows,
    third_party_warnings_ignored,
    toy,
    trainer,
)
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCIdentification

TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def _ignore_third_party_warnings() -> Iterator[None]:
    with third_party_warnings_ignored():
        yield


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def either(request: pytest.FixtureRequest) -> ModuleType:
    return package(request.param)


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return package("lightning")


def expected(checkpoint: Path, seeds: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Scores of the metrics without a Trainer."""
    metrics = collection(checkpoint)
    for seed in seeds:
        metrics.update(**batch(len(rows()), seed=seed))
    return {name: value.item() for name, value in metrics.compute().items()}


def logged(run: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if "val/" in name}


def test_compiled_modules_fit_with_the_metrics(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    """The checkpoint is read in compiled code. ``self.log`` is not, because torch 2.13 cannot compile it."""

    class Model(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 2)
            self.masc = collection(checkpoint)

        def training_step(self, values: torch.Tensor, index: int) -> torch.Tensor:
            return self.net(values).square().mean()  # type: ignore[no-any-return]

        def validation_step(self, values: dict[str, Any], index: int) -> None:
            self.masc.update(**{name: values[name] for name in NAMES})

        def on_validation_epoch_end(self) -> None:
            self.log_dict(self.masc.compute())
            self.masc.reset()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    run = trainer(lightning, tmp_path)
    run.fit(torch.compile(Model(), backend="aot_eager"), noise(), loader())
    assert logged(run) == pytest.approx(expected(checkpoint), abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_modules_with_the_metrics_become_torchscript(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    class Model(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 2)
            self.masc = collection(checkpoint)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.net(values)  # type: ignore[no-any-return]

    model = Model()
    model.masc.update(**batch(1))
    assert model.to_torchscript()(torch.ones(1, 4)).equal(model(torch.ones(1, 4)))


def saved(lightning: ModuleType, folder: Path, metrics: MetricCollection | None, **settings: Any) -> Path:
    run = trainer(lightning, folder, enable_checkpointing=True, **settings)
    run.fit(toy(lightning, metrics), noise(), loader())
    return Path(run.checkpoint_callback.best_model_path)


def test_checkpoints_contain_nothing_of_the_metrics_and_load_strictly_both_ways(
    either: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    without_metrics = saved(either, tmp_path / "without", None)
    with_metrics = saved(either, tmp_path / "with", collection(checkpoint))
    assert without_metrics.stat().st_size == with_metrics.stat().st_size
    kept, expected_state = (torch.load(file, weights_only=False) for file in (with_metrics, without_metrics))
    assert kept["state_dict"].keys() == expected_state["state_dict"].keys()
    assert all(torch.equal(value, expected_state["state_dict"][name]) for name, value in kept["state_dict"].items())
    assert kept["optimizer_states"][0].keys() == expected_state["optimizer_states"][0].keys()
    toy(either, collection(checkpoint)).load_state_dict(expected_state["state_dict"], strict=True)
    toy(either).load_state_dict(kept["state_dict"], strict=True)


def test_training_is_bit_identical_with_and_without_metrics(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """The network is read during training."""
    plain = toy(lightning)
    trainer(lightning, tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(plain, noise(), loader())
    rng_state = torch.get_rng_state()
    module = toy(lightning, collection(checkpoint))
    trainer(lightning, tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(module, noise(), loader())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in plain.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_runs_with_and_without_metrics_resume_each_other(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Optimiser and loops are restored too."""
    for start, metrics in ((None, collection(checkpoint)), (collection(checkpoint), None)):
        file = saved(lightning, tmp_path / f"{start is None}", start)
        run = trainer(lightning, tmp_path, max_epochs=2)
        run.fit(toy(lightning, metrics), noise(), loader(), ckpt_path=file)
        assert run.current_epoch == 2
        assert run.global_step == 8


def test_summary_optimiser_clipping_and_averaging_exclude_the_backbone(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="needs lightning 2.6")
    from lightning.pytorch.utilities.model_summary import summarize

    clipped: list[int] = []

    def count(self: Any, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        clipped.append(sum(len(group["params"]) for group in optimizer.param_groups))

    module = toy(lightning, collection(checkpoint))
    type(module).configure_gradient_clipping = count
    plain = toy(lightning)
    averaging = callbacks.WeightAveraging()
    run = trainer(lightning, tmp_path, callbacks=[averaging], gradient_clip_val=1.0)
    with counted_encodings() as counts:
        run.fit(module, noise(), loader())
    assert counts["images"] > 0, "the metrics have loaded their network"
    tensors = len(list(plain.parameters()))
    assert set(clipped) == {tensors}
    assert len(list(module.parameters())) == tensors
    assert len(list(module.modules())) < 20
    assert len(list(averaging._average_model.parameters())) == tensors
    assert summarize(module).total_parameters == summarize(plain).total_parameters


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"])
def test_scores_do_not_depend_on_the_trainers_precision(
    precision: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    # By name, Lightning replaces "16-mixed" by bfloat16 on a CPU; the plugin does not.
    plugins = {"plugins": [MixedPrecision("16-mixed", "cpu")]}
    run = trainer(lightning, tmp_path, **(plugins if precision == "16-mixed" else {"precision": precision}))
    run.validate(toy(lightning, collection(checkpoint)), loader(), verbose=False)
    assert logged(run) == pytest.approx(expected(checkpoint), abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_do_not_depend_on_the_modules_dtype(
    dtype: torch.dtype, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning, collection(checkpoint))
    module = module.half() if dtype == torch.float16 else module.to(torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    run = trainer(lightning, tmp_path)
    run.validate(module, loader(), verbose=False)
    assert logged(run) == pytest.approx(expected(checkpoint), abs=TOLERANCE)


def test_validate_test_and_fit_log_equal_scores(either: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    """States are reset after the sanity check and after each validation."""
    module, truth = toy(either, collection(checkpoint)), expected(checkpoint)
    run = trainer(either, tmp_path, max_epochs=2, num_sanity_val_steps=2)
    run.fit(module, noise(), loader())
    assert logged(run) == pytest.approx(truth, abs=TOLERANCE)
    assert run.validate(module, loader(), verbose=False)[0] == pytest.approx(truth, abs=TOLERANCE)
    assert run.test(module, loader(), verbose=False)[0] == pytest.approx(truth, abs=TOLERANCE)


def test_single_metrics_are_logged_by_step_and_by_epoch(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning, collection(checkpoint))
    module.cp = MaSCConceptPreservation(checkpoint, max_num_patches=64)

    def step(self: Any, values: dict[str, Any], index: int) -> None:
        self.cp(values["generated_images"], values["reference_images"], values["reference_masks"])
        self.log("val/cp", self.cp, on_step=True, on_epoch=True)

    type(module).validation_step = step
    run = trainer(lightning, tmp_path)
    run.validate(module, loader(), verbose=False)
    assert logged(run)["val/cp_epoch"] == pytest.approx(expected(checkpoint)["val/cp"], abs=TOLERANCE)


def test_several_dataloaders_have_separate_scores(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    module = toy(lightning)
    module.metrics = torch.nn.ModuleList([MaSCConceptPreservation(checkpoint, max_num_patches=64) for _ in range(2)])

    def step(self: Any, values: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        metric = self.metrics[dataloader_idx]
        metric.update(values["generated_images"], values["reference_images"], values["reference_masks"])
        self.log("val/cp", metric)

    type(module).validation_step = step
    run = trainer(lightning, tmp_path)
    run.fit(module, noise(), [loader(seed=0), loader(seed=50)])
    truth = {f"val/cp/dataloader_idx_{i}": expected(checkpoint, (seed,))["val/cp"] for i, seed in enumerate((0, 50))}
    assert logged(run) == pytest.approx(truth, abs=TOLERANCE)
    assert len(set(truth.values())) == 2


def test_fast_dev_run_logs_both_scores(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    run = trainer(lightning, tmp_path, fast_dev_run=True)
    run.fit(toy(lightning, collection(checkpoint)), noise(), loader())
    assert set(logged(run)) == {"val/cp", "val/pf"}


def test_forward_in_training_keeps_no_graph_and_constant_memory(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning)
    module.cp = MaSCConceptPreservation(checkpoint, max_num_patches=16)
    values = {name: value for name, value in batch(2).items() if name in NAMES}
    tensors: list[int] = []

    def step(self: Any, noise: torch.Tensor, index: int) -> torch.Tensor:
        shade = self.net(noise).mean().sigmoid()
        pictures = (values["generated_images"] / 255 * shade).clamp(0, 1)  # different in every step, and with a graph
        self.log("cp", self.cp(pictures, values["reference_images"], values["reference_masks"]))
        assert not self.cp.compute().requires_grad
        if index % 50 == 0:
            gc.collect()
            tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
        return shade

    type(module).training_step = step
    module.cp.backbone.cache.max_bytes = 0
    run = trainer(lightning, tmp_path)
    run.fit(module, noise(402))
    assert run.global_step == 201
    assert tensors[-1] <= tensors[1], f"live tensors: {tensors}"


def test_identification_is_logged_by_log_dict(lightning: ModuleType, tmp_path: Path, checkpoint: Path) -> None:
    gallery = batch(3)
    names = ["cat", "cup", "car"]
    metric = MaSCIdentification(
        names,
        gallery["reference_images"],
        gallery["reference_masks"],
        model_name_or_path=checkpoint,
        max_num_patches=PATCHES,
    )
    targets = [names[row["id"] % 3] for row in rows()]

    class Module(type(toy(lightning))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.identification = metric

        def validation_step(self, values: dict[str, Any], index: int) -> None:
            chosen = [targets[number] for number in values["id"]]
            self.identification.update(values["generated_images"], chosen, sample_ids=values["id"])

        def on_validation_epoch_end(self) -> None:
            self.log_dict({f"val/{name}": value for name, value in self.identification.compute().items()})
            self.identification.reset()

    module = Module()
    run = trainer(lightning, tmp_path)
    run.fit(module, noise(), loader())
    assert not [name for name in module.state_dict() if "identification" in name]
    alone = metric.clone()
    alone.update(torch.stack([row["generated_images"] for row in rows()]), targets)
    figures = {f"val/{name}": value.item() for name, value in alone.compute().items()}
    assert logged(run) == pytest.approx(figures, abs=TOLERANCE)
    assert set(figures) == {"val/identified", "val/mean_reciprocal_rank", "val/margin"}
