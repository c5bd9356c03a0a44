"""Contract of both metric classes: forms, states, copies, collections, forward, undefined samples, invalid input."""

from __future__ import annotations

import copy
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, counted_encodings, images, masks, only, rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection
from torchmetrics.wrappers import BootStrapper, MetricTracker

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing, load_backbone, release_backbones
from masc_metrics import backbone as backbone_module
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.sample_metric import SampleMetric

Build = Callable[..., SampleMetric]


class Kind:
    """A metric class with its arguments."""

    def __init__(self, name: str, checkpoint: Path) -> None:
        cp = name == "cp"
        self.name = name
        self.arguments = CP_ARGUMENTS if cp else PF_ARGUMENTS
        self.masks = "reference_masks" if cp else "generated_masks"
        self.metric: Build = partial(
            MaSCConceptPreservation if cp else MaSCPromptFollowing, checkpoint, max_num_patches=PATCHES
        )
        self.function = partial(concept_preservation if cp else prompt_following, max_num_patches=PATCHES)
        self.undefined_mask = 0 if cp else 1

    def batch(self, count: int, seed: int = 0, **size: int) -> dict[str, Any]:
        return only(batch(count, seed, **size), self.arguments)

    def undefined_batch(self, count: int, seed: int = 0) -> dict[str, Any]:
        values = self.batch(count, seed)
        return values | {self.masks: torch.full_like(values[self.masks], bool(self.undefined_mask))}


@pytest.fixture(params=["cp", "pf"])
def kind(request: pytest.FixtureRequest, checkpoint: Path) -> Kind:
    return Kind(request.param, checkpoint)


# --- values ---


def test_mean_over_batches_equals_the_mean_of_sample_scores(kind: Kind, checkpoint: Path) -> None:
    metric = kind.metric()
    scores = []
    for seed, count in enumerate((3, 1, 4)):
        metric.update(**kind.batch(count, seed=10 * seed))
        scores.append(kind.function(**kind.batch(count, seed=10 * seed), backbone=load_backbone(checkpoint)))
    value = metric.compute()
    assert value.dtype == torch.float32
    assert value.ndim == 0
    assert value.item() == pytest.approx(torch.cat(scores).mean().item(), abs=1e-6)
    assert -1 <= value <= 1


def test_reduction_none_gives_every_score_in_order(kind: Kind, checkpoint: Path) -> None:
    metric = kind.metric(reduction="none")
    metric.update(**kind.batch(3))
    metric.update(**kind.batch(2, seed=50))
    backbone = load_backbone(checkpoint)
    expected = [
        kind.function(**kind.batch(3), backbone=backbone),
        kind.function(**kind.batch(2, 50), backbone=backbone),
    ]
    assert torch.allclose(metric.compute(), torch.cat(expected), atol=1e-6)


@pytest.mark.parametrize("encode_batch_size", [1, 3, 16])
def test_scores_do_not_depend_on_the_batch(kind: Kind, encode_batch_size: int) -> None:
    seven = kind.batch(7)
    others = [kind.batch(1, seed=70 + i, height=64 + 40 * i, width=200 - 30 * i) for i in range(3)]
    mixed = {name: [*list(seven[name]), *(value for other in others for value in list(other[name]))] for name in seven}
    metric = kind.metric(reduction="none", encode_batch_size=encode_batch_size)

    def score(arguments: dict[str, Any]) -> Tensor:
        metric.reset()
        metric.backbone.cache.clear()
        metric.update(**arguments)
        return metric.compute()

    together = score(mixed)
    assert torch.allclose(score(seven), together[:7], atol=1e-6)
    for index in range(7):
        assert torch.allclose(score(rows(seven, index)), together[index], atol=1e-6)
    for index, other in enumerate(others):
        assert torch.allclose(score(other), together[7 + index], atol=1e-6)


def test_all_forms_of_images_and_masks_give_equal_scores(kind: Kind) -> None:
    arguments = kind.batch(3)
    metric = kind.metric(reduction="none")
    metric.update(**arguments)
    expected = metric.compute()

    def pil(values: Tensor) -> list[Image.Image]:
        if values.ndim == 4:
            return [Image.fromarray(value.permute(1, 2, 0).numpy()) for value in values]
        return [Image.fromarray(value.numpy() * 255) for value in values.to(torch.uint8)]

    changes: list[Callable[[Tensor], Any]] = [list, tuple, pil]
    for change in changes:
        metric.reset()
        metric.update(**{n: change(v) if isinstance(v, Tensor) else v for n, v in arguments.items()})
        assert torch.equal(metric.compute(), expected)
    for change in (lambda m: m.float(), lambda m: m.to(torch.uint8) * 255, lambda m: m.long(), lambda m: m[:, None]):
        metric.reset()
        metric.update(**arguments | {kind.masks: change(arguments[kind.masks])})
        assert torch.equal(metric.compute(), expected)
    metric.reset()
    floats = {n: v / 255 if isinstance(v, Tensor) and v.dtype == torch.uint8 else v for n, v in arguments.items()}
    metric.update(**floats)
    assert torch.allclose(metric.compute(), expected, atol=2e-2)  # resized without rounding


