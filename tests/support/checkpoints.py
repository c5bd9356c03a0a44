"""Checkpoint folders with random weights, in the file layout of the real SigLIP2 checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from masc_metrics.assets.tiny.files import write_tokenizer

TEXT_LENGTH = 64

_CORPUS = [
    "a photo of a kitten on a beach",
    "the rocket stands in a night sky at a brick wall",
    "an astronaut drinks a cup of coffee in a sunny garden",
    "a cat is chasing butterflies under the snowy mountain",
]


def build_checkpoint(
    folder: Path,
    *,
    naflex: bool = True,
    width: int = 64,
    mlp: int = 128,
    layers: int = 2,
    heads: int = 4,
    image_size: int = 256,
    max_shard_size: str | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Path:
    """Write config, safetensors, tokenizer and image-processor files, and return the folder."""
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder, _CORPUS, length=TEXT_LENGTH)
    family = "siglip2" if naflex else "siglip"
    shared = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = {"model_type": f"{family}_vision_model", "patch_size": 16, **shared}
    vision |= {"num_patches": 256} if naflex else {"image_size": image_size}
    text = {
        "model_type": f"{family}_text_model",
        "vocab_size": vocab_size or words,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": width,
        "pad_token_id": 0,  # the defaults of transformers exceed a small vocabulary
        "eos_token_id": 1,
        "bos_token_id": 2,
        **shared,
    }
    config = {
        "architectures": ["Siglip2Model" if naflex else "SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": family,
        "text_config": text,
        "torch_dtype": "float32",
        "vision_config": vision,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _image_processor(naflex, image_size))
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    torch.random.set_rng_state(state)
    if max_shard_size:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        _write_json(folder / "config.json", config)
    else:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _image_processor(naflex: bool, image_size: int) -> dict[str, object]:
    common: dict[str, object] = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    if naflex:
        return common | {
            "image_processor_type": "Siglip2ImageProcessor",
            "max_num_patches": 256,
            "patch_size": 16,
            "processor_class": "Siglip2Processor",
        }
    return common | {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "size": {"height": image_size, "width": image_size},
    }


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2))
