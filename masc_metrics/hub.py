"""Downloads from the model hub: one process at a time, complete and with the hub's checksums, with errors that help."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from masc_metrics.reading import CHECKPOINT_FILES, weight_files

_CLOCK_SLACK_S = 5.0
"""A file system may round the times of files, and its clock may differ from this machine's."""

_log = logging.getLogger(__name__)


def fetch(
    model: str,
    revision: str | None,
    cache_dir: str | None,
    local_files_only: bool,
    command: str = "masc-metrics prefetch",
) -> Path:
    """Return the local folder of a hub checkpoint, named after its commit; download it if necessary and allowed.

    Args:
        model: hub id.
        revision: branch, tag or commit; None is the main branch.
        cache_dir: folder for downloads; None is the default cache of the hub.
        local_files_only: never use the network.
        command: downloads the checkpoint and prints its folder, for error texts; the model is its last argument.

    Raises:
        OSError: if the checkpoint is not available (FileNotFoundError, PermissionError or ConnectionError); the error
            text says how to get it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = cache_dir or constants.HF_HUB_CACHE
    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)

    def snapshot(local_files_only: bool) -> Path:
        started = time.time()
        folder = Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache,
                local_files_only=local_files_only,
                allow_patterns=list(CHECKPOINT_FILES),
            )
        )
        if not local_files_only:
            _check_downloads(folder, since=started - _CLOCK_SLACK_S)
        # When offline, the hub client also returns the folder of an interrupted download.
        if not _is_complete(folder):
            raise LocalEntryNotFoundError(f"{folder} lacks config.json or safetensors weights")
        return folder

    with _quiet_client(), _actionable_errors(model, revision, offline, f"{command} {model}"):
        if offline:
            return snapshot(local_files_only=True)
        with _exclusive(lock_file(model, revision, Path(cache))) as waited:
            if waited:  # another process of this machine has just downloaded it, unless it failed
                with suppress(LocalEntryNotFoundError):
                    return snapshot(local_files_only=True)
            return snapshot(local_files_only=False)


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot contains all weights."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return all(file.is_file() for file in weight_files(folder))
    except FileNotFoundError:
        return False
    except ValueError:  # complete, and an error when it is read
        return True


def _check_downloads(folder: Path, since: float) -> None:
    """Compare the files of a snapshot that were downloaded after a time with the hub's checksums.

    The hub client names a file's content by its ETag, which is the SHA-256 of a large file and the git hash of a small
    one, but checks only its size. On systems without symbolic links the client keeps no such names, so nothing is
    checked there.

    Raises:
        OSError: if a file differs; it is removed, so that the next try downloads it again.
    """
    for file in folder.iterdir():
        content = file.resolve()
        if not file.is_symlink() or not content.is_file() or content.stat().st_mtime < since:
            continue
        if re.fullmatch("[0-9a-f]{64}", content.name):
            digest = hashlib.sha256()
        elif re.fullmatch("[0-9a-f]{40}", content.name):
            digest = hashlib.sha1(f"blob {content.stat().st_size}\0".encode(), usedforsecurity=False)
        else:
            continue
        with content.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
        if digest.hexdigest() != content.name:
            file.unlink()
            os.unlink(content)
            raise OSError(f"{file.name} arrived with other bytes than the hub has, and was removed")


def lock_file(model: str, revision: str | None, cache: Path) -> Path:
    """File that a process locks while it downloads this checkpoint."""
    name = hashlib.sha256(f"{model}@{revision}".encode()).hexdigest()[:16]
    return cache / f".masc-metrics-{name}.lock"


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold a file lock; yields whether another process held it before."""
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
    except OSError:  # a read-only cache: nothing is written, so no lock is needed
        yield False
        return
    try:
        yield waited
    finally:
        lock.release()


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Hide the client's warnings, such as its five retries without internet: the error says what to do."""
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    client_logging.set_verbosity(max(verbosity, logging.ERROR))
    try:
        yield
    finally:
        client_logging.set_verbosity(verbosity)


@contextmanager
def _actionable_errors(model: str, revision: str | None, offline: bool, command: str) -> Iterator[None]:
    """Turn errors of the hub client into errors that say what to do."""
    from huggingface_hub import errors

    name = f"{model!r}" + (f" at revision {revision!r}" if revision else "")
    page = f"https://huggingface.co/{model}"
    alternative = f"or pass the folder of a copy, downloaded elsewhere by: {command}"
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"checkpoint {name} is gated. Accept its licence at {page}, then log in with `hf auth login` or set "
            f"HF_TOKEN, {alternative}"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"checkpoint {model!r} has no revision {revision!r}; see {page}/commits") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"checkpoint {name} is not a local folder, and does not exist on the hub or is private. Check its name; if "
            "it is private or gated, accept its licence and log in with `hf auth login` or set HF_TOKEN, "
            f"{alternative}"
        ) from None
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{model!r} is neither a local folder nor a hub id ({error})") from None
    except errors.LocalEntryNotFoundError as error:
        cause = (str(error.__cause__ or error).strip() or "no reason given").splitlines()[0]
        reason = "downloads are disabled" if offline else f"the hub is not reachable ({cause})"
        raise ConnectionError(
            f"checkpoint {name} is not a local folder, is missing or incomplete in the local cache, and {reason}. Run "
            f"`{command}` on a machine with internet access (for a gated checkpoint, first accept "
            "its licence and run `hf auth login`) and pass the folder that it prints"
        ) from None
    except Exception as error:  # such as a broken transfer or a full disk: the client has no common class for them
        raise OSError(
            f"checkpoint {name} could not be downloaded ({type(error).__name__}: {error}). Try again, {alternative}"
        ) from error