def test_pooling_and_stripping_settings_change_the_scores(checkpoint: Path) -> None:
    arguments = only(batch(4), PF_ARGUMENTS)
    backbone = load_backbone(checkpoint)

    def pf(**settings: Any) -> Tensor:
        metric = MaSCPromptFollowing(backbone, max_num_patches=PATCHES, reduction="none", **settings)
        metric.update(**arguments | settings.pop("changed", {}))
        return metric.compute()

    plain = pf()
    assert torch.equal(pf(pooling="background", strip_subject=True), plain)
    variants = [plain, pf(pooling="full"), pf(pooling="foreground"), pf(strip_subject=False)]
    for index, variant in enumerate(variants):
        for other in variants[index + 1 :]:
            assert not torch.allclose(variant, other, atol=1e-4)
    stripped = [prompt.replace("a cat ", "") for prompt in arguments["prompts"]]
    arguments |= {"prompts": stripped, "subjects": None}
    assert torch.allclose(pf(), plain, atol=1e-6)
    # Without a subject in the mask, the background is the complete image.
    full = pf(pooling="full")
    arguments["generated_masks"] = torch.zeros_like(arguments["generated_masks"])
    with pytest.warns(UserWarning, match="the masks of 4 generated images mark nothing"):
        assert torch.allclose(pf(), full, atol=1e-6)
    arguments["generated_masks"] = None
    assert torch.equal(pf(pooling="full"), full)
    with pytest.raises(TypeError, match="generated_masks is None; pooling='background' needs a mask"):
        pf()


def test_prompts_that_contain_only_the_subject_are_scored(checkpoint: Path) -> None:
    metric = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES)
    metric.update(images(1), masks(1), ["a cat"], ["cat"])
    assert metric.compute().isfinite()


# --- sample ids ---


def test_repeated_ids_count_once_with_the_first_sample(kind: Kind) -> None:
    plain, keyed = kind.metric(), kind.metric()
    plain.update(**kind.batch(5))
    keyed.update(**rows(kind.batch(5), 3, 1, 3), sample_ids=[30, 10, 30])
    keyed.update(**rows(kind.batch(5), 0, 2, 4, 1), sample_ids=torch.tensor([0, 20, 40, 10]))
    assert keyed.compute().item() == pytest.approx(plain.compute().item(), abs=1e-6)
    expected, listed = kind.metric(reduction="none"), kind.metric(reduction="none")
    expected.update(**kind.batch(5))
    listed.update(**rows(kind.batch(5), 4, 2, 0), sample_ids=[40, 20, -1])
    listed.update(**rows(kind.batch(5), 1, 3, 3), sample_ids=(10, 30, 30))
    assert torch.allclose(listed.compute(), expected.compute(), atol=1e-6)


def test_one_id_for_different_samples_counts_the_first_and_warns_once(kind: Kind) -> None:
    plain, keyed = kind.metric(), kind.metric()
    plain.update(**kind.batch(2))
    keyed.update(**kind.batch(2), sample_ids=[3, 8])
    keyed.update(**kind.batch(1, seed=99), sample_ids=[8])
    message = r"sample_ids contain 8 more than once, with different scores \(-?0\.\d+, which counts, and -?0\.\d+\)"
    with pytest.warns(UserWarning, match=message):
        value = keyed.compute()
    assert value.item() == pytest.approx(plain.compute().item(), abs=1e-6)
    keyed.update(**kind.batch(1, seed=98), sample_ids=[3])
    keyed.compute()  # warnings are errors here


def test_undefined_repeat_of_a_defined_sample_is_warned_about(kind: Kind) -> None:
    metric = kind.metric()
    metric.update(**kind.batch(1), sample_ids=[5])
    metric.update(**kind.undefined_batch(1), sample_ids=[5])
    with pytest.warns(UserWarning, match="sample_ids contain 5 more than once"):
        metric.compute()


def test_samples_with_and_without_ids_are_combined(kind: Kind) -> None:
    plain, parts = kind.metric(), kind.metric()
    plain.update(**kind.batch(5))
    parts.update(**rows(kind.batch(5), 0, 1))
    parts.update(**rows(kind.batch(5), 2, 3, 4), sample_ids=[7, 8, 9])
    assert parts.compute().item() == pytest.approx(plain.compute().item(), abs=1e-6)


# --- undefined samples ---


