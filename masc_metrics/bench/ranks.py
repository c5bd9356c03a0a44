"""The processes of a run: one, or as many as Lightning Fabric, torchrun or SLURM have started."""

from __future__ import annotations

import atexit
import logging
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# One rank waits for the slowest, however long that takes; a rank that dies breaks the connection at once.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device
    _fabric: Fabric | None = None

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, on every rank."""
        return value if self._fabric is None else self._fabric.broadcast(value, src=0)

    def wait(self) -> None:
        """Until every rank is here.

        Raises:
            ConnectionError: if one has ended before.
        """
        if self._fabric is not None:
            try:
                self._fabric.barrier()
            except RuntimeError as error:  # what torch makes of a closed connection
                raise ConnectionError(f"another rank ended before its part was done ({error})") from error


def best_device() -> str:
    """The kind of device that is fastest here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def start_ranks(device: torch.device, devices: int, num_nodes: int) -> Ranks:
    """Start the processes of a run, or join those that torchrun, ``fabric run`` or SLURM have started.

    Args:
        device: cpu, cuda or mps; with an index only for a single process.
        devices: processes on each node, each with a device of its own; a launcher's own count goes before.
        num_nodes: nodes.

    Raises:
        ValueError: if there are not so many devices, or they cannot work together.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    if devices * num_nodes == 1 and not launched:
        return Ranks(0, 1, device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} does not share its work; give cpu or cuda, or one process")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"--devices is {devices}, but there are {torch.cuda.device_count()} GPUs")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # Its launcher says one thing alone, as information: that it kills all ranks because one has died.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    # gloo, for a few numbers between processes: nothing here is worth the GPUs' own channel and its short patience.
    strategy = DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=num_nodes,
        strategy="auto" if "LT_STRATEGY" in os.environ else strategy,
    )
    if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` has launched it already
        fabric.launch()
    atexit.register(end_connection)
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device, fabric)


def end_connection() -> None:
    """End gloo's threads before the interpreter ends: one that frees a tensor too late aborts the process."""
    if distributed.is_initialized():  # Lightning does this for NCCL alone
        time.sleep(0.2)  # lets them free what they hold: to do so while the group ends blocks both before torch 2.8
        distributed.destroy_process_group()


def share(references: list[str], rank: int, world: int) -> list[int]:
    """Places of those samples that one rank scores: an equal part, in which those of one reference stand together.

    Where two parts meet, the cut is moved to the end of a reference's samples if that is near; inside a reference with
    many samples it costs one more encoding of it.

    Args:
        references: of each sample, the reference's file.
        rank: whose part.
        world: number of parts.
    """
    first = {reference: place for place, reference in reversed(list(enumerate(references)))}
    order = sorted(range(len(references)), key=lambda place: first[references[place]])
    near = -(-len(order) // (10 * world))

    def cut(rank: int) -> int:
        ideal = len(order) * rank // world
        for moved in sorted(range(ideal - near, ideal + near + 1), key=lambda place: abs(place - ideal)):
            if not 0 < moved < len(order) or references[order[moved]] != references[order[moved - 1]]:
                return min(max(moved, 0), len(order))
        return ideal

    return order[cut(rank) : cut(rank + 1)]
