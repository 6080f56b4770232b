"""The notebook runs from top to bottom in the current interpreter, and its run ends with a higher reward."""

import re
import shutil
from pathlib import Path

import pytest

from notebook_kernel import use_this_interpreter

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(EXAMPLES / "tldr.ipynb", as_version=4)


@pytest.fixture
def _this_interpreter_as_kernel(tmp_path, monkeypatch):
    use_this_interpreter(tmp_path, monkeypatch)


def test_it_is_committed_without_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.usefixtures("_this_interpreter_as_kernel")
@pytest.mark.filterwarnings("default")  # of the tools that run the notebook, not of gruppo
def test_it_runs(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES / "data", folder / "data")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    before, after = map(float, re.search(r"mean reward (\S+) -> (\S+)", printed).groups())
    assert after > before
    assert (tmp_path / "runs" / "tldr-notebook" / "metrics.jsonl").is_file()
