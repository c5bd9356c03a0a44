"""Checkpoint folders with random weights, in the file layout of the real SigLIP2 checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

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
    """Write config, safetensors, tokenizer and image processor files; returns the folder."""
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True, exist_ok=True)
    words = _write_tokenizer(folder, processor="Siglip2Processor" if naflex else "SiglipProcessor")
    family = "siglip2" if naflex else "siglip"
    shared = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision = {"model_type": f"{family}_vision_model", "patch_size": 16, **shared}
    vision |= {"num_patches": 256} if naflex else {"image_size": image_size}
    text = {
        "model_type": f"{family}_text_model",
        "vocab_size": vocab_size or words,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": width,
        "pad_token_id": 0,  # these three because transformers' defaults lie outside a small vocabulary
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


def _write_tokenizer(folder: Path, processor: str) -> int:
    """A small tokenizer of Gemma's kind: BPE with byte fallback, no bos, an eos appended, padding on the right."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special + bytes_, initial_alphabet=list("abcdefghijklmnopqrstuvwxyz▁"),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    # The byte tokens belong to the vocabulary but are not special, else fallback would not reach them.
    tokenizer = Tokenizer(
        models.BPE(
            vocab=trained["vocab"],
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    _write_json(folder / "special_tokens_map.json", named)
    _write_json(
        folder / "tokenizer_config.json",
        named
        | {
            "add_bos_token": False,
            "add_eos_token": True,
            "added_tokens_decoder": {
                str(index): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for index, token in enumerate(special)
            },
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids"],
            "model_max_length": TEXT_LENGTH,
            "padding_side": "right",
            "processor_class": processor,
            "tokenizer_class": "GemmaTokenizer",
            "use_default_system_prompt": False,
        },
    )
    return tokenizer.get_vocab_size()


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2))
