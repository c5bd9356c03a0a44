"""Fixtures: checkpoints with random weights, a backbone, and an empty registry of backbones for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a background process, whose children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from hypothesis import settings
from support.checkpoints import build_checkpoint

from masc_metrics import SigLIP2Backbone, load_backbone, release_backbones

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # workers share the cores
settings.register_profile("tests", deadline=None, derandomize=True)  # no failures on a busy machine
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu-device",
        default="cuda",
        help="device of the tests marked gpu; cpu rehearses them on a machine without CUDA (default: cuda)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked gpu where their device is not available."""
    if torch.device(config.getoption("--gpu-device")).type == "cpu" or torch.cuda.is_available():
        return
    deselected = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """The device of the tests marked gpu."""
    return torch.device(request.config.getoption("--gpu-device"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NaFlex checkpoint folder."""
    return build_checkpoint(tmp_path_factory.mktemp("naflex") / "siglip2-random-naflex")


@pytest.fixture(scope="session")
def fixed_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed-resolution checkpoint folder."""
    return build_checkpoint(tmp_path_factory.mktemp("fixed") / "siglip2-random-256", naflex=False)


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    release_backbones()
    yield
    release_backbones()


@pytest.fixture
def backbone(checkpoint: Path) -> SigLIP2Backbone:
    return load_backbone(checkpoint)