def test_undefined_samples_are_excluded_counted_and_warned_about_once(kind: Kind) -> None:
    plain, metric = kind.metric(), kind.metric()
    plain.update(**kind.batch(3))
    metric.update(**kind.batch(3))
    metric.update(**kind.undefined_batch(2, seed=5))
    metric.update(**kind.undefined_batch(1, seed=9), sample_ids=[4])
    assert metric.undefined_count == 3
    with pytest.warns(UserWarning, match="3 of 6 samples are undefined"):
        value = metric.compute()
    assert value.item() == pytest.approx(plain.compute().item(), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(**kind.undefined_batch(1))
        metric.compute()


def test_per_sample_output_is_nan_where_undefined_and_the_mean_of_none_is_nan(kind: Kind) -> None:
    metric = kind.metric(reduction="none")
    metric.update(**kind.batch(1))
    metric.update(**kind.undefined_batch(1))
    with pytest.warns(UserWarning, match="1 of 2 samples are undefined"):
        assert metric.compute().isnan().tolist() == [False, True]
    assert metric.undefined_count == 1
    none = kind.metric()
    none.update(**kind.undefined_batch(2))
    with pytest.warns(UserWarning, match="2 of 2 samples"):
        assert none.compute().isnan()


# --- one shared network, not part of the host module ---


class Host(nn.Module):
    def __init__(self, *metrics: SampleMetric) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.metrics = nn.ModuleList(metrics)


def test_host_modules_gain_no_state_parameter_buffer_or_submodule(kind: Kind) -> None:
    metric = kind.metric()
    host = Host(metric)
    metric.update(**kind.batch(2))
    assert list(host.state_dict()) == ["layer.weight", "layer.bias"]
    assert [name for name, _ in host.named_parameters()] == ["layer.weight", "layer.bias"]
    assert not list(host.buffers())
    assert [type(module).__name__ for module in metric.modules()] == [type(metric).__name__]
    assert host.load_state_dict(Host(kind.metric()).state_dict(), strict=True)
    host.train().requires_grad_(True)
    assert not metric.backbone._vision.network.training
    assert not any(p.requires_grad for p in metric.backbone._vision.network.parameters())


def test_copies_pickles_bootstrap_and_tracker_share_one_network(kind: Kind) -> None:
    metric = kind.metric()
    metric.update(**kind.batch(2))
    reads = []
    original = backbone_module.VisionTower.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone_module.VisionTower, "read", lambda *args: reads.append(1) or original(*args))
        copies = [metric.clone(), copy.deepcopy(metric), copy.copy(metric), pickle.loads(pickle.dumps(metric))]
        bootstrap = BootStrapper(kind.metric(), num_bootstraps=10, sampling_strategy="multinomial")
        tracker = MetricTracker(kind.metric())
        tracker.increment()
        tracker.update(**kind.batch(2))
        tracker.increment()
        tracker.update(**kind.batch(2, seed=4))
        if kind.name == "cp":  # BootStrapper resamples tensors only, not prompts
            bootstrap.update(**kind.batch(4))
            assert bootstrap.compute()["std"].isfinite()
    assert not reads
    for other in [*copies, *bootstrap.metrics, *tracker]:
        assert other.backbone is metric.backbone
    for other in copies:
        assert torch.equal(other.compute(), metric.compute())
    assert len(pickle.dumps(metric)) < 8000
    given = type(metric)(metric.backbone, max_num_patches=PATCHES)
    assert given.clone().backbone is given.backbone is metric.backbone
    assert len(pickle.dumps(given)) < 8000


def test_bootstrapping_encodes_each_image_once(checkpoint: Path) -> None:
    bootstrap = BootStrapper(MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES), num_bootstraps=10)
    with counted_encodings() as counts:
        bootstrap.update(**only(batch(6), CP_ARGUMENTS))
    assert counts["images"] <= 12


def test_collections_encode_each_image_once(checkpoint: Path) -> None:
    collection = MetricCollection(
        {
            "cp": MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES),
            "pf": MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES),
        },
        prefix="val/",
    )
    with counted_encodings() as counts:
        for seed in (0, 100, 200):
            collection.update(**batch(5, seed=seed))
        collection.update(**batch(5, seed=200))
    assert counts["images"] == 3 * 10
    values = collection.compute()
    assert set(values) == {"val/cp", "val/pf"}
    collection.reset()
    assert collection(**batch(2))["val/cp"].isfinite()


def test_compute_groups_never_merge_metrics_of_different_settings(checkpoint: Path) -> None:
    """Background and full pooling give equal scores if no mask marks a subject; a compute group would be permanent."""
    build = partial(MaSCPromptFollowing, checkpoint, max_num_patches=PATCHES)
    collection = MetricCollection({"background": build(), "full": build(pooling="full"), "twin": build()})
    first = only(batch(2), PF_ARGUMENTS)
    collection.update(**first | {"generated_masks": torch.zeros_like(first["generated_masks"])})
    collection.update(**only(batch(3, seed=8), PF_ARGUMENTS))
    with pytest.warns(UserWarning, match="the masks of 2 generated images mark nothing"):
        values = collection.compute()
    assert abs(values["background"] - values["full"]) > 1e-4
    assert values["background"] == values["twin"]
    assert sorted(map(sorted, collection.compute_groups.values())) == [["background", "twin"], ["full"]]


# --- devices and precision ---


