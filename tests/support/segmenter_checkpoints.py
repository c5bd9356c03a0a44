"""Checkpoints of the segmenters' real classes with small random weights, and their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

_BOS, _EOS = 512, 513  # after the 256 byte symbols and the same with </w>

_CLIP_TEXT = {
    "vocab_size": 514,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": _BOS,
    "eos_token_id": _EOS,
    "pad_token_id": _EOS,
}

_WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), ".", "_"]


def build_sam3(folder: Path, *, video: bool = False) -> Path:
    """SAM 3; with ``video``, its config.json has the layout of the hub's repository."""
    import transformers

    hidden = {"hidden_size": 32, "num_attention_heads": 2}
    layer = {**hidden, "num_layers": 1, "intermediate_size": 64}
    backbone = {
        "model_type": "sam3_vit_model",
        **hidden,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "image_size": 112,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    config = transformers.Sam3Config(
        vision_config=vision,
        text_config={
            "model_type": "clip_text_model",
            **_CLIP_TEXT,
            "projection_dim": 16,
            "max_position_embeddings": 32,
        },
        geometry_encoder_config=layer,
        detr_encoder_config=layer,
        detr_decoder_config={**layer, "num_queries": 5},
        mask_decoder_config=hidden,
    )

    def spread(weights: Mapping[str, torch.Tensor]) -> None:
        """Random masks lie near 0 and random scores at .25: enlarge what they depend on."""
        last = max(name for name in weights if name.startswith("mask_decoder.mask_embedder") and "weight" in name)
        weights[last].mul_(2000)
        for name, tensor in weights.items():
            if name.startswith("dot_product_scoring") and "proj.weight" in name:
                tensor.mul_(8)
            if name == "detr_decoder.presence_head.layer3.bias":
                tensor.fill_(4)

    write_clip_tokenizer(folder, 32)
    _write_processor(folder, [0.5] * 3, [0.5] * 3, {"height": 112, "width": 112})
    _save(folder, "Sam3Model", config, spread)
    if video:
        detector = _read_json(folder / "config.json")
        _rename_weights(folder, lambda name: f"detector_model.{name}", {"tracker_model.unused": torch.zeros(3)})
        tracker = {"model_type": "sam3_tracker_video"}
        _write_json(
            folder / "config.json",
            {"model_type": "sam3_video", "detector_config": detector, "tracker_config": tracker},
        )
    return folder


def build_clipseg(folder: Path) -> Path:
    """CLIPSeg."""
    import transformers

    config = transformers.CLIPSegConfig(
        text_config={**_CLIP_TEXT, "max_position_embeddings": 77},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        projection_dim=32,
        extract_layers=[1, 2, 3],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )

    def spread(weights: Mapping[str, torch.Tensor]) -> None:
        weights["decoder.transposed_convolution.weight"].mul_(20)

    write_clip_tokenizer(folder, 77)
    _write_processor(folder, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 64)
    return _save(folder, "CLIPSegForImageSegmentation", config, spread)


def build_grounding_dino(folder: Path, *, class_name: str = "GroundingDino") -> Path:
    """Grounding DINO, or with ``class_name="MMGroundingDino"`` MM-Grounding-DINO."""
    import transformers

    config = getattr(transformers, f"{class_name}Config")(
        backbone_config=transformers.SwinConfig(
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[2, 2, 2, 2],
            window_size=4,
            image_size=96,
            out_indices=[2, 3, 4],
        ),
        text_config={
            "model_type": "bert",
            "vocab_size": len(_WORDS) + 5,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=64,
        decoder_attention_heads=2,
        num_queries=12,
    )
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    _write_processor(folder, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], {"shortest_edge": 96, "longest_edge": 192})
    return _save(folder, f"{class_name}ForObjectDetection", config)


def build_owlv2(folder: Path) -> Path:
    """OWLv2."""
    import transformers

    text = {**_CLIP_TEXT, "max_position_embeddings": 16, "pad_token_id": 0}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 16,
    }
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    write_clip_tokenizer(folder, 16, pad="!")
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    _write_processor(folder, mean, std, {"height": 96, "width": 96})
    return _save(folder, "Owlv2ForObjectDetection", config)


def build_sam2(folder: Path, *, video: bool = False) -> Path:
    """SAM 2; with ``video``, its config.json has the layout of the hub's repositories."""
    import transformers

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8}
    mask = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    folder.mkdir(parents=True, exist_ok=True)
    _write_processor(folder, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], {"height": 64, "width": 64})
    _save(folder, "Sam2Model", config)
    if video:
        values = _read_json(folder / "config.json")
        _write_json(folder / "config.json", {**values, "model_type": "sam2_video"})
        _rename_weights(folder, lambda name: name, {"memory_attention.unused": torch.zeros(3)})
    return folder


def write_clip_tokenizer(folder: Path, length: int, pad: str = "<|endoftext|>") -> None:
    """Write a CLIP tokenizer of single bytes: every letter is a token."""
    from transformers.models.clip import tokenization_clip as clip

    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(clip, "bytes_to_unicode"):  # transformers 5 has none in this module
        from transformers.convert_slow_tokenizer import bytes_to_unicode
    else:
        bytes_to_unicode = clip.bytes_to_unicode
    symbols = sorted(bytes_to_unicode().values())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    )


def _save(
    folder: Path, class_name: str, config: Any, change: Callable[[Mapping[str, torch.Tensor]], None] | None = None
) -> Path:
    """Save a model with random weights of a fixed seed; the global random state is unchanged."""
    import transformers

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config).eval()
        if change is not None:
            change(model.state_dict())
        model.save_pretrained(folder)
    return folder


def _rename_weights(folder: Path, rename: Callable[[str], str], more: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file({**weights, **more}, file, metadata={"format": "pt"})


def _write_processor(folder: Path, mean: list[float], std: list[float], size: object) -> None:
    values = {"image_mean": mean, "image_std": std, "resample": 2, "size": size}
    _write_json(folder / "preprocessor_config.json", values)


def _read_json(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2))


NEEDS = {
    "sam3": "5.4.0",
    "sam3_video": "5.4.0",
    "sam2": "4.56.0",
    "sam2_video": "4.56.0",
    "mm_grounding_dino": "4.55.0",
}
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sam3": build_sam3,
    "sam3_video": lambda folder: build_sam3(folder, video=True),
    "clipseg": build_clipseg,
    "grounding_dino": build_grounding_dino,
    "mm_grounding_dino": lambda folder: build_grounding_dino(folder, class_name="MMGroundingDino"),
    "owlv2": build_owlv2,
    "sam2": build_sam2,
    "sam2_video": lambda folder: build_sam2(folder, video=True),
}
PARTS = {
    "sam3": ("sam3",),
    "clipseg": ("clipseg",),
    "grounded_sam2": ("grounding_dino", "sam2"),
    "owlv2_sam2": ("owlv2", "sam2"),
}
THRESHOLDS = {"grounded_sam2": 0.998, "owlv2_sam2": 0.7}
"""At which the random networks find some boxes but not all."""


def requires(*parts: str) -> None:
    """Skip unless the installed transformers has these networks without torchvision."""
    for part in parts:
        if Version(version("transformers")) < Version(NEEDS.get(part, "0")):
            pytest.skip(f"{part} needs transformers {NEEDS[part]}")
