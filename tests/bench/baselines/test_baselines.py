"""The baselines: cosines of embeddings of images without masks, prepared by transformers and Pillow."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from masc_metrics import SigLIP2Backbone
from masc_metrics.bench.baselines import networks
from masc_metrics.bench.baselines.registry import DEFAULT_BASELINE_MODELS, Baseline, load_baseline
from masc_metrics.bench.run import BASELINES, Run

HAS_DINOV3 = hasattr(transformers, "DINOv3ViTModel")
needs_dinov3 = pytest.mark.skipif(not HAS_DINOV3, reason="DINOv3 came with transformers 4.56")
needs_radio = pytest.mark.skipif(not hasattr(transformers, "RadioModel"), reason="RADIO came with transformers 5.13")

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = [chr(code) for code in range(33, 127)]
VOCABULARY = {
    piece: index for index, piece in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS), BEGIN, END])
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# The files of the hub.
CLIP_PROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
DINO_PROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "resample": 2,
    "size": 224,
    **IMAGENET,
}
DINOV3_PROCESSOR = {
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
    **IMAGENET,
}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE_BASELINES = [
    "clip-i",
    "dino-i",
    pytest.param("dinov3-i", marks=needs_dinov3),
    pytest.param("radio-i", marks=needs_radio),
    "siglip2-i",
]
ODD_SIZES = [(224, 224), (37, 301), (500, 333), (225, 223), (3, 8)]


def _image(height: int, width: int, seed: int) -> Tensor:
    """(3, H, W) uint8: smooth colours with an edge, so that resizing and cropping both matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BILINEAR))
    image[: height // 3, : width // 2] = rng.integers(0, 256, 3)
    return torch.from_numpy(image).permute(2, 0, 1)


def _write(folder: Path, network: Any, processor: dict[str, Any]) -> Path:
    for parameter in network.parameters():  # the usual draws are so small that all images look alike
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # wrong, as on the hub
    config = transformers.CLIPConfig(
        text_config={**SHAPE, **ends, "vocab_size": len(VOCABULARY), "max_position_embeddings": 77},
        vision_config={**SHAPE, "image_size": 224, "patch_size": 32},
        projection_dim=24,
    )
    folder = _write(tmp_path_factory.mktemp("clip"), transformers.CLIPModel(config), CLIP_PROCESSOR)
    weights = load_file(folder / "model.safetensors")
    counted = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # older checkpoints hold it
    save_file(weights | counted, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = transformers.ViTConfig(**SHAPE, image_size=224, patch_size=32)
    network = transformers.ViTModel(config, add_pooling_layer=False)
    return _write(tmp_path_factory.mktemp("dino"), network, DINO_PROCESSOR)


@pytest.fixture(scope="session")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = transformers.DINOv3ViTConfig(**SHAPE, image_size=224, patch_size=32, num_register_tokens=4)
    return _write(tmp_path_factory.mktemp("dinov3"), transformers.DINOv3ViTModel(config), DINOV3_PROCESSOR)


@pytest.fixture(scope="session")
def radio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    sides = {"patch_size": 64, "image_size": 512, "max_img_size": 1024}
    config = transformers.RadioConfig(**SHAPE, **sides, num_cls_tokens=3, num_registers=2, summary_idxs=[0, 2])
    return _write(tmp_path_factory.mktemp("radio"), transformers.RadioModel(config), {})


def _load(name: str, folder: Path, **settings: Any) -> Baseline:
    return load_baseline(name, Run(Path(), baseline_model=((name, str(folder)),), **settings), device="cpu")


def _copy(folder: Path, target: Path, *left_out: str) -> Path:
    for file in folder.iterdir():
        if file.name not in left_out:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def _normalised(image: np.ndarray, processor: dict[str, Any]) -> np.ndarray:
    normalised: np.ndarray = (image / 255 - np.array(processor["image_mean"])) / np.array(processor["image_std"])
    return normalised


def _array(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _clip_pixels(image: Tensor) -> np.ndarray:
    _, height, width = image.shape
    short = min(height, width)
    size = (int(224 * width / short), int(224 * height / short)) if height != width else (224, 224)
    resized = np.array(Image.fromarray(_array(image)).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    return _normalised(resized[top : top + 224, left : left + 224], CLIP_PROCESSOR)


def _cropped(image: Tensor, short: int, side: int) -> np.ndarray:
    """Short side to ``short`` and the middle square, step by step: Pillow resizes, numpy cuts."""
    _, height, width = image.shape
    scale = (lambda long, shortest: int(short * long / shortest)) if height != width else (lambda *_: short)
    size = (scale(width, height), short) if width > height else (short, scale(height, width))
    resized = np.array(Image.fromarray(_array(image)).resize(size, Image.Resampling.BICUBIC))
    # round() of Python, which torchvision uses too: 0.5 becomes 0, and 1.5 becomes 2.
    top, left = round((resized.shape[0] - side) / 2), round((resized.shape[1] - side) / 2)
    return resized[top : top + side, left : left + side]


def _dino_pixels(image: Tensor) -> np.ndarray:
    return _normalised(_cropped(image, 256, 224), DINO_PROCESSOR)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double().flatten(), other.detach().double().flatten()
    return float(one @ other / one.norm() / other.norm())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in each pass of any image network."""
    counts: list[int] = []
    classes: list[type[networks.EmbeddingNetwork]] = [
        networks.CLIPNetwork,
        networks.DINONetwork,
        networks.DINOv3Network,
        networks.RADIONetwork,
        networks.SigLIP2Network,
    ]
    for network_class in classes:
        original = network_class._encode_images

        def counted(
            self: Any, images: list[Tensor], original: Callable[[Any, list[Tensor]], Tensor] = original
        ) -> Tensor:
            counts.append(len(images))
            return original(self, images)

        monkeypatch.setattr(network_class, "_encode_images", counted)
    return counts


def test_clip_i_is_the_cosine_of_projected_image_embeddings(clip: Path) -> None:
    images = [_image(*size, seed) for seed, size in enumerate(ODD_SIZES)]
    others = [_image(*size, seed + 9) for seed, size in enumerate(reversed(ODD_SIZES))]
    network = transformers.CLIPModel.from_pretrained(clip).eval()

    def embedded(image: Tensor) -> Any:
        return network.visual_projection(network.vision_model(_tensor(_clip_pixels(image))).pooler_output)

    expected = [_cosine(embedded(one), embedded(other)) for one, other in zip(images, others, strict=True)]
    assert _load("clip-i", clip).score(images, others) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.05  # they tell images apart


@pytest.mark.parametrize("prompt", ["a Cat on a beach", "", "cat " * 60])
def test_clip_t_is_the_cosine_of_image_and_full_prompt_truncated_to_77_tokens(clip: Path, prompt: str) -> None:
    image = _image(300, 200, 1)
    pieces = [piece for word in prompt.lower().split() for piece in [*word[:-1], word[-1] + "</w>"]]
    ids = torch.tensor([[VOCABULARY[piece] for piece in [BEGIN, *pieces[:75], END]]])
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    text = network.text_projection(network.text_model(input_ids=ids).pooler_output)
    picture = network.visual_projection(network.vision_model(_tensor(_clip_pixels(image))).pooler_output)
    baseline = _load("clip-t", clip)
    scores = baseline.score_texts([image, image], ["a much longer text in the batch", prompt])
    assert scores[1] == pytest.approx(_cosine(picture, text), abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_tokens_beyond_77_have_no_effect(clip: Path) -> None:
    image, long = _image(224, 224, 0), "ab " * 37  # 74 tokens, and the two ends
    baseline, texts = _load("clip-t", clip), [long + "x y", long + "x z", long + "y z", long]
    scores = baseline.score_texts([image] * 4, texts)
    assert baseline.cut_tokens(texts) == [1, 1, 1, 0]
    assert scores[0] == scores[1] == pytest.approx(scores[0])
    assert len({round(score, 6) for score in scores}) == 3


def test_dino_i_is_the_cosine_of_class_tokens_after_the_last_layer_norm(dino: Path) -> None:
    images = [_image(*size, seed) for seed, size in enumerate(ODD_SIZES)]
    network = transformers.ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    tokens = [network(pixel_values=_tensor(_dino_pixels(image))).last_hidden_state[:, 0] for image in images]
    expected = [_cosine(tokens[0], token) for token in tokens]
    scores = _load("dino-i", dino).score([images[0]] * len(images), images)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.05


@needs_dinov3
def test_dinov3_is_the_cosine_of_pooler_outputs_on_the_middle_of_the_image(dinov3: Path) -> None:
    images = [_image(*size, seed) for seed, size in enumerate(ODD_SIZES)]
    network = transformers.DINOv3ViTModel.from_pretrained(dinov3).eval()
    outputs = [network(pixel_values=_tensor(_dino_pixels(image))) for image in images]
    expected = [_cosine(outputs[0].pooler_output, output.pooler_output) for output in outputs]
    scores = _load("dinov3-i", dinov3).score([images[0]] * len(images), images)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.05
    assert torch.equal(outputs[1].pooler_output, outputs[1].last_hidden_state[:, 0])  # it is the class token


@needs_radio
def test_radio_is_the_cosine_of_summaries_of_the_middle_512_pixels_scaled_to_one(radio: Path) -> None:
    images = [_image(*size, seed) for seed, size in enumerate(ODD_SIZES)]
    network = transformers.RadioModel.from_pretrained(radio).eval()
    outputs = [network(pixel_values=_tensor(_cropped(image, 512, 512) / 255)) for image in images]
    expected = [_cosine(outputs[0].summary, output.summary) for output in outputs]
    baseline = _load("radio-i", radio)
    assert baseline.score([images[0]] * len(images), images) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.05
    # The summary is the class tokens that the configuration names.
    assert torch.equal(outputs[1].summary, outputs[1].last_hidden_state[:, [0, 2]].flatten(1))
    assert _load("radio-i", radio, dtype="bfloat16").score(images[:1], images[1:2]) == pytest.approx(
        expected[1:2], abs=0.02
    )


@needs_radio
def test_radio_checkpoint_without_layer_scales_is_complete(radio: Path, tmp_path: Path) -> None:
    weights = load_file(radio / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer_scale" not in name}
    assert len(kept) < len(weights)
    save_file(kept, _copy(radio, tmp_path, "model.safetensors") / "model.safetensors", metadata={"format": "pt"})
    images = [_image(40, 60, seed) for seed in range(2)]
    expected = _load("radio-i", radio).score(images[:1], images[1:])
    assert _load("radio-i", tmp_path).score(images[:1], images[1:]) == pytest.approx(expected, abs=1e-6)


def test_siglip2_scores_use_the_backbones_pooling_over_all_patches(backbone: SigLIP2Backbone) -> None:
    images = [_image(120, 90, 1), _image(64, 200, 2)]
    prompts = ["a Kitten on a beach", "the rocket"]
    features = backbone.encode_images(images, max_num_patches=40)
    pooled = backbone.pool(features, torch.ones_like(features.valid_BN))
    texts = backbone.encode_texts(prompts)
    run = Run(Path(), max_num_patches=40)
    on_images = load_baseline("siglip2-i", run, backbone=backbone, device="cpu")
    on_texts = load_baseline("siglip2-t", run, backbone=backbone, device="cpu")
    assert on_images.score(images, images[::-1]) == pytest.approx([_cosine(pooled[0], pooled[1])] * 2, abs=1e-5)
    expected = [_cosine(pooled[0], texts[0]), _cosine(pooled[1], texts[1])]
    assert on_texts.score_texts(images, prompts) == pytest.approx(expected, abs=1e-5)
    assert on_images.checkpoint == backbone.source.model
    assert on_images._network is on_texts._network
    finer = load_baseline("siglip2-i", Run(Path(), max_num_patches=60), backbone=backbone, device="cpu")
    assert finer.score(images, images[::-1]) != on_images.score(images, images[::-1])


@pytest.mark.parametrize("size", ODD_SIZES)
def test_pixels_are_prepared_by_pillow_in_every_transformers_version(
    clip: Path, dino: Path, size: tuple[int, int]
) -> None:
    image = _image(*size, 5)
    for network, pixels in (
        (_load("clip-i", clip)._network, _clip_pixels(image)),
        (_load("dino-i", dino)._network, _dino_pixels(image)),
    ):
        assert isinstance(network, networks.CLIPNetwork | networks.DINONetwork)
        torch.testing.assert_close(network._processor([image]), _tensor(pixels), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((256, 256), (256, 256), (16, 16)),
        ((512, 768), (256, 384), (16, 80)),  # long side 256 * 768 / 512
        ((300, 200), (384, 256), (80, 16)),
        ((500, 333), (384, 256), (80, 16)),  # 384.38, cut down
        ((256, 257), (256, 257), (16, 16)),  # 16.5, rounded to even
        ((256, 259), (256, 259), (16, 18)),  # 17.5, rounded to even
        ((100, 101), (256, 258), (16, 17)),  # 258.56, cut down
    ],
)
def test_short_side_is_resized_and_the_middle_cropped(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = _image(*size, 5)
    whole = Image.fromarray(_array(image)).resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = corner
    expected = np.array(whole)[top : top + 224, left : left + 224]
    found = networks.short_side_and_crop(image, 256, 224)
    assert (found.shape, found.dtype) == ((3, 224, 224), torch.uint8)
    assert np.array_equal(_array(found), expected)
    assert np.array_equal(_array(found), _cropped(image, 256, 224))
    assert torch.equal(networks.short_side_and_crop(image / 255, 256, 224), found)


@needs_dinov3
def test_dino_and_dinov3_prepare_images_alike(dino: Path, dinov3: Path) -> None:
    image = _image(512, 768, 5)
    pixels = [
        _load(name, folder)._network._processor([image]) for name, folder in (("dino-i", dino), ("dinov3-i", dinov3))
    ]
    assert torch.equal(*pixels)


def test_content_beyond_the_cropped_middle_does_not_count(dino: Path) -> None:
    image = _image(512, 768, 5)
    changed = image.clone()
    changed[:, :, :140] = 0  # the crop begins at pixel 160
    assert _load("dino-i", dino).score([image], [changed]) == pytest.approx([1], abs=1e-6)
    changed[:, :, :200] = 0
    assert _load("dino-i", dino).score([image], [changed])[0] < 0.9999


def _any_image_baseline(name: str, request: pytest.FixtureRequest, backbone: SigLIP2Backbone) -> Baseline:
    if name == "siglip2-i":
        return load_baseline(name, Run(Path()), backbone=backbone, device="cpu")
    return _load(name, request.getfixturevalue(name[:-2]))


@pytest.mark.parametrize("name", IMAGE_BASELINES)
def test_identical_images_score_one_and_scores_are_symmetric(
    name: str, request: pytest.FixtureRequest, backbone: SigLIP2Backbone
) -> None:
    baseline = _any_image_baseline(name, request, backbone)
    images = [_image(50, 80, 1), _image(80, 50, 2)]
    assert baseline.score(images, [image.clone() for image in images]) == pytest.approx([1, 1], abs=1e-6)
    assert all(-1 <= score <= 1 for score in baseline.score(images, images))
    assert baseline.score(images, images[::-1])[0] == pytest.approx(baseline.score(images, images[::-1])[1], abs=1e-6)


def test_clip_scores_encode_each_distinct_image_once(clip: Path, passes: list[int]) -> None:
    image_score, text_score = _load("clip-i", clip), _load("clip-t", clip)
    generated = [_image(40, 60, seed) for seed in range(3)]
    reference = _image(60, 40, 9)
    image_score.score(generated, [reference.clone() for _ in generated])
    assert passes == [4]
    text_score.score_texts([image.clone() for image in generated], ["a", "b", "c"])
    image_score.score(generated[:1], generated[1:2])
    assert passes == [4]
    turned = reference.reshape(3, 40, 60)  # the same bytes in another shape
    image_score.score([turned], [turned])
    assert passes == [4, 1]


def test_image_dropped_from_the_cache_is_encoded_again(dino: Path, passes: list[int]) -> None:
    baseline = _load("dino-i", dino)
    images = [_image(40, 60, seed) for seed in range(4)]
    baseline._network.cache.max_bytes = 2 * 32 * 4  # two embeddings
    baseline.score(images[:2], images[2:])
    baseline.score(images[:2], images[2:])
    assert sum(passes) > 4
    assert baseline._network.cache.nbytes <= 2 * 32 * 4


def test_changed_pixels_change_the_score(dino: Path) -> None:
    baseline, image = _load("dino-i", dino), _image(40, 60, 1)
    first = image.clone()
    image[:, :20] = 0
    assert baseline.score([first], [image])[0] < 0.9999


def test_pass_has_at_most_batch_size_images(dino: Path, passes: list[int]) -> None:
    images = [_image(30, 30, seed) for seed in range(5)]
    expected = _load("dino-i", dino).score(images, images[::-1])
    passes.clear()
    parts = _load("dino-i", dino, batch_size=2)
    parts._network.cache.clear()
    assert parts.score(images, images[::-1]) == pytest.approx(expected, abs=1e-6)
    assert passes == [2, 2, 1]


def test_distinct_prompts_are_encoded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = _load("clip-t", clip)
    seen: list[str] = []
    original = networks.CLIPNetwork._encode_texts

    def recorded(self: networks.CLIPNetwork, texts: list[str]) -> Tensor:
        seen.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(networks.CLIPNetwork, "_encode_texts", recorded)
    image = _image(30, 30, 1)
    baseline.score_texts([image] * 3, ["a cat", "a dog", "a cat"])
    baseline.score_texts([image], ["a dog"])
    assert sorted(seen) == ["a cat", "a dog"]


def test_network_is_shared_while_a_baseline_lives_and_freed_afterwards(clip: Path) -> None:
    one, other = _load("clip-i", clip), _load("clip-t", clip)
    assert one._network is other._network
    assert _load("clip-i", clip, dtype="bfloat16")._network is not one._network
    network = weakref.ref(one._network)
    del one
    assert network() is other._network
    del other
    gc.collect()
    assert network() is None


def test_surrounding_modes_have_no_effect(dino: Path) -> None:
    images = [_image(40, 60, seed) for seed in range(2)]
    expected = _load("dino-i", dino).score(images[:1], images[1:])
    gc.collect()
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        baseline = _load("dino-i", dino)
        baseline._network.cache.clear()
        assert baseline.score(images[:1], images[1:]) == expected
    torch.set_default_dtype(torch.bfloat16)
    try:
        baseline = _load("dino-i", dino)
        baseline._network.cache.clear()
        assert baseline.score(images[:1], images[1:]) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)
    network = baseline._network
    assert isinstance(network, networks.DINONetwork)
    assert not network._network.training
    assert not any(parameter.requires_grad for parameter in network._network.parameters())


def test_bfloat16_network_gives_similar_scores(clip: Path) -> None:
    images = [_image(40, 60, seed) for seed in range(2)]
    exact = _load("clip-i", clip).score(images[:1], images[1:])
    baseline = _load("clip-i", clip, dtype="bfloat16")
    network = baseline._network
    assert isinstance(network, networks.CLIPNetwork)
    assert network._network.dtype == torch.bfloat16
    rough = baseline.score(images[:1], images[1:])
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("name", IMAGE_BASELINES)
def test_memory_layout_has_no_effect(name: str, request: pytest.FixtureRequest, backbone: SigLIP2Backbone) -> None:
    image = _image(40, 60, 1)
    mirrored = image.flip(2)
    baseline = _any_image_baseline(name, request, backbone)
    score = baseline.score([mirrored], [image])
    baseline._network.cache.clear()
    assert score == baseline.score([mirrored.contiguous()], [image.contiguous()])
    assert score[0] < 0.9999


@pytest.mark.parametrize("name", IMAGE_BASELINES)
def test_float_and_pil_images_score_like_uint8(
    name: str, request: pytest.FixtureRequest, backbone: SigLIP2Backbone
) -> None:
    images = [_image(40, 60, seed) for seed in range(2)]
    baseline = _any_image_baseline(name, request, backbone)
    expected = baseline.score(images[:1], images[1:])
    as_float = [image / 255 for image in images]
    assert baseline.score(as_float[:1], as_float[1:]) == pytest.approx(expected, abs=2e-3)
    as_pil = [Image.fromarray(_array(image)) for image in images]
    assert baseline.score(as_pil[:1], as_pil[1:]) == expected


def test_baselines_and_default_checkpoints_are_listed() -> None:
    assert BASELINES == ("clip-i", "clip-t", "dino-i", "dinov3-i", "radio-i", "siglip2-i", "siglip2-t")
    assert set(DEFAULT_BASELINE_MODELS) == {name for name in BASELINES if not name.startswith("siglip2")}
    assert DEFAULT_BASELINE_MODELS["clip-i"] == DEFAULT_BASELINE_MODELS["clip-t"]


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"^name is 'clip'; give 'clip-i', 'clip-t', 'dino-i', 'dinov3-i', 'radio-i', 'siglip2-i' or"
    ):
        load_baseline("clip", Run(Path()), device="cpu")


def test_wrong_kind_of_score_names_the_right_method(clip: Path) -> None:
    image = _image(30, 30, 1)
    with pytest.raises(TypeError, match=r"clip-t compares generated images with prompts; call score_texts"):
        _load("clip-t", clip).score([image], [image])
    with pytest.raises(TypeError, match=r"clip-i compares generated images with reference images; call score$"):
        _load("clip-i", clip).score_texts([image], ["a cat"])


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (
            torch.zeros(4, 4, dtype=torch.uint8),
            ValueError,
            r"reference_images\[1\] has shape \(4, 4\); give \(3, H, W\)",
        ),
        (torch.zeros(4, 4, 3), ValueError, r"reference_images\[1\] has shape \(4, 4, 3\), .* image.permute"),
        (torch.zeros(3, 0, 4), ValueError, r"reference_images\[1\] has shape \(3, 0, 4\), which has no pixels"),
        (
            np.zeros((4, 4, 3), np.uint8),
            TypeError,
            r"reference_images\[1\] is an ndarray; give a \(3, H, W\) tensor",
        ),
    ],
)
def test_wrong_image_is_named(dino: Path, image: Any, error: type[Exception], text: str) -> None:
    good = _image(8, 8, 1)
    with pytest.raises(error, match=text):
        _load("dino-i", dino).score([good, good], [good, image])


def test_wrong_sequences_are_named(clip: Path) -> None:
    image = _image(8, 8, 1)
    with pytest.raises(ValueError, match=r"reference_images holds 1 samples but generated_images holds 2"):
        _load("clip-i", clip).score([image, image], [image])
    with pytest.raises(ValueError, match=r"prompts holds 2 samples but generated_images holds 1"):
        _load("clip-t", clip).score_texts([image], ["a", "b"])
    with pytest.raises(ValueError, match=r"generated_images is one tensor of shape \(3, 8, 8\); add a batch dimension"):
        _load("clip-i", clip).score(image, [image])
    with pytest.raises(TypeError, match=r"prompts is a str; give a list"):
        _load("clip-t", clip).score_texts([image], "a")
    with pytest.raises(TypeError, match=r"prompts\[0\] is an int"):
        _load("clip-t", clip).score_texts([image], [3])  # type: ignore[list-item]


def test_features_that_overflow_are_an_error(dino: Path, tmp_path: Path) -> None:
    baseline = _load("dino-i", _copy(dino, tmp_path))  # its own network, to be broken
    images = [_image(8, 8, seed) for seed in range(3)]
    broken = networks._content_key(images[2])
    for values in ([torch.nan] * 32, [torch.inf, *[0.0] * 31]):
        baseline._network.cache.put(broken, torch.tensor(values))
        with pytest.raises(RuntimeError, match=r"dino-i: the features of generated_images\[1\] are not finite"):
            baseline.score([images[0], images[2]], images[:2])
        with pytest.raises(RuntimeError, match=r"dino-i: the features of reference_images\[1\] are not finite"):
            baseline.score(images[:2], [images[0], images[2]])


def test_siglip2_needs_the_backbone_and_takes_no_model(backbone: SigLIP2Backbone) -> None:
    with pytest.raises(ValueError, match=r"backbone is None; baseline siglip2-i needs MaSC's"):
        load_baseline("siglip2-i", Run(Path()), device="cpu")
    run = Run(Path(), baseline_model=(("siglip2-t", "some/model"),))
    with pytest.raises(ValueError, match=r"model is 'some/model', but baseline siglip2-t uses MaSC's backbone"):
        load_baseline("siglip2-t", run, device="cpu", backbone=backbone)


def test_checkpoint_of_another_type_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dino-i: .* is a checkpoint of type 'clip'; give one .* 'vit'"):
        _load("dino-i", clip)
    with pytest.raises(FileNotFoundError, match=r"clip-i: .* holds no config.json"):
        _load("clip-i", tmp_path)


def test_missing_files_are_named(clip: Path, dino: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("weights", "processor", "tokenizer")]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"dino-i: .* holds no \*.safetensors weights"):
        _load("dino-i", _copy(dino, folders[0], "model.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"holds no preprocessor_config.json"):
        _load("dino-i", _copy(dino, folders[1], "preprocessor_config.json"))
    without_tokenizer = _copy(clip, folders[2], "vocab.json", "merges.txt")
    with pytest.raises(OSError, match=r"has no readable tokenizer .* vocab.json exists"):
        _load("clip-t", without_tokenizer)


def test_weights_that_do_not_fit_config_json_are_an_error(dino: Path, tmp_path: Path) -> None:
    folder = _copy(dino, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a ViTModel"):
        _load("dino-i", folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"has, beyond its config.json, \d+ weights of a ViTModel"):
        _load("dino-i", folder)


def test_processor_file_without_mean_is_an_error(dino: Path, tmp_path: Path) -> None:
    folder = _copy(dino, tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINO_PROCESSOR | {"image_mean": [0.5]}))
    with pytest.raises(ValueError, match="image_mean"):
        _load("dino-i", folder)


@pytest.mark.parametrize(
    ("name", "since", "installed"), [("dinov3-i", "4.56", "4.55.4"), ("radio-i", "5.13", "5.12.1")]
)
def test_transformers_without_the_class_is_reported_before_any_download(
    name: str, since: str, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__=installed))
    expected = rf"{name} needs transformers {since} or newer, and {installed} is installed; pip install 'transformers>="
    with pytest.raises(ImportError, match=expected):
        load_baseline(name, Run(Path()), device="cpu")


@pytest.fixture
def hub_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Requests to a hub that refuses: DINOv3 is gated, all else unreachable."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    asked: list[tuple[str, str | None]] = []

    def snapshot_download(model: str, *, revision: str | None, **_: Any) -> str:
        asked.append((model, revision))
        if "dinov3" in model:
            raise errors.GatedRepoError.__new__(errors.GatedRepoError)  # its constructor wants a response
        raise errors.LocalEntryNotFoundError("no internet")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def test_default_checkpoints_use_commits_with_safetensors(
    hub_calls: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    for name, model in (("clip-i", None), ("clip-t", None), ("dino-i", "facebook/dino-vits16")):
        run = Run(Path(), baseline_model=((name, model),) if model else (), cache_dir=str(tmp_path))
        expected = rf"baseline {name}: .*`hf download --revision \w+ {model or DEFAULT_BASELINE_MODELS[name]}`"
        with pytest.raises(ConnectionError, match=expected):
            load_baseline(name, run, device="cpu")
    with pytest.raises(ConnectionError, match=r"hf download facebook/dino-vits8`"):  # its main branch has safetensors
        load_baseline("dino-i", Run(Path(), cache_dir=str(tmp_path)), device="cpu")
    assert [revision is not None and len(revision) == 40 for _, revision in hub_calls] == [True, True, True, False]


@needs_dinov3
def test_gated_checkpoint_is_reported_with_licence_and_login(
    hub_calls: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    with pytest.raises(PermissionError, match=r"baseline dinov3-i: .* Accept its licence at https.* `hf auth login`"):
        load_baseline("dinov3-i", Run(Path(), cache_dir=str(tmp_path)), device="cpu")


def test_commit_is_that_of_the_snapshot_and_none_for_a_folder(
    dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123abcd" * 5
    assert _load("dino-i", dino).commit is None
    saved = tmp_path / "snapshots" / "000100"  # of a training, not of the hub
    saved.mkdir(parents=True)
    assert _load("dino-i", _copy(dino, saved)).commit is None
    snapshot = tmp_path / "snapshots" / commit
    snapshot.mkdir()
    _copy(dino, snapshot)
    assert _load("dino-i", snapshot).commit == commit
    monkeypatch.setattr("masc_metrics.checkpoint.fetch", lambda *_: snapshot)
    baseline = load_baseline("dino-i", Run(Path()), device="cpu")
    assert (baseline.checkpoint, baseline.commit) == ("facebook/dino-vits8", commit)


@pytest.mark.parametrize(("name", "value"), [("image_mean", [{"a": 1}, 0.5, 0.5]), ("size", [2])])
def test_value_of_a_wrong_type_in_clips_processor_is_an_error_that_names_the_folder(
    clip: Path, tmp_path: Path, name: str, value: object
) -> None:
    folder = _copy(clip, tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"{folder}.* cannot be (read|used)"):
        _load("clip-i", folder).score([torch.zeros(3, 32, 32, dtype=torch.uint8)], torch.zeros(1, 3, 32, 32))
