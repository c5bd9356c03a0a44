"""Checkpoints: downloads from a hub, once for all processes, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from support.checkpoints import build_checkpoint
from support.hub import COMMIT, GATED, OPEN, Hub, running

from masc_metrics import MaSCConceptPreservation, load_backbone, release_backbones
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.hub import fetch
from masc_metrics.reading import checkpoint_version, read_network, read_tokenizer

LIMIT_S = 90
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with running(checkpoint) as hub:
        yield hub


def python(hub: Hub, cache: Path, program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=hub.environment(cache) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    return out


def test_concurrent_processes_download_once_and_later_processes_use_the_cache(hub: Hub, tmp_path: Path) -> None:
    program = (
        "from masc_metrics import load_backbone\n"
        "checkpoint = load_backbone().checkpoint\n"
        "print(checkpoint.commit, checkpoint.folder, checkpoint.processing.patch_size)"
    )
    answers = [output(process) for process in [python(hub, tmp_path, program) for _ in range(3)]]
    assert len(set(answers)) == 1
    assert answers[0].startswith(f"{COMMIT} {tmp_path}")
    assert hub.requests["GET", "model.safetensors"] == 1
    before = hub.requests.total()
    local = program.replace("load_backbone()", "load_backbone(local_files_only=True)")
    assert output(python(hub, tmp_path, local)) == answers[0]
    assert hub.requests.total() == before


def test_interrupted_downloads_are_downloaded_again_or_reported(hub: Hub, tmp_path: Path) -> None:
    """A process that waited for another, failed download starts its own; without network access it raises."""
    snapshot = tmp_path / "hub" / f"models--{OPEN.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    program = (
        "import os, threading, time\n"
        "from pathlib import Path\n"
        "from filelock import FileLock\n"
        "from masc_metrics import checkpoint, hub\n"
        "held = threading.Event()\n"
        "def hold(lock):\n"
        "    with FileLock(lock):\n"
        "        held.set()\n"
        "        time.sleep(1)\n"
        "source = checkpoint.CheckpointSource.of(checkpoint.DEFAULT_MODEL)\n"
        "lock = hub.lock_file(source.model, source.revision, Path(os.environ['HF_HOME']) / 'hub')\n"
        "threading.Thread(target=hold, args=[lock]).start()\n"
        "held.wait()\n"
        "print(sorted(file.name for file in source.resolve().folder.iterdir()))"
    )
    offline = python(hub, tmp_path, "from masc_metrics import load_backbone; load_backbone()", HF_HUB_OFFLINE="1")
    _, error = offline.communicate(timeout=LIMIT_S)
    assert "ConnectionError" in error
    assert "missing or incomplete in the local cache" in error
    unreachable = python(hub, tmp_path, "from masc_metrics import load_backbone; load_backbone()", HF_ENDPOINT=NOWHERE)
    _, error = unreachable.communicate(timeout=LIMIT_S)
    assert "missing or incomplete in the local cache, and the hub is not reachable" in error
    (snapshot / "config.json").unlink()
    assert "'model.safetensors'" in output(python(hub, tmp_path, program))


def test_downloads_with_other_bytes_than_the_hubs_are_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    program = (
        "from masc_metrics import load_backbone\n"
        "try:\n"
        "    print(load_backbone().checkpoint.commit)\n"
        "except OSError as error:\n"
        "    print(error)"
    )
    for file in ("model.safetensors", "config.json"):
        hub.damaged = {file}
        answer = output(python(hub, tmp_path / file, program))
        assert f"{file} arrived with other bytes than the hub has, and was removed" in answer
    hub.damaged = set()
    assert output(python(hub, tmp_path / file, program)) == f"{COMMIT}\n"


def test_prefetch_prints_a_folder_that_works_offline(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    prefetch = (
        f"import sys; from masc_metrics.cli import main; sys.exit(main(['prefetch', '--cache-dir', {str(cache)!r}]))"
    )
    folder = Path(output(python(hub, tmp_path, prefetch)).removesuffix("\n"))
    assert folder.is_relative_to(cache)
    backbone = load_backbone(folder)
    assert backbone.checkpoint.commit == COMMIT
    assert backbone.encode_texts(["a cat"]).shape == (1, 64)


def test_errors_for_unavailable_checkpoints_say_how_to_get_them(hub: Hub, tmp_path: Path) -> None:
    program = f"""
import json
import logging
from masc_metrics import load_backbone
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.hub import fetch
def error(model, **settings):
    try:
        load_backbone(model, **settings)
    except Exception as error:
        return [type(error).__name__, str(error), error.__suppress_context__ or error.__context__ is None]
