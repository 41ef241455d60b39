"""What torchrun, srun or a script of the user's says of the processes that it started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from moetrace.errors import RankError
from moetrace.ranks.call import together

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def started(name: str) -> Iterator[None]:
    """The processes of one command, joined for its time: ``name`` is one call of all of them.

    The environment is torchrun's: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, and LOCAL_RANK and
    LOCAL_WORLD_SIZE, by which the GPUs of a machine are dealt out. gloo carries what ranks exchange, which is
    small and lies in main memory; nccl is there beside it where there are GPUs. RankError where the processes
    can't be joined.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or dist.is_initialized():
        with together(name):
            yield
        return
    if lacking := [key for key in _NEEDED if not os.environ.get(key)]:
        raise RankError(
            f"WORLD_SIZE is {size}, but {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set; "
            "expected what torchrun sets, or unset WORLD_SIZE to run one process"
        )
    take_gpus()
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as failure:  # torch's DistError is a RuntimeError
        raise RankError(
            f"the {size} processes can't be joined ({str(failure).splitlines()[0]:.200}); expected rank 0 at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, and RANK from 0 to {size} - 1"
        ) from failure
    try:
        with together(name):
            yield
    finally:
        dist.destroy_process_group()


def take_gpus() -> None:
    """Leave this process its share of the machine's GPUs, neighbours where it gets several.

    Of 8 GPUs and 4 processes each sees two, over which ``device_map="auto"`` spreads its model; where there
    are more processes than GPUs they share. Has to come before CUDA is used. Without LOCAL_WORLD_SIZE what
    the process sees is its own already, as under srun with --gpus-per-task.
    """
    local, count = os.environ.get("LOCAL_RANK"), os.environ.get("LOCAL_WORLD_SIZE")
    if local is None or count is None or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(gpu) for gpu in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share_of(gpus, int(local), int(count)))


def share_of(gpus: list[str], local: int, count: int) -> list[str]:
    """The GPUs of one of ``count`` processes.

    >>> share_of(["0", "1", "2", "3"], 1, 2), share_of(["0"], 1, 2)
    (['2', '3'], ['0'])
    """
    each = len(gpus) // count
    return gpus[local * each : (local + 1) * each] if each else gpus[local % len(gpus) :][:1] if gpus else []
