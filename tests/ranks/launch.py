"""Real processes that trace together, on this machine and without a network."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PORTS = itertools.count()


def free_port() -> int:
    """A port of this machine that nobody uses, and that no other test process will ask for.

    Between this and the bind of rank 0 the port is nobody's: each worker of pytest-xdist has a range of its
    own, below those that the system gives to whoever asks for any.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + 200 * (worker % 100)
    for count in itertools.islice(_PORTS, 200):
        port = first + count % 200
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + 199}")


def environment(**more: str) -> dict[str, str]:
    """This process's, for one thread in each rank."""
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**plain, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def launch(size: int, scenario: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    """What each rank of a scenario of :mod:`tests.ranks.worker` found; fails where one fails.

    A rank that ended without a word has ``{"exit": code}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    command = [sys.executable, "-m", "tests.ranks.worker", scenario, str(folder), *words]
    ranks = []
    for rank in range(size):
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = environment(**place)
        ranks.append(
            subprocess.Popen(
                command, cwd=ROOT, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    found = []
    try:
        for rank, process in enumerate(ranks):
            text, _ = process.communicate(timeout=400)
            file = folder / f"{rank}.json"
            told = json.loads(file.read_text()) if file.exists() else {}
            found.append({**told, "exit": process.returncode, "text": text})
    finally:
        for process in ranks:
            process.kill()
    return found


def torchrun(size: int, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node SIZE -m moetrace WORDS``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "moetrace", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=400
    )
