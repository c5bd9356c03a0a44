"""Downloads from the model hub: one process at a time, whole or not at all, with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Weights as safetensors alone: a pickle runs code when it is read.
_FILES_NEEDED = ["*.json", "*.safetensors", "*.model", "*.txt"]

_log = logging.getLogger(__name__)


def fetch(model: str, revision: str | None, cache_dir: str | None, local_files_only: bool) -> Path:
    """The folder of a hub checkpoint on this machine, named after its commit; downloaded if it must be and may be.

    Args:
        model: hub id.
        revision: branch, tag or commit; None is the main branch.
        cache_dir: where downloads are kept; None is the hub's usual place.
        local_files_only: never use the network.

    Raises:
        OSError: if it cannot be had (FileNotFoundError, PermissionError, ConnectionError by reason); the text says
            how to get it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = cache_dir or constants.HF_HUB_CACHE
    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)

    def snapshot(local_files_only: bool) -> Path:
        folder = Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache,
                local_files_only=local_files_only,
                allow_patterns=_FILES_NEEDED,
            )
        )
        # Without network the hub's client returns what an interrupted download left as if it were whole.
        if not _is_complete(folder):
            raise LocalEntryNotFoundError(f"{folder} lacks config.json or safetensors weights")
        return folder

    with _explained(model, revision, offline):
        if offline:
            return snapshot(local_files_only=True)
        with _one_process_at_a_time(lock_file(model, revision, Path(cache))) as waited:
            if waited:  # another process of this machine has just fetched it, unless it failed
                with suppress(LocalEntryNotFoundError):
                    return snapshot(local_files_only=True)
            return snapshot(local_files_only=False)


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has all its weights."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / shard).is_file() for shard in json.loads(index.read_text())["weight_map"].values())
    weights = [file.name for file in folder.glob("*.safetensors")]
    return bool(weights) and not any("-of-" in name for name in weights)


def lock_file(model: str, revision: str | None, cache: Path) -> Path:
    """The file that a process locks while it downloads this checkpoint."""
    name = hashlib.sha256(f"{model}@{revision}".encode()).hexdigest()[:16]
    return cache / f".masc-metrics-{name}.lock"


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[bool]:
    """Hold the lock; yields whether another process held it before."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
            waited = False
        except Timeout:
            _log.info("waiting for another process to download the checkpoint (%s)", path)
            lock.acquire()
            waited = True
    except OSError:  # a read-only cache, shared by a cluster: nothing will be written, so nothing needs the lock
        yield False
        return
    try:
        yield waited
    finally:
        lock.release()


@contextmanager
def _explained(model: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Turn the hub client's errors into ones that say what to do."""
    from huggingface_hub import errors

    name = f"{model!r}" + (f" at revision {revision!r}" if revision else "")
    page = f"https://huggingface.co/{model}"
    otherwise = f"or pass the folder of a copy, made elsewhere by: masc-metrics prefetch {model}"
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"checkpoint {name} is gated. Accept its licence at {page}, then log in with `hf auth login` or set "
            f"HF_TOKEN, {otherwise}"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"checkpoint {model!r} has no revision {revision!r}; see {page}/commits") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"checkpoint {name} is not on the hub, or is private, and there is no such folder here. Check its name; if "
            "it is private or gated, accept its licence and log in with `hf auth login` or set HF_TOKEN, "
            f"{otherwise}"
        ) from None
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{model!r} is neither a folder here nor a hub id ({error})") from None
    except errors.LocalEntryNotFoundError as error:
        cause = (str(error.__cause__ or error).strip() or "without a reason").splitlines()[0]
        reason = "downloads are switched off" if offline else f"the hub gave nothing ({cause})"
        raise ConnectionError(
            f"checkpoint {name} is no folder here, is not (or not whole) in the local cache, and {reason}. Run "
            f"`masc-metrics prefetch {model}` where there is internet (a gated one needs its licence accepted and "
            "`hf auth login` first) and pass the folder that it prints"
        ) from None
    except Exception as error:  # a broken transfer, a full disk: the client has no common class for them
        raise OSError(
            f"checkpoint {name} could not be downloaded ({type(error).__name__}: {error}). Try again, {otherwise}"
        ) from error