def test_network_and_states_keep_their_precision_when_the_host_is_cast(kind: Kind) -> None:
    plain = kind.metric()
    plain.update(**kind.batch(3))
    for cast in (
        lambda host: host.half(),
        lambda host: host.bfloat16(),
        lambda host: host.double(),
        lambda host: host.to(torch.bfloat16),
        lambda host: host.to(dtype=torch.float16),
        lambda host: host.to("cpu", torch.bfloat16),
        lambda host: host.type(torch.float16),
    ):
        metric = kind.metric()
        host = cast(Host(metric))
        metric.update(**kind.batch(2))
        host = cast(host)
        metric.update(**rows(kind.batch(3), 2))
        dtypes = {state.dtype for state in metric.metric_state.values() if isinstance(state, Tensor)}
        assert dtypes == {torch.float64, torch.int64}
        assert metric.backbone is plain.backbone
        assert torch.allclose(metric.compute(), plain.compute(), atol=1e-6)  # the batches differ
        metric.reset()
        metric.update(**kind.batch(3))
        assert torch.equal(metric.compute(), plain.compute())


def test_update_does_not_depend_on_autocast(kind: Kind) -> None:
    plain, metric = kind.metric(), kind.metric()
    plain.update(**kind.batch(3))
    metric.backbone.cache.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(**kind.batch(3))
        assert torch.equal(metric.compute(), plain.compute())


def test_metrics_built_under_a_meta_device_context_work(kind: Kind) -> None:
    with torch.device("meta"):
        metric = kind.metric()
    host = Host(metric).to_empty(device="cpu")
    metric.update(**kind.batch(2))
    plain = kind.metric()
    plain.update(**kind.batch(2))
    assert torch.equal(host.metrics[0].compute(), plain.compute())


def test_inference_mode_and_training_can_alternate(kind: Kind) -> None:
    metric = kind.metric()
    with torch.inference_mode():
        metric.update(**kind.batch(2))
        metric.compute()
        metric.reset()
    metric.update(**kind.batch(2))
    value = metric(**kind.batch(2))
    with torch.inference_mode():
        metric.update(**kind.batch(2))
    assert torch.allclose(metric.compute(), value, atol=1e-6)
    assert not value.requires_grad


# --- forward ---


def test_forward_scores_its_batch_encodes_once_and_accumulates(kind: Kind) -> None:
    metric, other = kind.metric(), kind.metric()
    with counted_encodings() as counts:
        first = metric(**kind.batch(3))
        second = metric(**kind.batch(2, seed=40))
    assert counts["images"] == (10 if kind.name == "cp" else 5)
    assert metric.compute().item() == pytest.approx((3 * first + 2 * second).item() / 5, abs=1e-6)
    other.update(**kind.batch(3))
    assert torch.equal(first, other.compute())
    assert metric.update_count == 2


def test_failed_forward_keeps_the_accumulated_states(kind: Kind) -> None:
    for settings in ({}, {"reduction": "none"}):
        metric, plain = kind.metric(**settings), kind.metric(**settings)
        for updated in (metric, plain):
            updated.update(**kind.batch(3))
            updated.update(**kind.batch(2, seed=6), sample_ids=[3, 4])
        bad = kind.batch(2, seed=9) | {"generated_images": torch.full((2, 3, 8, 8), torch.nan)}
        with pytest.raises(ValueError, match="NaN"):
            metric(**bad)
        assert metric.update_count == 2
        metric.update(**kind.batch(1, seed=7))
        plain.update(**kind.batch(1, seed=7))
        assert torch.equal(metric.compute(), plain.compute())


# --- life cycle ---


def test_reset_clears_and_merge_state_adds_samples(kind: Kind) -> None:
    metric, other = kind.metric(), kind.metric()
    metric.update(**kind.batch(2, seed=30))
    metric.reset()
    metric.update(**rows(kind.batch(5), 0, 1))
    other.update(**rows(kind.batch(5), 2, 3), sample_ids=[2, 3])
    other.update(**rows(kind.batch(5), 4))
    metric.merge_state(other)
    expected = kind.metric()
    expected.update(**kind.batch(5))
    assert metric.compute().item() == pytest.approx(expected.compute().item(), abs=1e-6)


def test_per_sample_output_of_one_sample_has_shape_1(kind: Kind) -> None:
    metric = kind.metric(reduction="none")
    assert metric(**kind.batch(1)).shape == (1,)
    assert metric.compute().shape == metric.compute().shape == (1,)
    assert pickle.loads(pickle.dumps(metric)).compute().shape == metric.clone().compute().shape == (1,)
    assert kind.metric()(**kind.batch(1)).shape == ()


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_persistent_states_and_merges_do_not_depend_on_the_checkpoint_path(
    kind: Kind, checkpoint: Path, tmp_path: Path
) -> None:
    elsewhere = Kind(kind.name, shutil.copytree(checkpoint, tmp_path / "elsewhere"))
    for settings in ({}, {"reduction": "none"}):
        metric, other = kind.metric(**settings), elsewhere.metric(**settings)
        metric.update(**kind.batch(3))
        metric.update(**kind.batch(2, seed=9), sample_ids=[1, 2])
        metric.persistent(True)
        other.persistent(True)
        saved = Host(metric).state_dict()
        assert "metrics.0.keyed_ids" in saved
        assert not any("settings" in name for name in saved)
        Host(other).load_state_dict(saved, strict=True)
        assert torch.equal(other.compute(), metric.compute())
        merged = elsewhere.metric(**settings)
        merged.update(**kind.batch(2, seed=40), sample_ids=[2, 3])
        first = merged.compute()
        merged.merge_state(metric)
        with pytest.warns(UserWarning, match="sample_ids contain 2 more than once"):
            value = merged.compute()
        if settings:  # sorted by id: 1, 2 (its own sample) and 3, then the samples without id
            assert value[1] == first[0]
            assert len(value) == 6
    with pytest.raises(ValueError, match=r"cannot merge .*; merge metrics of one class and settings"):
        kind.metric().merge_state(kind.metric(reduction="none"))
    for wrong in ({"score_sum": torch.tensor(1.0)}, kind.metric(max_num_patches=9).metric_state, 3):
        with pytest.raises(ValueError, match="incoming_state does not match; give a metric of this class and settings"):
            kind.metric().merge_state(wrong)  # type: ignore[arg-type]


