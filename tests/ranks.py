"""Run a script on several gloo ranks of this machine, and collect what each of them wrote.

The script is called as `python script.py OUT_DIR`, finds RANK, WORLD_SIZE and the rest in its environment, and
writes its results as JSON to OUT_DIR/rank<R>.json. This is not a launcher for users: that is `accelerate launch`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(script: Path, out_dir: Path, num_ranks: int = 2, timeout: float = 120) -> list[dict[str, Any]]:
    """Results of all ranks, in rank order. Raises AssertionError with a rank's stderr if it failed."""
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(out_dir)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [json.loads((out_dir / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
