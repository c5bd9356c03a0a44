"""The processes of a run: one, or those that Lightning Fabric, torchrun or SLURM have started."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from masc_metrics.bench.parent import end_with_the_dead, start_other_ranks
from masc_metrics.bench.run import Run
from masc_metrics.precision import check_device

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# A rank waits for the slowest, however long that takes. A rank that dies breaks the connection at once, and every rank
# ends with the process that started it, see bench/parent.py.
_TIMEOUT = timedelta(days=30)

_LAUNCHER_VARIABLES = ("SLURM_NTASKS", "LT_CLI_USED", "NODE_RANK", "GROUP_RANK")
"""Without one of them, Lightning would wait for the other nodes until the timeout."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the processes of a run.

    Attributes:
        rank: its number, from 0.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device
    _fabric: Fabric | None = None

    def from_first(self, value: Any) -> Any:
        """Broadcast the value of rank 0.

        Raises:
            ConnectionError: if one has ended before.
        """
        if self._fabric is None:
            return value
        with _errors_of_the_connection():
            return self._fabric.broadcast(value, src=0)

    def wait(self) -> None:
        """Wait for all ranks.

        Raises:
            ConnectionError: if one has ended before.
        """
        if self._fabric is not None:
            with _errors_of_the_connection():
                self._fabric.barrier()


@contextmanager
def _errors_of_the_connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's error for a closed connection
        end_with_the_dead()
        raise ConnectionError(f"another rank ended before its part was done ({error})") from error


def start_ranks(run: Run) -> Ranks:
    """Start the processes of a run, or join those that torchrun, ``fabric run`` or SLURM have started.

    A launcher's own number of processes takes precedence over the run's.

    Raises:
        ValueError: if a device is not available, or cannot be used by several processes.
        ConnectionError: if another rank has ended before.
    """
    device, devices, num_nodes = check_device(run.device or fastest_device()), run.devices, run.num_nodes
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    if num_nodes > 1 and not launched and not any(name in os.environ for name in _LAUNCHER_VARIABLES):
        raise ValueError(
            f"--num-nodes is {num_nodes}, but no launcher has started this process on each node; start it by srun, "
            "torchrun or fabric run"
        )
    if devices * num_nodes == 1 and not launched:
        return Ranks(0, 1, device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {str(device)!r}, which one process can use; give cpu, cuda, or --devices 1")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"--devices is {devices}; give at most {torch.cuda.device_count()}, the number of GPUs")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # gloo: ranks exchange a few numbers, which is not worth NCCL's short timeout.
    strategy = DDPStrategy(process_group_backend="gloo", timeout=_TIMEOUT)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=num_nodes,
        strategy="auto" if "LT_STRATEGY" in os.environ else strategy,
    )
    atexit.register(end_connection)
    if os.environ.get("LT_CLI_USED") != "1":  # else `fabric run` has launched it
        environment = strategy.cluster_environment
        if environment is not None and not environment.creates_processes_externally:
            # Lightning would start the others itself, answer the end of one by killing all, and leave Ctrl-C to each.
            os.environ |= {
                "MASTER_ADDR": environment.main_address,
                "MASTER_PORT": str(environment.main_port),
                "NODE_RANK": str(environment.node_rank()),
                "WORLD_SIZE": str(devices * num_nodes),
                "LOCAL_RANK": "0",
            }
            start_other_ranks(devices)
        with _errors_of_the_connection():
            fabric.launch()
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device, fabric)


def fastest_device() -> str:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def end_connection() -> None:
    """End gloo's threads before the interpreter ends: one that frees a tensor later aborts the process."""
    if distributed.is_initialized():  # Lightning does this for NCCL only
        time.sleep(0.2)  # lets them free what they hold; before torch 2.8, doing so during the destruction deadlocks
        distributed.destroy_process_group()


def rank_share(references: Sequence[str], rank: int, world_size: int) -> list[int]:
    """Positions of the samples that a rank scores: an equal part, with samples of one reference next to each other."""
    first = {reference: position for position, reference in reversed(list(enumerate(references)))}
    order = sorted(range(len(references)), key=lambda position: first[references[position]])
    return order[len(order) * rank // world_size : len(order) * (rank + 1) // world_size]