def test_repr_names_model_and_settings(kind: Kind, checkpoint: Path) -> None:
    text = repr(kind.metric())
    for part in (str(checkpoint), "torch.float32", str(PATCHES), "mean"):
        assert part in text


def test_subjects_missing_in_their_prompt_are_warned_about_once(checkpoint: Path) -> None:
    metric = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES)
    prompts = ["a cat on a beach", "two cats on a beach"]
    with pytest.warns(UserWarning, match=r"subjects\[1\] 'cat' does not occur as complete words in prompts\[1\]"):
        metric.update(images(2), masks(2), prompts, ["cat", "cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(images(2), masks(2), prompts, ["dog", None])
        MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES, strip_subject=False).update(
            images(2), masks(2), prompts, ["dog", "dog"]
        )
        metric.compute()
    assert metric.unstripped_count == 2


def test_masks_without_a_subject_are_counted_and_warned_about_once(checkpoint: Path) -> None:
    metric, given = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES), masks(3)
    given[1] = 0
    given[2] = 0
    prompts = ["a cat on a beach"] * 3
    metric.update(images(3), given, prompts, ["cat"] * 3)
    with pytest.warns(UserWarning, match="the masks of 2 generated images mark nothing.* at what made the masks"):
        metric.compute()
    metric.update(images(1), given[1:2], prompts[:1], ["cat"])
    metric.compute()  # warnings are errors here
    assert metric.empty_mask_count == 3
    for pooling in ("full", "foreground"):
        other = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES, pooling=pooling)
        other.update(images(3), given, prompts, ["cat"] * 3)
        assert other.empty_mask_count == 0
    metric.reset()
    assert metric.empty_mask_count == 0


def test_prompts_longer_than_the_text_tower_are_counted_and_warned_about_once(checkpoint: Path) -> None:
    metric = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES)
    backbone = metric.backbone
    length = backbone.checkpoint.text_length
    long = "a cat" + " on a beach" * length
    assert backbone.cut_tokens([long]) == [0]  # not encoded yet
    message = rf"prompts\[2\] has \d+ tokens, of which the text tower reads the first {length}; .*'a cat on a beach"
    with pytest.warns(UserWarning, match=message) as caught:
        metric.update(images(3), masks(3), ["a cat", long, f"{long} at night"], ["cat"] * 3)
    shorter, longer = backbone.cut_tokens(["on a beach " * (length - 1) + "on a beach", f"{long} at night"[6:]])
    assert 0 < shorter < longer
    assert f"has {length + longer} tokens" in str(caught[0].message)
    metric.update(images(1), masks(1), [long], ["cat"])
    metric.compute()  # warnings are errors here
    assert metric.cut_prompt_count == 3
    one, other = backbone.encode_texts([long, f"{long} at night"])
    assert torch.equal(one, other)  # why it is said
    with pytest.warns(UserWarning, match=r"^prompts\[0\] has \d+ tokens"):
        prompt_following(images(1), masks(1), [long], ["cat"], backbone=backbone, max_num_patches=PATCHES)


