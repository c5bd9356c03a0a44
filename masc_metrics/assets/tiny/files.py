"""Files of the bundled checkpoint other than weights: config, tokenizer and image processor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from masc_metrics.scenes import COLOURS, PATTERNS, SCENES, SHAPES

TEXT_LENGTH = 64
CAPTION_PREFIXES = ("", "", "a photo of", "a picture of", "a rendering of", "the")

_WIDTH = 128
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_EVERYDAY = "the a an of in on at with and to photo picture image is are this that one two my your his her from for by"


def write_files(folder: Path) -> None:
    """Write all files except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, _captions(), length=TEXT_LENGTH)
    shared = {"hidden_size": _WIDTH, "num_attention_heads": 4, "attention_dropout": 0.0}
    vision = {"model_type": "siglip2_vision_model", "num_hidden_layers": 4, "intermediate_size": 3 * _WIDTH}
    text = {"model_type": "siglip2_text_model", "num_hidden_layers": 2, "intermediate_size": 2 * _WIDTH}
    config = {
        "architectures": ["Siglip2Model"],
        "initializer_factor": 1.0,
        "model_type": "siglip2",
        "text_config": text | shared | {
            "vocab_size": vocabulary,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_size": _WIDTH,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        "torch_dtype": "float32",
        "vision_config": vision | shared | {"num_patches": 64, "patch_size": 16},
    }  # fmt: skip
    _write_json(folder / "config.json", config)
    processor = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Siglip2ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_num_patches": 256,
        "patch_size": 16,
        "processor_class": "Siglip2Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    _write_json(folder / "preprocessor_config.json", processor)


def _captions() -> Iterator[str]:
    for words in product(COLOURS, PATTERNS, SHAPES):
        yield " and ".join((words[0], " ".join(words)))
    for prefix, scene in product(CAPTION_PREFIXES, SCENES):
        yield f"{prefix} {scene}".strip()
    yield from [_EVERYDAY] * 5


def write_tokenizer(folder: Path, corpus: Iterable[str], *, length: int) -> int:
    """Train a small tokenizer like Gemma's, byte-pair encoding with byte fallback, and write its files.

    It adds an eos token but no bos token, pads on the right, and has ``model_input_names=["input_ids"]``. It is trained
    on lower-case text, because the backbone lower-cases texts.

    Returns:
        Size of the vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    words = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = words
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[*_SPECIAL, *bytes_], show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789▁"),
    )  # fmt: skip
    trained.train_from_iterator((line.lower() for line in corpus), trainer)
    pieces = json.loads(trained.to_str())["model"]
    # Built again, because byte fallback needs byte tokens in the vocabulary that are not special tokens.
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces["vocab"],
            merges=[tuple(merge) for merge in pieces["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{token[1:-1]}_token": token for token in _SPECIAL}
    _write_json(folder / "special_tokens_map.json", named)
    added = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write_json(
        folder / "tokenizer_config.json",
        named
        | {
            "add_bos_token": False,
            "add_eos_token": True,
            "added_tokens_decoder": {str(index): added | {"content": token} for index, token in enumerate(_SPECIAL)},
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids"],
            "model_max_length": length,
            "padding_side": "right",
            "processor_class": "Siglip2Processor",
            "tokenizer_class": "GemmaTokenizer",
        },
    )
    return int(tokenizer.get_vocab_size())


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
