"""Names of methods, keys and concepts in files of scores and ratings."""

from __future__ import annotations

import re

_SETTINGS = re.compile(r"(?<=.)_(?:gs|scale|step|seed)\d.*", re.DOTALL)
_ENCODERS = {"huge": "h", "giant": "g"}
_KEY = re.compile(r"(?P<concept>.+)-(?P<prompt>\d+)(?:_\d+)?", re.DOTALL)


def method_name(folder_or_stem: str) -> str:
    """Shorten a method's name to the spelling of DreamBench++'s rating files.

    Run settings are removed, from ``_gs``, ``_scale``, ``_step`` or ``_seed`` and a digit on. ``vit_huge`` and
    ``vit_giant`` become ``vit_h`` and ``vit_g`` and are moved before ``sd`` or ``sdxl``. A title ("BLIP-Diffusion")
    becomes lower case with underscores.

    Example:
        >>> method_name("ip_adapter_plus_vit_huge_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16")
        'ip_adapter_plus_vit_h_sdxl'

    Source: the folders and files of DreamBench++ (github.com/yuangpeng/dreambench_plus).
    """
    name = re.sub(r"[\s-]+", "_", folder_or_stem.strip()).lower()
    name = _SETTINGS.sub("", name)
    name = re.sub(r"_vit_(huge|giant)(?=_|$)", lambda found: f"_vit_{_ENCODERS[found[1]]}", name)
    return re.sub(r"_(sd|sdxl)_vit_([hg])$", r"_vit_\2_\1", name)


def sample_key(key: str) -> str:
    """Remove the seed from a key: ``object_00_motorcycle-3_0`` becomes ``object_00_motorcycle-3``."""
    found = _KEY.fullmatch(key.strip())
    return f"{found['concept']}-{found['prompt']}" if found else key.strip()


def concept_of(key: str) -> str:
    """The concept of a key: the part before ``-<prompt>``, else before its last ``/`` or ``-``, else the key itself."""
    found = _KEY.fullmatch(key)
    if found:
        return found["concept"]
    return key.rpartition("/")[0] or key.rpartition("-")[0] or key
