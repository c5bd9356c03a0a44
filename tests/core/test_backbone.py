"""Backbone: reading, features independent of batch, padding and precision settings, sharing, and caches."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, counted_encodings, images, only
from support.checkpoints import build_checkpoint
from torch import Tensor

from masc_metrics import MaSCConceptPreservation, SigLIP2Backbone, load_backbone, onednn, release_backbones
from masc_metrics import backbone as backbone_module
from masc_metrics.cache import FeatureCache, content_digests
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.towers import VisionTower


def encode(backbone: SigLIP2Backbone, pictures: Any, **settings: Any) -> Tensor:
    backbone.cache.clear()
    return backbone.encode_images(pictures, max_num_patches=PATCHES, **settings).tokens_BND


def parameters_of(backbone: SigLIP2Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone._vision.network.parameters())


# --- what is read ---


def test_concept_preservation_never_reads_the_text_tower(backbone: SigLIP2Backbone) -> None:
    concept_preservation(**only(batch(2), CP_ARGUMENTS), backbone=backbone, max_num_patches=PATCHES)
    assert not backbone.text_tower_loaded
    prompt_following(**only(batch(2), PF_ARGUMENTS), backbone=backbone, max_num_patches=PATCHES)
    assert backbone.text_tower_loaded


def test_concept_preservation_works_without_text_tower_files(checkpoint: Path, tmp_path: Path) -> None:
    """The text tower's weights and the tokenizer do not exist here."""
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    weights = load_file(checkpoint / "model.safetensors")
    vision = {name: tensor for name, tensor in weights.items() if name.startswith("vision_model.")}
    save_file(vision, tmp_path / "model.safetensors", metadata={"format": "pt"})
    complete, half = load_backbone(checkpoint), load_backbone(tmp_path)
    assert torch.equal(encode(complete, images(2)), encode(half, images(2)))
    with pytest.raises(OSError, match="has no readable tokenizer"):
        half.encode_texts(["a cat"])
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(checkpoint / name, tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its text tower"):
        half.encode_texts(["a cat"])


def test_pooling_head_is_not_run_by_encode_images(backbone: SigLIP2Backbone) -> None:
    calls = []
    backbone._vision.network.head.register_forward_hook(lambda *_: calls.append(1))
    encode(backbone, images(2))
    assert not calls


def test_sharded_checkpoints_are_read(checkpoint: Path, tmp_path: Path) -> None:
    sharded = build_checkpoint(tmp_path / "sharded", max_shard_size="60KB")
    assert not (sharded / "model.safetensors").exists()
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert torch.equal(encode(load_backbone(checkpoint), images(2)), encode(load_backbone(sharded), images(2)))


def test_mean_std_and_patch_size_come_from_the_files(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    file = folder / "preprocessor_config.json"
    values = json.loads(file.read_text()) | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    file.write_text(json.dumps(values))
    processing = load_backbone(folder).checkpoint.processing
    assert (processing.mean, processing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not torch.equal(encode(load_backbone(folder), images(1)), encode(load_backbone(checkpoint), images(1)))
    # transformers 5 saves the values inside processor_config.json
    file.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    release_backbones()
    assert load_backbone(folder).checkpoint.processing == processing


def test_naflex_is_detected_by_the_config_and_not_by_the_name(tmp_path: Path) -> None:
    fixed = build_checkpoint(tmp_path / "so-called-naflex", naflex=False)
    naflex = build_checkpoint(tmp_path / "so-called-patch16-512")
    assert load_backbone(fixed).checkpoint.processing.fixed_size == 256
    assert load_backbone(naflex).checkpoint.processing.fixed_size is None
    assert load_backbone(fixed).encode_images(images(1, 40, 90)).grids == ((16, 16),)
    assert load_backbone(naflex).encode_images(images(1, 512, 512)).grids == ((32, 32),)


def test_reading_prints_and_logs_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_backbone(checkpoint).encode_texts(["a cat"])
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


# --- features ---


@pytest.mark.parametrize("kind", ["checkpoint", "fixed_checkpoint"])
def test_features_do_not_depend_on_the_rest_of_the_batch(kind: str, request: pytest.FixtureRequest) -> None:
    backbone = load_backbone(request.getfixturevalue(kind))
    pictures = [images(1, 96 + 16 * (i % 3), 128, seed=i)[0] for i in range(7)]
    together = encode(backbone, pictures, batch_size=4)
    for index, picture in enumerate(pictures):
        single = encode(backbone, [picture])[0]
        assert torch.allclose(single, together[index, : len(single)], atol=1e-6)
        assert not together[index, len(single) :].any()


def test_images_of_equal_grid_are_batched(backbone: SigLIP2Backbone) -> None:
    pictures = [images(1, 96 if i % 2 else 160, 128, seed=i)[0] for i in range(10)]
    with counted_encodings() as counts:
        encode(backbone, pictures, batch_size=3)
    assert counts["images"] == 10
    assert counts["image_passes"] == 4  # five images of each grid, in passes of three and two


def test_batches_have_nearly_equal_sizes(backbone: SigLIP2Backbone) -> None:
    """On a GPU, a pass of one image costs nearly as much as a pass of a full batch."""
    sizes = []
    encode_images = VisionTower.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisionTower, "encode", lambda self, x: (sizes.append(len(x)), encode_images(self, x))[1])
        encode(backbone, images(9), batch_size=4)
        encode(backbone, images(9), batch_size=16)
    assert sizes == [3, 3, 3, 9]


def test_cpu_passes_have_at_most_1024_patches(backbone: SigLIP2Backbone) -> None:
    with counted_encodings() as counts:
        backbone.encode_images(images(3, 64, 64), max_num_patches=1024)
        backbone.encode_images(images(4, 64, 64), max_num_patches=512)
        backbone.encode_images(images(1, 64, 64), max_num_patches=2000)
    assert counts == {"images": 8, "image_passes": 3 + 2 + 1, "texts": 0}


def test_texts_are_lower_cased_padded_and_truncated_on_the_right(backbone: SigLIP2Backbone) -> None:
    plain, shouted = backbone.encode_texts(["a photo of a cat", "A PHOTO of a Cat"])
    assert torch.equal(plain, shouted)
    long = "a cat " * 100
    assert torch.equal(backbone.encode_texts([long]), backbone.encode_texts([long + "and more"]))
    tokenizer = backbone._text.tokenizer
    assert tokenizer.padding_side == tokenizer.truncation_side == "right"
    backbone.text_cache.clear()
    single = backbone.encode_texts(["a photo of a cat"])
    backbone.text_cache.clear()
    assert torch.allclose(backbone.encode_texts(["", "a photo of a cat", long])[1], single[0], atol=1e-6)


def test_pooling_uses_only_the_kept_patches(backbone: SigLIP2Backbone) -> None:
    features = backbone.encode_images(images(2), max_num_patches=PATCHES)
    keep = torch.rand(features.valid_BN.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    pooled = backbone.pool(features, keep)
    spoilt = features.tokens_BND.masked_fill(~keep[:, :, None], 100.0)
    other = type(features)(spoilt, features.valid_BN, features.grids)
    assert torch.allclose(backbone.pool(other, keep), pooled, atol=1e-6)
    keep[0] = False
    pooled = backbone.pool(features, keep)
    assert pooled[0].isnan().all()
    assert pooled[1].isfinite().all()
    with pytest.raises(ValueError, match="keep_BN is"):
        backbone.pool(features, keep[:, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["checkpoint", "fixed_checkpoint"])
def test_pooling_equals_the_attention_of_the_head(
    kind: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """Biases are random here, since they are 0 in a new network."""
    backbone = load_backbone(request.getfixturevalue(kind), dtype=dtype)
    head = backbone._vision.network.head
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for bias in (head.attention.in_proj_bias, head.attention.out_proj.bias):
            bias.copy_(torch.randn(bias.shape, generator=generator))
    features = backbone.encode_images(images(3), max_num_patches=PATCHES)
    keep = torch.rand(features.valid_BN.shape, generator=generator) < 0.4
    probe, tokens = head.probe.expand(3, -1, -1), features.tokens_BND
    with torch.no_grad():
        attended = head.attention(probe, tokens, tokens, key_padding_mask=~keep, need_weights=False)[0]
        expected = (attended + head.mlp(head.layernorm(attended)))[:, 0].float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # of values around 2; bfloat16 has 8 bits
    assert torch.allclose(backbone.pool(features, keep), expected, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["checkpoint", "fixed_checkpoint"])
def test_onednn_features_equal_those_of_torch(
    kind: str, dtype: torch.dtype, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn.is_available(dtype):
        pytest.skip("this processor or torch has no such kernels")
    folder = request.getfixturevalue(kind)

    def features() -> tuple[SigLIP2Backbone, list[Tensor]]:
        release_backbones()
        backbone = load_backbone(folder, dtype=dtype)
        return backbone, [encode(backbone, images(2)).float(), backbone.encode_texts(["a cat", "a dog"])]

    products: list[str] = []
    product = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *args: (products.append(args[3]), product(*args))[1])
    backbone, quick = features()
    layers = backbone._vision.network.config.num_hidden_layers
    assert products.count("gelu") == 2 * layers, "one in each layer of each tower"
    assert products.count("none") >= 2 * 5 * layers
    products.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        backbone.text_cache.clear()
        switched_off = [encode(backbone, images(2)).float(), backbone.encode_texts(["a cat", "a dog"])]
    monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    _, plain = features()
    assert not products
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # of values around 3; bfloat16 has 8 bits
    for a, b, c in zip(quick, plain, switched_off, strict=True):
        assert torch.allclose(a, b, atol=tolerance)
        assert torch.allclose(c, b, atol=tolerance)


def test_onednn_is_unavailable_without_the_instructions_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("could not create a primitive descriptor")

    try:
        for product in (refuse, lambda *_: torch.zeros(16, 16)):
            onednn.is_available.cache_clear()
            monkeypatch.setattr(onednn, "_product", product)
            assert not onednn.is_available(torch.bfloat16)
        onednn.is_available.cache_clear()
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        assert not onednn.is_available(torch.float32)
    finally:
        onednn.is_available.cache_clear()


def test_activations_unknown_to_onednn_are_not_fused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "relu")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(folder)
    mlp = backbone._vision.network.encoder.layers[0].mlp
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (x @ mlp.fc1.weight.T + mlp.fc1.bias).relu() @ mlp.fc2.weight.T + mlp.fc2.bias
        assert torch.allclose(mlp(x), expected, atol=1e-5)
    assert not torch.allclose(encode(backbone, images(1)), encode(load_backbone(checkpoint), images(1)), atol=1e-3)


def test_scores_do_not_depend_on_autocast_default_dtype_or_inference_mode(checkpoint: Path) -> None:
    arguments = batch(3)

    def score() -> tuple[Tensor, Tensor]:
        release_backbones()
        backbone = load_backbone(checkpoint)
        settings = {"backbone": backbone, "max_num_patches": PATCHES}
        return (
            concept_preservation(**only(arguments, CP_ARGUMENTS), **settings),
            prompt_following(**only(arguments, PF_ARGUMENTS), **settings),
        )

    plain = score()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(score(), plain, strict=True))
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(score(), plain, strict=True))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert all(torch.equal(a, b) for a, b in zip(score(), plain, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_features_cached_in_inference_mode_are_usable_outside_it(backbone: SigLIP2Backbone) -> None:
    arguments = only(batch(2), CP_ARGUMENTS) | {"backbone": backbone, "max_num_patches": PATCHES}
    with torch.inference_mode():
        inside = concept_preservation(**arguments)
    with counted_encodings() as counts:
        assert torch.equal(concept_preservation(**arguments), inside)
    assert counts["images"] == 0
    assert not any(tensor.is_inference() for tensor in backbone.cache._tensors.values())


def test_bfloat16_scores_are_close_to_float32(checkpoint: Path) -> None:
    exact, rough = load_backbone(checkpoint), load_backbone(checkpoint, dtype=torch.bfloat16)
    arguments = only(batch(4), CP_ARGUMENTS) | {"max_num_patches": PATCHES}
    assert rough.encode_images(arguments["generated_images"]).tokens_BND.dtype == torch.bfloat16
    difference = concept_preservation(**arguments, backbone=rough) - concept_preservation(**arguments, backbone=exact)
    assert 0 < difference.abs().max() < 0.05


def test_overflow_in_float16_raises_instead_of_giving_undefined_samples(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    arguments = only(batch(2), CP_ARGUMENTS) | {"max_num_patches": PATCHES}
    exact, half = load_backbone(checkpoint), load_backbone(checkpoint, dtype=torch.float16)
    difference = concept_preservation(**arguments, backbone=half) - concept_preservation(**arguments, backbone=exact)
    assert difference.abs().max() < 0.01
    loud = shutil.copytree(checkpoint, tmp_path / "loud")
    weights = load_file(checkpoint / "model.safetensors")
    name = "vision_model.embeddings.patch_embedding.weight"
    weights[name] *= 6e4 / weights[name].abs().max()  # finite in float16, but their products are not
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    wrong = (
        r"generated_images\[0\] has patches to score, but .* not finite; run it in torch\.bfloat16 or torch\.float32"
    )
    with pytest.raises(RuntimeError, match=wrong):
        concept_preservation(**arguments, backbone=load_backbone(loud, dtype=torch.float16))
    with pytest.raises(RuntimeError, match=wrong):
        prompt_following(
            **only(batch(2), PF_ARGUMENTS), backbone=load_backbone(loud, dtype=torch.float16), max_num_patches=PATCHES
        )
    assert concept_preservation(**arguments, backbone=load_backbone(loud, dtype=torch.bfloat16)).isfinite().all()
    save_file(weights | {name: weights[name] * 2}, loud / "model.safetensors", metadata={"format": "pt"})
    release_backbones()
    with pytest.raises(ValueError, match=r"has 1 weights of its vision tower that are not finite in torch\.float16"):
        load_backbone(loud, dtype=torch.float16)


def test_the_network_is_frozen(backbone: SigLIP2Backbone) -> None:
    assert not any(p.requires_grad for p in backbone._vision.network.parameters())
    assert not backbone._vision.network.training
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    with pytest.warns(UserWarning, match="images require gradients"):
        assert not backbone.encode_images(picture).tokens_BND.requires_grad


# --- sharing ---


def test_equal_arguments_share_one_backbone(
    checkpoint: Path, fixed_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    link = tmp_path / "link"
    link.symlink_to(checkpoint)
    backbone = load_backbone(checkpoint)
    for spelling in (str(checkpoint), f"{checkpoint}/", f"./{checkpoint.name}", checkpoint.name, link):
        assert load_backbone(spelling, device="cpu") is backbone
    assert load_backbone(checkpoint, dtype=torch.bfloat16) is not backbone
    assert load_backbone(fixed_checkpoint) is not backbone


def test_copies_are_the_same_object_and_pickles_are_small(backbone: SigLIP2Backbone) -> None:
    assert copy.deepcopy(backbone) is backbone
    assert copy.copy(backbone) is backbone
    pickled = pickle.dumps(backbone)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) is backbone


def test_released_backbones_are_read_again(checkpoint: Path) -> None:
    backbone = load_backbone(checkpoint)
    release_backbones()
    assert load_backbone(checkpoint) is not backbone


# --- the cache ---


def test_references_of_many_batches_are_encoded_once(backbone: SigLIP2Backbone) -> None:
    arguments = only(batch(1), CP_ARGUMENTS) | {"backbone": backbone, "max_num_patches": PATCHES}
    with counted_encodings() as counts:
        for step in range(50):
            concept_preservation(**arguments | {"generated_images": images(1, seed=100 + step)})
    assert counts["images"] == 51


def test_repeated_images_of_any_form_are_encoded_once(backbone: SigLIP2Backbone) -> None:
    picture = images(1)[0]
    with counted_encodings() as counts:
        backbone.encode_images([picture, picture.clone(), *images(2)], max_num_patches=PATCHES)
        backbone.encode_images(torch.stack([picture] * 3), max_num_patches=PATCHES)
    assert counts["images"] == 2


def test_tensors_given_repeatedly_in_one_call_are_hashed_once(backbone: SigLIP2Backbone) -> None:
    pictures = images(2, 128, 128)
    expanded = pictures[:1].expand(3, -1, -1, -1)
    mirrored = pictures[0].mT  # the same memory, another image
    given = [pictures[0], pictures[1], *expanded, mirrored, pictures[0].clone(), pictures[0] / 255]
    prepared = backbone.prepare(given, max_num_patches=PATCHES)
    assert [len(group.pixels_B3HW) for group in prepared.groups] == [4, 1]  # uint8 and float
    assert prepared.positions == ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0), (0, 2), (0, 3), (1, 0))
    tokens_BND = backbone.encode(prepared).tokens_BND
    alone = torch.cat([backbone.encode_images([one], max_num_patches=PATCHES).tokens_BND for one in given])
    assert torch.equal(tokens_BND, alone)
    assert not torch.allclose(tokens_BND[0], tokens_BND[5], atol=1e-3)


def test_equal_bytes_of_another_grid_or_dtype_have_another_key(backbone: SigLIP2Backbone) -> None:
    forms = [(size, dtype) for size in ((64, 256), (256, 64)) for dtype in (torch.uint8, torch.float32)]
    black = [torch.zeros(3, *size, dtype=dtype) for size, dtype in forms]
    groups = backbone.prepare(black, max_num_patches=PATCHES).groups
    assert len({key for group in groups for key in group.image_keys()}) == 4


def test_each_part_is_prepared_before_the_previous_one_is_encoded(
    backbone: SigLIP2Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU then always has work, and memory still holds two parts of an update at most."""
    steps: list[str] = []
    for name in ("prepare", "encode"):
        method = getattr(SigLIP2Backbone, name)

        def noted(*args: Any, name: str = name, method: Any = method, **settings: Any) -> Any:
            steps.append(name)
            return method(*args, **settings)

        monkeypatch.setattr(SigLIP2Backbone, name, noted)
    concept_preservation(
        **only(batch(3), CP_ARGUMENTS), backbone=backbone, max_num_patches=PATCHES, encode_batch_size=1
    )
    assert steps == ["prepare", "prepare", "encode", "prepare", "encode", "encode"]


def test_errors_for_invalid_encoder_arguments_name_the_argument(backbone: SigLIP2Backbone) -> None:
    with pytest.raises(ValueError, match="batch_size is 0; give at least 1"):
        backbone.encode_images(images(1), batch_size=0)
    with pytest.raises(TypeError, match=r"max_num_patches is 9\.5, a float; give an integer"):
        backbone.encode_images(images(1), max_num_patches=9.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is -1"):
        backbone.encode_texts(["a"], batch_size=-1)
    with pytest.raises(TypeError, match="texts is a str; give a list of strings"):
        backbone.encode_texts("a")
    with pytest.raises(TypeError, match=r"texts\[1\] is an int"):
        backbone.encode_texts(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="texts is empty"):
        backbone.encode_texts([])


def test_threads_read_and_encode_once(checkpoint: Path) -> None:
    backbone = load_backbone(checkpoint)
    with counted_encodings() as counts, ThreadPoolExecutor(6) as pool:
        results = list(
            pool.map(lambda _: backbone.encode_images(images(3), max_num_patches=PATCHES).tokens_BND, range(12))
        )
    assert counts["images"] == 3
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_forked_while_another_thread_encodes_can_encode(backbone: SigLIP2Backbone) -> None:
    encode(backbone, images(1))
    held, forked = Event(), Event()

    def hold() -> None:
        with backbone._lock, backbone.cache._lock, backbone_module._shared_lock:
            held.set()
            forked.wait()

    def child() -> None:
        torch.set_num_threads(1)  # the threads of OpenMP are not forked
        load_backbone(backbone.source.model)
        assert len(backbone.cache) == 0, "entries may be half changed"
        encode(backbone, images(1))

    thread = Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about threads and fork
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    forked.set()
    thread.join()
    process.join(timeout=60)
    process.kill()
    assert process.exitcode == 0
    assert len(backbone.cache) == 1, "the parent's cache is kept"


def test_images_that_require_gradients_are_warned_about_once(backbone: SigLIP2Backbone) -> None:
    arguments = only(batch(1), CP_ARGUMENTS)
    arguments["generated_images"] = (arguments["generated_images"] / 255).requires_grad_()
    settings = {"backbone": backbone, "max_num_patches": PATCHES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            expected = concept_preservation(**arguments, **settings)
        MaSCConceptPreservation(backbone, max_num_patches=PATCHES)(**arguments)  # it says is_differentiable = False
    with pytest.warns(UserWarning, match=r"no.* flow through the frozen network, .*; give image.detach\(\)") as caught:
        scores = [concept_preservation(**arguments, **settings) for _ in range(2)]
    assert len(caught) == 1
    assert all(score.equal(expected) and not score.requires_grad for score in scores)


def test_each_distinct_text_is_encoded_once(backbone: SigLIP2Backbone) -> None:
    with counted_encodings() as counts:
        for _ in range(3):
            backbone.encode_texts(["a cat", "a dog", "A Cat"])
    assert counts["texts"] == 2


def test_images_never_evict_texts(backbone: SigLIP2Backbone) -> None:
    backbone.cache.max_bytes = 1
    with counted_encodings() as counts:
        for step in range(3):
            backbone.encode_texts(["a cat"])
            backbone.encode_images(images(2, seed=step), max_num_patches=PATCHES)
    assert counts["texts"] == 1


def test_released_text_towers_are_read_again_only_for_new_texts(backbone: SigLIP2Backbone) -> None:
    known = backbone.encode_texts(["a cat"])
    backbone.release_text_tower()
    assert not backbone.text_tower_loaded
    assert torch.equal(backbone.encode_texts(["a cat"]), known)
    assert not backbone.text_tower_loaded
    backbone.encode_texts(["a dog"])
    assert backbone.text_tower_loaded
    backbone.release_text_tower()
    backbone.release_text_tower()
    backbone.text_cache.clear()
    assert torch.equal(backbone.encode_texts(["a cat"]), known)


def test_lowering_max_bytes_evicts_tensors(backbone: SigLIP2Backbone) -> None:
    backbone.encode_images(images(4), max_num_patches=PATCHES)
    size = backbone.cache.nbytes // 4
    backbone.cache.max_bytes = 2 * size
    assert (len(backbone.cache), backbone.cache.nbytes) == (2, 2 * size)
    with pytest.raises(ValueError, match="max_bytes is -1"):
        backbone.cache.max_bytes = -1
    assert backbone.cache.max_bytes == 2 * size


def test_in_place_changes_of_an_image_change_its_features(backbone: SigLIP2Backbone) -> None:
    pictures = images(1)
    before = backbone.encode_images(pictures, max_num_patches=PATCHES).tokens_BND
    pictures[0, :, 20:40, 20:40] = 0
    after = backbone.encode_images(pictures, max_num_patches=PATCHES).tokens_BND
    assert not torch.allclose(before, after, atol=1e-3)
    same = [pictures[0]]  # the same tensor object
    first = backbone.encode_images(same, max_num_patches=PATCHES).tokens_BND
    same[0][:, :20] = 255
    assert not torch.allclose(backbone.encode_images(same, max_num_patches=PATCHES).tokens_BND, first, atol=1e-3)
    pictures[0, 0, 0, 0] ^= 1  # one grey level of one value
    with counted_encodings() as counts:
        backbone.encode_images(torch.nn.functional.pad(pictures, (0, 0, 0, 0)), max_num_patches=48)
        backbone.encode_images(pictures, max_num_patches=48)
    assert counts["images"] == 1


def test_cache_never_exceeds_max_bytes(backbone: SigLIP2Backbone) -> None:
    size = backbone.encode_images(images(1), max_num_patches=PATCHES).tokens_BND.nbytes
    backbone.cache = FeatureCache(max_bytes=3 * size)
    for step in range(10):
        backbone.encode_images(images(4, seed=step), max_num_patches=PATCHES)
        assert backbone.cache.nbytes <= 3 * size
        kept = backbone.cache._tensors.values()
        # No cached tensor is a view that keeps a larger tensor alive.
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == backbone.cache.nbytes
    assert len(backbone.cache) == 3
    assert backbone.cache.nbytes == 3 * size
    backbone.encode_texts(["one", "two", "three"])
    texts = backbone.text_cache
    assert sum(t.untyped_storage().nbytes() for t in texts._tensors.values()) == texts.nbytes
    backbone.cache = FeatureCache(max_bytes=0)
    with counted_encodings() as counts:
        backbone.encode_images(images(2), max_num_patches=PATCHES)
        backbone.encode_images(images(2), max_num_patches=PATCHES)
    assert counts["images"] == 4
    assert len(backbone.cache) == 0


def test_cache_evicts_the_least_recently_used_tensor() -> None:
    cache = FeatureCache(max_bytes=24)
    for key in "abc":
        cache.put(key, torch.zeros(2))
    assert cache.get("a") is not None
    cache.put("d", torch.zeros(2))
    assert cache.get("b") is None
    assert all(cache.get(key) is not None for key in "acd")
    cache.put("a", torch.zeros(1))
    assert cache.nbytes == 20
    cache.put("huge", torch.zeros(100))
    assert cache.get("huge") is None
    assert len(cache) == 3
    with pytest.raises(ValueError, match="max_bytes is -1"):
        FeatureCache(-1)


def test_digests_depend_on_content_order_and_position() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(6, 48, generator=generator)
    swapped = base.flip(0)
    within = base.flip(1)
    shifted = base.roll(1, 0)
    nudged = base.clone()
    nudged[3, 7] = torch.nextafter(nudged[3, 7], torch.tensor(2.0))
    zeros = torch.zeros(6, 48)
    ones_late, ones_early = zeros.clone(), zeros.clone()
    ones_late[5, 47], ones_early[0, 0] = 1, 1
    variants = torch.stack([base, swapped, within, shifted, nudged, zeros, ones_late, ones_early])[:, None]
    digests = content_digests(variants)
    assert len({tuple(row) for row in digests.tolist()}) == len(variants)
    for lane in range(2):
        assert len(set(digests[:, lane].tolist())) == len(variants)
    assert torch.equal(content_digests(base[None, None])[0], digests[0])
    many = content_digests(torch.randint(0, 2, (5000, 1, 4, 6), generator=generator).float())
    distinct = {
        tuple(row)
        for row in torch.randint(0, 2, (5000, 4, 6), generator=torch.Generator().manual_seed(1))
        .reshape(5000, -1)
        .tolist()
    }
    assert len({tuple(row) for row in many.tolist()}) > 0.99 * len(distinct)
    # Rows whose bytes do not fill complete words, and equal bytes with a different grid or dtype.
    bytes_ = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8, generator=generator)
    bytes_[1:] = bytes_[0]
    bytes_.view(40, -1)[torch.arange(1, 40), torch.arange(39)] ^= 1
    assert len({tuple(row) for row in content_digests(bytes_).tolist()}) == 40


def test_reading_the_network_does_not_touch_the_random_state(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of transformers initialise random weights first, while a training may draw in another thread."""
    import transformers

    drawn: list[Tensor] = []

    for name in ("Siglip2VisionModel", "Siglip2TextModel"):
        tower = getattr(transformers, name)

        def drawing(cls: Any, *args: Any, read: Any = tower.from_pretrained.__func__, **kwargs: Any) -> Any:
            torch.rand(1), torch.randint(3, (2,)), torch.randperm(3), torch.nn.Linear(2, 2)
            training = Thread(target=lambda: drawn.append(torch.rand(1)))
            training.start()
            training.join()
            return read(cls, *args, **kwargs)

        monkeypatch.setattr(tower, "from_pretrained", classmethod(drawing))
    before = torch.get_rng_state()
    load_backbone(checkpoint).load(text_tower=True)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    assert drawn == [torch.rand(1), torch.rand(1)]
    assert torch.equal(torch.get_rng_state(), after)


def test_pooling_excludes_padding(backbone: SigLIP2Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((64, 64), (90, 60))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    features = backbone.encode_images(images, max_num_patches=16)
    assert not features.valid_BN.all(), "one image is padded"
    everything = backbone.pool(features, torch.ones_like(features.valid_BN))
    for image, pooled in zip(images, everything, strict=True):
        single = backbone.encode_images([image], max_num_patches=16)
        assert torch.allclose(backbone.pool(single, single.valid_BN)[0], pooled, atol=1e-5)


def test_images_of_equal_pixels_but_different_shape_are_distinct(backbone: SigLIP2Backbone) -> None:
    wide, tall = (torch.zeros(1, 3, *size, dtype=torch.uint8) for size in ((32, 64), (64, 32)))
    backbone.cache.clear()
    single = [backbone.encode_images(image, max_num_patches=8).tokens_BND for image in (wide, tall)]
    backbone.cache.clear()
    separately = backbone.encode_images(tall, max_num_patches=8).tokens_BND
    assert torch.allclose(single[1], separately, atol=1e-6)
    assert not torch.allclose(single[0], single[1], atol=1e-2)


@pytest.mark.parametrize("value", [None, 1.5, float("nan"), "64", True])
def test_max_bytes_must_be_an_integer(backbone: SigLIP2Backbone, value: object) -> None:
    before = backbone.cache.max_bytes
    with pytest.raises(TypeError, match=r"max_bytes is .*; give (an|the) integer"):
        backbone.cache.max_bytes = value  # type: ignore[assignment]
    assert backbone.cache.max_bytes == before


def test_surrogate_halves_are_rejected_before_tokenization(backbone: SigLIP2Backbone) -> None:
    with pytest.raises(ValueError, match="contains half of a surrogate pair; repair its encoding") as caught:
        backbone.encode_texts(["a", "a \ud800"])
    assert str(caught.value).startswith("texts[1] 'a \\ud800'")