class Reads(TorchDispatchMode):
    """Counts the operations that copy values to the host, each of which waits for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "index.Tensor"))
        return func(*args, **kwargs or {})


def test_compute_copies_all_that_it_may_warn_of_at_once_and_nothing_that_it_has_warned_of(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES)
    box = masks(1)[0]
    given = torch.stack([~box, torch.zeros_like(box), torch.ones_like(box)])
    arguments = (images(3) * torch.tensor([0, 1, 1])[:, None, None, None].byte(), given)
    with pytest.warns(UserWarning, match=r"prompts\[2\]|subjects\[1\]"):
        metric.update(*arguments, prompts=["a cat", "at night", "at night " * 200], subjects=["cat"] * 3)
    with Reads(monkeypatch) as reads, pytest.warns(UserWarning, match=r"\d") as caught:
        metric.compute()
    assert reads.count == 1
    texts = sorted(str(each.message).removeprefix("MaSCPromptFollowing: ")[:20] for each in caught)
    assert texts == ["1 generated images h", "1 masks cover most o", "1 of 3 samples are u", "the masks of 1 gener"]
    metric.update(*arguments, prompts=["a cat"] * 3)
    with Reads(monkeypatch) as reads:
        metric.compute()
    assert reads.count == 0


def test_warnings_about_other_ranks_samples_are_given_by_compute(checkpoint: Path) -> None:
    first, second = (MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.update(images(1), masks(1), ["at night " * 200], ["cat"])
        first.update(images(1), masks(1), ["a cat"], ["cat"])
        first.merge_state(second)
        assert len(caught) == 2
        first.compute()
        first.compute()
    texts = [str(each.message).removeprefix("MaSCPromptFollowing: ") for each in caught[2:]]
    assert [text[:30] for text in texts] == ["1 prompts are longer than the ", "the subject was not found in 1"]


def test_different_samples_with_one_id_in_one_update_are_an_error_that_keeps_the_state(kind: Kind) -> None:
    metric = kind.metric()
    metric.update(**kind.batch(2), sample_ids=[1, 2])
    value = metric.compute()
    message = r"sample_ids holds 7 more than once in one update, for samples with different scores \(.*prompt_index \*"
    with pytest.raises(ValueError, match=message):
        metric.update(**kind.batch(4, seed=5), sample_ids=[7, 7, 7, 7])
    with pytest.raises(ValueError, match=message):
        metric(**kind.batch(4, seed=5), sample_ids=torch.tensor([6, 7, 5, 7]))
    assert metric.update_count == 1
    assert metric.compute() == value


def test_compute_before_any_update_is_nan(kind: Kind) -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert kind.metric().compute().isnan()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert kind.metric(reduction="none").compute().shape == (0,)


def test_plot_draws_within_the_bounds(kind: Kind) -> None:
    import matplotlib.pyplot as plt

    metric = kind.metric()
    metric.update(**kind.batch(2))
    figure, axes = metric.plot()
    assert axes.get_ylim()[0] <= -1
    assert axes.get_ylim()[1] >= 1
    _, axes = metric.plot([metric.compute()] * 3)
    assert axes.has_data()
    none = kind.metric(reduction="none")
    none.update(**kind.batch(3))
    none.plot()
    assert figure is not None
    plt.close("all")
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == (-1, 1)
    assert metric.higher_is_better
    assert not metric.is_differentiable
    assert not metric.full_state_update


def test_repeated_forwards_keep_no_graph_and_constant_memory(kind: Kind) -> None:
    metric = kind.metric()
    arguments = kind.batch(1)
    arguments["generated_images"] = (arguments["generated_images"] / 255).requires_grad_()
    for _ in range(200):
        assert not metric(**arguments).requires_grad
    sizes = {name: len(s) if isinstance(s, list) else s.numel() for name, s in metric.metric_state.items()}
    assert set(sizes.values()) == {0, 1}


class Computing(nn.Module):
    """A module that computes something and holds a metric, alone and in a collection."""

    def __init__(self, metric: SampleMetric) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.metric = metric
        self.metrics = MetricCollection({"metric": copy.deepcopy(metric)})

    def forward(self, values: Tensor) -> Tensor:
        doubled: Tensor = 2 * self.linear(values)
        return doubled

    def step(self, values: Tensor, arguments: dict[str, Any]) -> Tensor:
        self.metric.update(**arguments)
        self.metrics(**arguments)
        return self(values)


def test_compiled_code_gives_equal_scores_and_reads_the_checkpoint(kind: Kind) -> None:
    expected = kind.metric()
    expected.update(**kind.batch(2))
    function = kind.function(**kind.batch(2), backbone=expected.backbone)
    release_backbones()
    host = Computing(kind.metric())
    compiled = torch.compile(host.step, backend="aot_eager")
    assert compiled(torch.ones(1, 3), kind.batch(2)).equal(host(torch.ones(1, 3)))
    assert host.metric.compute().equal(expected.compute())
    assert host.metrics.compute()["metric"].equal(expected.compute())
    release_backbones()

    def score() -> Tensor:
        source = expected.backbone.source.model
        return 1 * kind.function(**kind.batch(2), backbone=load_backbone(source))

    assert torch.compile(score, backend="aot_eager")().equal(function)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_modules_that_hold_metrics_can_be_scripted(kind: Kind) -> None:
    host, values = Computing(kind.metric()), torch.ones(1, 3)
    for _ in ("before the checkpoint is read", "afterwards"):
        scripted = torch.jit.script(host)  # type: ignore[no-untyped-call]
        assert scripted(values).equal(host(values))
        host.step(values, kind.batch(1))


def test_a_collection_agrees_again_at_the_update_after_a_refused_one(checkpoint: Path) -> None:
    settings: dict[str, Any] = {"model_name_or_path": checkpoint, "max_num_patches": PATCHES}
    equal = {name: MaSCConceptPreservation(**settings) for name in ("first", "second")}
    metrics = MetricCollection({**equal, "pf": MaSCPromptFollowing(**settings)})
    alone = MaSCConceptPreservation(**settings), MaSCPromptFollowing(**settings)
    for seed, refused in ((1, False), (2, False), (3, True), (4, False)):
        values = batch(2, seed=seed)
        alone[0].update(**only(values, CP_ARGUMENTS))
        if refused:
            list(metrics.items())
            with pytest.raises(ValueError, match=r"prompts\[0\] is empty"):
                metrics.update(**values | {"prompts": ["", ""]})
            continue
        metrics.update(**values)
        alone[1].update(**only(values, PF_ARGUMENTS))
    assert metrics.compute_groups == {0: ["first", "second"], 1: ["pf"]}
    found = metrics.compute()
    assert found["first"] == found["second"] == alone[0].compute(), "the refused batch counts in CP"
    assert found["pf"] == alone[1].compute()


def test_dtypes_are_given_as_names_too(kind: Kind) -> None:
    for name in ("bfloat16", "torch.bfloat16", "bf16"):
        metric = kind.metric(dtype=name)
        assert metric.backbone is kind.metric(dtype=torch.bfloat16).backbone
        assert load_backbone(metric.backbone.source.model, dtype=name) is metric.backbone
    assert kind.metric(dtype="float32").backbone is kind.metric().backbone


def test_pickles_of_older_versions_without_some_counts_are_restored_with_zeros(kind: Kind) -> None:
    metric = kind.metric()
    metric.update(**kind.batch(2))
    state = copy.deepcopy(metric.__getstate__())
    missing = ["undefined_sum"]
    if kind.name == "pf":
        missing += ["transferred_sum", "empty_mask_sum", "cut_prompt_sum", "unstripped_sum"]
    for name in missing:
        for names in (state, state["_defaults"], state["_persistent"], state["_reductions"]):
            del names[name]
    del state["_warned"]
    old = object.__new__(type(metric))
    old.__setstate__(state)
    assert old.compute().equal(metric.compute())
    assert [int(getattr(old, name)) for name in missing] == [0] * len(missing)
    old.update(**kind.undefined_batch(1))
    with pytest.warns(UserWarning, match="1 of 3 samples are undefined"):
        assert old.compute().equal(metric.compute())
    restored = pickle.loads(pickle.dumps(old))
    assert restored.undefined_count == 1
    old.reset()
    assert old.undefined_count == 0


def test_updates_of_several_threads_all_count(kind: Kind) -> None:
    inside: list[int] = []

    class Slow(type(kind.metric())):  # type: ignore[misc]
        def accumulate(self, scores_B: Tensor, ids: Tensor | None) -> None:
            inside.append(1)
            time.sleep(0.02)
            assert len(inside) == 1
            super().accumulate(scores_B, ids)
            inside.pop()

    metric = Slow(kind.metric().backbone, max_num_patches=PATCHES)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(metric.update, **kind.batch(1, seed)) for seed in range(8)]:
            done.result()
    assert metric.update_count == 8
    assert int(metric.sample_count) == 8


# --- invalid input ---

BAD: dict[str, list[tuple[dict[str, Any], type[Exception], str]]] = {
    "cp": [
        ({"reference_images": images(2)}, ValueError, "reference_images holds 2 samples but generated_images holds 3"),
        ({"reference_masks": masks(2)}, ValueError, "reference_masks holds 2 masks for 3 images"),
        ({"reference_masks": masks(3, 96, 96)}, ValueError, r"reference_masks\[0\] is \(96, 96\) but its image is"),
        ({"reference_images": images(3) / 127.5 - 1}, ValueError, r"reference_images\[0\].*diffusers'"),
        ({"reference_masks": masks(3) * 2.0}, ValueError, r"reference_masks\[\d\].*outside \[0, 1\]"),
    ],
    "pf": [
        ({"generated_masks": masks(4)}, ValueError, "generated_masks holds 4 masks for 3 images"),
        ({"generated_masks": masks(3, 128, 96)}, ValueError, r"generated_masks\[0\] is \(128, 96\) but its image is"),
        ({"generated_masks": None}, TypeError, "generated_masks is None; pooling='background' needs a mask"),
        ({"prompts": ["a cat"] * 2}, ValueError, "prompts holds 2 samples but generated_images holds 3"),
        ({"prompts": "a cat"}, TypeError, "prompts is a str; give a list of strings, one for each sample"),
        ({"prompts": None}, TypeError, "prompts is a NoneType"),
        ({"prompts": ["a", "b", 3]}, TypeError, r"prompts\[2\] is an int; give a string"),
        (
            {"prompts": ["a", "b", "c \ud800"]},
            ValueError,
            r"prompts\[2\] 'c \\ud800' contains half of a surrogate pair",
        ),
        (
            {"prompts": ["a", " ", "c"]},
            ValueError,
            r"prompts\[1\] is empty; give the prompt that generated_images\[1\]",
        ),
        ({"subjects": ["cat"]}, ValueError, "subjects holds 1 samples but generated_images holds 3"),
        ({"subjects": "cat"}, TypeError, "subjects is a str"),
        ({"subjects": ["cat", 3, None]}, TypeError, r"subjects\[1\] is an int; give a string, or None"),
    ],
    "both": [
        ({"generated_images": images(3)[0]}, ValueError, "generated_images is one tensor.*add a batch dimension"),
        ({"generated_images": images(3)[:, :1]}, ValueError, r"generated_images\[0\] has shape \(1, 96, 128\)"),
        ({"generated_images": images(3).long()}, TypeError, r"generated_images\[0\] is torch.int64"),
        ({"generated_images": images(3) / 127.5 - 1}, ValueError, r"generated_images\[0\].*diffusers' \[-1, 1\]"),
        ({"generated_images": []}, ValueError, "generated_images is empty"),
        ({"sample_ids": [1, 2]}, ValueError, "sample_ids holds 2 ids but generated_images holds 3"),
        ({"sample_ids": [1, 2, 3.0]}, TypeError, r"sample_ids\[2\] is 3.0, a float; give integers"),
        ({"sample_ids": ["a", "b", "c"]}, TypeError, r"sample_ids\[0\] is 'a', a str"),
        ({"sample_ids": [True, 1, 2]}, TypeError, r"sample_ids\[0\] is True, a bool"),
        ({"sample_ids": torch.rand(3)}, TypeError, "sample_ids is torch.float32; give integers"),
        ({"sample_ids": torch.ones(3, 1, dtype=torch.int64)}, ValueError, r"sample_ids has shape \(3, 1\)"),
        ({"sample_ids": torch.tensor([True] * 3)}, TypeError, "sample_ids is torch.bool"),
        (
            {"sample_ids": torch.tensor([1, 2, 2**63 + 3], dtype=torch.uint64)},
            ValueError,
            r"sample_ids\[2\] is .* 64 bits",
        ),
        ({"sample_ids": "123"}, TypeError, "sample_ids is a str"),
        ({"sample_ids": [1, 2, 2**70]}, ValueError, r"sample_ids\[2\] is .* more than 64 bits"),
    ],
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_errors_for_invalid_input_name_the_argument_and_change_no_state(kind: Kind, reduction: str) -> None:
    metric = kind.metric(reduction=reduction)
    metric.update(**kind.batch(2, seed=77), sample_ids=[1, 2])
    metric.update(**kind.batch(2, seed=88))
    before = metric._copy_state_dict()
    for change, error, message in BAD[kind.name] + BAD["both"]:
        with pytest.raises(error, match=f"^{message}"):
            metric.update(**kind.batch(3) | change)
        after = metric.metric_state
        assert set(after) == set(before)
        assert metric.update_count == 2
        for name, state in before.items():
            if isinstance(state, list):
                assert all(torch.equal(a, b) for a, b in zip(state, after[name], strict=True))
            else:
                assert torch.equal(state, after[name])


def test_invalid_input_is_rejected_before_the_checkpoint_is_read(kind: Kind, tmp_path: Path) -> None:
    metric = type(kind.metric())(tmp_path / "missing")
    with pytest.raises(TypeError, match=r"torch\.int64"):
        metric.update(**kind.batch(1) | {"generated_images": images(1).long()})
    with pytest.raises(TypeError, match="sample_ids"):
        metric.update(**kind.batch(1), sample_ids=["one"])
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        metric.update(**kind.batch(1))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reduction": "sum"}, ValueError, "reduction is 'sum'; give 'mean' or 'none'"),
        ({"max_num_patches": 0}, ValueError, "max_num_patches is 0; give at least 1"),
        ({"max_num_patches": 64.0}, TypeError, r"max_num_patches is 64\.0, a float; give the integer 64"),
        ({"max_num_patches": "64"}, TypeError, "max_num_patches is '64', a str; give the integer 64"),
        ({"max_num_patches": 64.5}, TypeError, r"max_num_patches is 64\.5, a float; give an integer"),
        ({"encode_batch_size": -1}, ValueError, "encode_batch_size is -1"),
        (
            {"dtype": "bf16-mixed"},
            ValueError,
            r"dtype is 'bf16-mixed'; give a torch.dtype or its name: float32 \(fp32\), bfloat16 \(bf16\)",
        ),
        ({"dtype": torch.int8}, ValueError, "dtype is torch.int8; give a torch.dtype or its name: float32"),
        ({"dtype": 16}, TypeError, "dtype is an int; give a torch.dtype or its name: float32"),
        ({"model_name_or_path": 3}, TypeError, "model_name_or_path is an int"),
        ({"no_such_setting": 3}, ValueError, "Unexpected keyword arguments: `no_such_setting`"),
    ],
)
def test_errors_for_invalid_settings_name_the_argument(
    kind: Kind, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        type(kind.metric())(**settings)


def test_errors_for_invalid_pooling_and_backbone_name_the_argument(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="pooling is 'mean'; give 'background', 'full' or 'foreground'"):
        MaSCPromptFollowing(pooling="mean")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strip_subject is a str"):
        MaSCPromptFollowing(strip_subject="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backbone is a PosixPath; give the result of"):
        concept_preservation(**only(batch(1), CP_ARGUMENTS), backbone=checkpoint)  # type: ignore[arg-type]