print(json.dumps({{
    "gated": error({GATED!r}),
    "missing": error("nobody/nothing"),
    "revision": error({OPEN!r}, revision="v7"),
    "local": error({OPEN!r}, local_files_only=True),
    "name": error("no such model!"),
}}))
"""
    errors = json.loads(output(python(hub, tmp_path, program)))
    assert all(bare for _, _, bare in errors.values()), "tracebacks without the errors of the hub client"
    kinds = {name: kind for name, (kind, _, _) in errors.items()}
    assert kinds == {
        "gated": "PermissionError",
        "missing": "FileNotFoundError",
        "revision": "FileNotFoundError",
        "local": "ConnectionError",
        "name": "FileNotFoundError",
    }
    gated = errors["gated"][1]
    for part in (GATED, "is gated", f"https://huggingface.co/{GATED}", "hf auth login", "folder of a copy"):
        assert part in gated
    assert "'nobody/nothing' is not a local folder, and does not exist on the hub or is private" in errors["missing"][1]
    assert "has no revision 'v7'" in errors["revision"][1]
    assert f"downloads are disabled. Run `masc-metrics prefetch {OPEN}`" in errors["local"][1]
    assert "neither a local folder nor a hub id" in errors["name"][1]
    offline = json.loads(output(python(hub, tmp_path, program, HF_HUB_OFFLINE="1")))
    assert "downloads are disabled" in offline["gated"][1]
    unreachable = json.loads(output(python(hub, tmp_path, program, HF_ENDPOINT=NOWHERE)))
    assert unreachable["gated"][0] == "ConnectionError"
    assert "the hub is not reachable" in unreachable["gated"][1]


def test_constructors_access_neither_network_nor_disk(tmp_path: Path) -> None:
    metric = MaSCConceptPreservation("nobody/nothing", cache_dir=tmp_path / "cache")
    missing = MaSCConceptPreservation(tmp_path / "not-there-yet")
    assert not (tmp_path / "cache").exists()
    assert pickle.loads(pickle.dumps(metric)).backbone.source == metric.backbone.source
    assert missing.backbone.source.model == str(tmp_path / "not-there-yet")


def test_errors_for_invalid_folders_name_folder_and_problem(checkpoint: Path, tmp_path: Path) -> None:
    def error(folder: Path | str, kind: type[Exception] = FileNotFoundError) -> str:
        with pytest.raises(kind) as caught:
            load_backbone(folder)
        return str(caught.value)

    def changed(name: str, **values: object) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(checkpoint, folder)
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return folder

    assert f"no checkpoint folder at {tmp_path / 'nowhere'}" in error(tmp_path / "nowhere")
    assert "no checkpoint folder at" in error("./nowhere")
    assert "holds no config.json" in error(tmp_path)
    assert "type 'clip'; give a SigLIP2 checkpoint" in error(changed("config.json", model_type="clip"), ValueError)
    bicubic = changed("preprocessor_config.json", resample=3)
    assert load_backbone(bicubic).checkpoint.processing.resample == "bicubic"
    assert "resample 1" in error(changed("preprocessor_config.json", resample=1), ValueError)
    assert "both need three values" in error(changed("preprocessor_config.json", image_mean=[0.5]), ValueError)
    bare = changed("config.json")
    (bare / "preprocessor_config.json").unlink()
    assert "with image_mean and image_std" in error(bare)
    pickled = changed("config.json")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "holds no *.safetensors weights" in error(pickled)
    broken = changed("config.json")
    (broken / "config.json").write_text("{")
    assert "cannot be read as JSON" in error(broken, ValueError)
    cut = changed("config.json")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    assert f"{cut} cannot be read as a SigLIP2 checkpoint (SafetensorError" in error(cut, ValueError)
    assert "cannot be read" in error(changed("preprocessor_config.json", image_mean=["a", "b", "c"]), ValueError)
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    deep = changed("config.json", vision_config=vision | {"num_hidden_layers": 3})
    assert "lacks 16 weights of its vision tower" in error(deep, ValueError)
    shallow = changed("config.json", vision_config=vision | {"num_hidden_layers": 1})
    assert "has, beyond its config.json, 16 weights of its vision tower" in error(shallow, ValueError)
    wide = changed("config.json", vision_config=vision | {"hidden_size": 128})
    assert "cannot be read as a SigLIP2 checkpoint" in error(wide, ValueError)


def test_files_of_a_checkpoint_load_no_code_and_no_other_files(checkpoint: Path, tmp_path: Path) -> None:
    def refused(name: str, values: dict[str, object], copied: Path = checkpoint) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(copied, folder)
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))
        with pytest.raises(ValueError, match=str(folder)) as caught:
            load_backbone(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value).partition(str(folder))[2]

    sharded = build_checkpoint(tmp_path / "sharded", max_shard_size="100KB")
    for shard in ("pytorch_model.bin", "../model.safetensors", 3):
        text = refused("model.safetensors.index.json", {"weight_map": {"head.weight": shard}}, sharded)
        assert text.endswith(f"names {shard!r}; only *.safetensors files of its folder are read")
    assert "has no weight_map" in refused("model.safetensors.index.json", {"weight_map": []}, sharded)
    assert "holds an adapter" in refused("adapter_config.json", {"base_model_name_or_path": "someone/else"})
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    for values, entry in (
        ({"_attn_implementation": "owner/kernel"}, "_attn_implementation 'owner/kernel'"),
        ({"attn_implementation": {"vision_config": "owner/kernel"}}, "attn_implementation 'owner/kernel'"),
        ({"vision_config": vision | {"_attn_implementation": "a/b"}}, "vision_config._attn_implementation 'a/b'"),
        ({"transformers_weights": "weights.bin"}, "transformers_weights"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"vision_config": vision | {"use_pretrained_backbone": True, "backbone": "a/b"}}, "backbone 'a/b'"),
    ):
        assert entry in refused("config.json", values)


def test_values_that_no_network_can_have_are_errors_of_one_line(checkpoint: Path, tmp_path: Path) -> None:
    def error(folder: Path) -> str:
        with pytest.raises(ValueError, match=str(folder)) as caught:
            load_backbone(folder).load(text_tower=True).encode_texts(["a cat"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def changed(name: str, **values: object) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(checkpoint, folder)
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return folder

    for std in ([0.5, 0, 0.5], [0.5, -1, 0.5], [0.5, float("nan"), 0.5]):
        assert "image_std above 0" in error(changed("preprocessor_config.json", image_std=std))
    for std in ([0.5, 1e-30, 0.5], [0.5, 1e30, 0.5]):
        assert "which no network has" in error(changed("preprocessor_config.json", image_std=std))
    assert "has resample [2]; give 2" in error(changed("preprocessor_config.json", resample=[2]))
    assert "rescale_factor 0.0" in error(changed("preprocessor_config.json", rescale_factor=0))
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    assert "vision_config.patch_size 0" in error(changed("config.json", vision_config=vision | {"patch_size": 0}))
    for name in ("num_hidden_layers", "hidden_size"):
        text = error(changed("config.json", vision_config=vision | {name: 10**9}))
        assert f"vision_config.{name} 1000000000, but the weights are" in text
    assert "vision_config.num_attention_heads -1, but" in error(
        changed("config.json", vision_config=vision | {"num_attention_heads": -1})
    )
    nested = changed("config.json")
    (nested / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "nested too deeply" in error(nested)

    integers = changed("config.json")
    weights = load_file(integers / "model.safetensors")
    name = next(name for name in weights if "vision_model.encoder" in name and name.endswith("weight"))
    save_file(weights | {name: weights[name].round().to(torch.int8)}, integers / "model.safetensors", {"format": "pt"})
    assert f"1 weights of its vision tower that are not in floating point, such as {name} in I8" in error(integers)

    for tower, value in (("vision", float("nan")), ("text", float("-inf"))):
        broken = changed("config.json")
        weights = load_file(broken / "model.safetensors")
        name = next(name for name in weights if f"{tower}_model.encoder" in name and name.endswith("weight"))
        weights[name].view(-1)[-1] = value
        save_file(weights, broken / "model.safetensors", {"format": "pt"})
        text = error(broken)
        assert f"has 1 weights of its {tower} tower that are not finite in torch.float32, such as" in text

    foreign = build_checkpoint(tmp_path / "foreign", vocab_size=8)
    assert "has a tokenizer that gives the id" in error(foreign)
    assert "but its network has 8 embeddings" in error(foreign)


def test_tokenizer_without_padding_is_an_error_when_it_is_read(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(OSError, match=r"has no readable tokenizer \(ValueError: it has no pad_token\)"):
        load_backbone(folder).load(text_tower=True)


def test_values_of_any_json_type_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """All 788 cases take a minute, so a choice of them is tried."""
    folder = build_checkpoint(tmp_path / "checkpoint", layers=1)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    values: tuple[object, ...] = (None, [2], {"a": 1}, "x", -1, True, 1.5, 10**9, [])
    cases = []
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        original = json.loads((folder / name).read_text())
        parts = [original, *(part for part in original.values() if isinstance(part, dict))]
        cases += [(name, number, key, value) for number, part in enumerate(parts) for key in part for value in values]
    always = [case for case in cases if case[2] in ("resample", "model_max_length")]
    refused = []
    for name, number, key, value in always + random.Random(0).sample(cases, 30):
        content = (folder / name).read_bytes()
        changed = json.loads(content)
        [changed, *(part for part in changed.values() if isinstance(part, dict))][number][key] = value
        (folder / name).write_text(json.dumps(changed))
        try:
            backbone = load_backbone(folder).load(text_tower=True)
            backbone.encode_texts(["a cat"])
            backbone.encode_images([image], max_num_patches=4)
        except (OSError, ValueError) as error:
            refused.append(str(error))
        (folder / name).write_bytes(content)
        release_backbones()
    assert len(refused) > 20
    assert not any("\n" in text for text in refused)


def test_version_of_a_folder_covers_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masc_metrics.reading._BLOCK", 4)
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    (tmp_path / "vocab.txt").write_bytes(b"a")
    (tmp_path / "empty.json").touch()
    (tmp_path / "README.md").write_bytes(b"not read")
    versions = [checkpoint_version(tmp_path, None)]
    assert versions[0].startswith("sha256:")
    for content in (b"0123x56789", b"012345678x", b"x123456789", b"012345678", b"01234567890"):
        (tmp_path / "model.safetensors").write_bytes(content)
        versions.append(checkpoint_version(tmp_path, None))
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    (tmp_path / "README.md").write_bytes(b"changed")
    assert checkpoint_version(tmp_path, None) == versions[0]
    (tmp_path / "vocab.txt").rename(tmp_path / "merges.txt")
    versions.append(checkpoint_version(tmp_path, None))
    assert len(set(versions)) == 7
    assert checkpoint_version(tmp_path, "abc") == "abc"


def test_files_are_not_blamed_for_other_errors(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class CompilerError(RuntimeError):
        pass

    for error, is_blamed in (
        (KeyError("patch_size"), True),
        (RuntimeError("size mismatch"), True),
        (OSError("Error no file named model.safetensors"), True),
        (CompilerError("fake tensor"), False),
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("Too many open files (os error 24)"), False),
        (PermissionError(errno.EACCES, "Permission denied", "model.safetensors"), False),
        (ImportError("sentencepiece is missing"), False),
        (DeprecationWarning("a warning turned into an error"), False),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(transformers.Siglip2VisionModel, "from_pretrained", fail)
        with pytest.raises(ValueError if is_blamed else type(error)) as caught:
            read_network(
                checkpoint, "Siglip2VisionModel", torch.device("cpu"), torch.float32, kind="checkpoint", part="a tower"
            )
        assert (caught.value is not error) == is_blamed
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
        with pytest.raises(OSError if is_blamed else type(error)) as caught:
            read_tokenizer(checkpoint, ["tokenizer.json"], "save it")
        assert (caught.value is not error) == is_blamed


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (None, TypeError, "model_name_or_path is a NoneType; give a hub id, a local folder or a SigLIP2Backbone"),
        (3, TypeError, "model_name_or_path is an int"),
        (" ", ValueError, "model_name_or_path is empty"),
    ],
)
def test_errors_for_invalid_models_name_the_argument(model: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CheckpointSource.of(model)  # type: ignore[arg-type]


def test_models_and_caches_are_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    home = os.path.realpath(tmp_path)
    for spelling in ("~/model", Path("~/model"), tmp_path / "model"):
        assert CheckpointSource.of(spelling).model == os.path.join(home, "model")
    assert CheckpointSource.of("a/b", cache_dir="~/cache").cache_dir == os.path.join(home, "cache")


def test_errors_for_invalid_source_settings_name_the_argument(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"revision is 'v1' but .* is a folder; omit revision or give a hub id"):
        CheckpointSource.of(checkpoint, revision="v1")
    with pytest.raises(TypeError, match="revision is an int; give a branch, tag or commit"):
        CheckpointSource.of("a/b", revision=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cache_dir is an int; give a folder"):
        CheckpointSource.of("a/b", cache_dir=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="local_files_only is a str; give True or False"):
        CheckpointSource.of("a/b", local_files_only="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("warp", ValueError, "device 'warp' is not available"),
        ("cuda:99", ValueError, "device 'cuda:99' is not available"),
        ("meta", ValueError, "device 'meta' cannot compute values"),
        (99, ValueError, "device '99' is not available"),
        (None, TypeError, "device is a NoneType; give a string"),
        (True, TypeError, "device is a bool; give a string"),
    ],
)
def test_errors_for_unavailable_devices_name_the_device(
    device: object, error: type[Exception], message: str, checkpoint: Path
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        load_backbone(checkpoint, device=device)  # type: ignore[arg-type]


def test_warnings_of_the_client_are_hidden_while_it_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")  # it says five times that it tries again
    shown = []

    def failing(*_: object, **__: object) -> str:
        shown.append(client.isEnabledFor(logging.WARNING))
        raise LocalEntryNotFoundError("no internet")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(ConnectionError, match="downloads are disabled"):
        fetch("someone/model", "main", str(tmp_path), local_files_only=True)
    assert shown == [False]
    assert client.isEnabledFor(logging.WARNING)
