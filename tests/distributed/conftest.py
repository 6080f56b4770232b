"""Two real gloo ranks, run once for all tests of this folder."""

from pathlib import Path
from typing import Any

import pytest

from ranks import run_ranks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `distributed_script.py` found on rank 0 and on rank 1."""
    return run_ranks(Path(__file__).with_name("distributed_script.py"), tmp_path_factory.mktemp("ranks"))
