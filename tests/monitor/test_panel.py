"""`trainer.monitor.show()`: a panel that follows the run, in a real notebook, after nbconvert, and outside of one."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from golden_runs import golden, resumed_run
from gruppo.monitor.panel import as_html, as_text, read_panel
from gruppo.monitor.run_monitor import RunMonitor
from monitor.server_runs import line, write_lines, write_run_json
from notebook_kernel import use_this_interpreter

TESTS = Path(__file__).parents[1]

URL = "http://127.0.0.1:6007/#token=abc"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 steps, two evaluations, one alarm; it has not ended."""
    folder = tmp_path_factory.mktemp("runs") / "sums"
    golden().make_run(folder, golden().Story("sums", num_steps=16, max_steps=20, resumes_at=None))
    return folder


# -- what it says


def test_as_text(run: Path) -> None:
    head, rewards, numbers, alarm, page = as_text(read_panel(run)).split("\n")
    assert re.fullmatch(r"sums: running, step 16 of 20 \(80%\), about \d+s left", head)
    assert re.fullmatch(r"reward  [▁▂▃▄▅▆▇█]{16}", rewards)
    last = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in text][-1]
    assert numbers.startswith(f"reward {last['reward']:.4g}  answer length {last['completions/mean_length']:.4g}")
    assert "eval reward" in numbers
    assert alarm == "WARN  D05 truncation, step 9: 13 % of answers hit max_completion_length=64."
    assert page == f"page    gruppo monitor {run}"
    assert as_text(read_panel(run, URL)).endswith(f"page    {URL}")


def test_as_html(run: Path) -> None:
    text = as_html(read_panel(run, URL))
    assert text.count("<svg") == text.count("</svg>") == 2, "reward and held-out reward"
    assert f'<a href="{URL}"' in text
    assert "D05 truncation" in text
    assert "<script" not in text
    assert re.findall(r"(?:src|href|url)\W+(\w+:)", text) == ["http:"], "nothing is loaded; one link"


def test_a_finished_run_and_one_that_has_not_begun(tmp_path: Path) -> None:
    assert as_text(read_panel(resumed_run(tmp_path / "done"))).startswith("done: finished, step 6 of 6 (100%)\nreward")
    assert as_text(read_panel(tmp_path / "nothing")) == (
        f"nothing: not started, no step yet\nno alarm so far\npage    gruppo monitor {tmp_path / 'nothing'}"
    )
    assert "No alarm so far" in as_html(read_panel(tmp_path / "nothing"))


def test_texts_of_the_run_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    write_run_json(folder)
    write_lines(folder / "metrics.jsonl", [line(1, reward=0.5)])
    evil = "</p><script>alert(2)</script>\x1b[2J\u202e"
    finding = {"kind": "finding", "attempt": 1, "time": 1.0, "detector": evil, "name": evil, "message": evil}
    write_lines(folder / "events.jsonl", [finding | {"severity": "<b>ALERT", "step": 1}])
    html, text = as_html(read_panel(folder)), as_text(read_panel(folder))
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>ALERT" not in html
    assert not set("\x1b\u202e") & set(html + text)


# -- when it is shown


class FakeHandle:
    def __init__(self, error: Exception | None = None) -> None:
        self.shown: list[str] = []
        self._error = error

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        if self._error is not None:
            raise self._error
        self.shown.append(bundle["text/plain"].split("\n")[0])


def shown_monitor(run: Path, handle: FakeHandle, now: list[float]) -> RunMonitor:
    monitor = RunMonitor(run, clock=lambda: now[0])
    monitor._panel = handle
    return monitor


def test_the_panel_is_updated_now_and_then_and_at_the_end(run: Path) -> None:
    now, handle = [0.0], FakeHandle()
    monitor = shown_monitor(run, handle, now)
    for seconds in (0.0, 1.0, 1.0, 1.0, 0.5):
        now[0] += seconds
        monitor.update()
    assert len(handle.shown) == 2, "at 0 s and at 2 s"
    monitor.update(is_last=True)
    assert len(handle.shown) == 3


def test_a_panel_that_fails_ends_and_training_goes_on(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = shown_monitor(run, FakeHandle(RuntimeError("no frontend")), [0.0])
    with caplog.at_level(logging.WARNING):
        monitor.update()
        monitor.update(is_last=True)
    assert [record.getMessage() for record in caplog.records] == [
        "The panel failed and is not updated any more: RuntimeError: no frontend"
    ]


def test_outside_a_notebook_it_is_text_and_on_other_ranks_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunMonitor(run).show()
    assert capsys.readouterr().out.startswith("sums: running, step 16 of 20")
    RunMonitor(run, is_main=False).show()
    assert capsys.readouterr().out == ""


# -- a real notebook

CELLS = (
    "import sys; sys.path.insert(0, {tests!r})\n"
    "from pathlib import Path\n"
    "import fakes\n"
    "made = fakes.trainer(Path('out'), {{'max_steps': 3, 'disable_tqdm': True}})",
    "made.monitor.show()\n_ = made.train()",
    "made.monitor.show()",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the tools that run the notebook, not of gruppo
def test_a_notebook_keeps_one_panel_that_followed_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbconvert = pytest.importorskip("nbclient"), pytest.importorskip("nbconvert")
    nbformat = pytest.importorskip("nbformat")
    use_this_interpreter(tmp_path, monkeypatch)
    cells = [nbformat.v4.new_code_cell(text.format(tests=str(TESTS))) for text in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    panels = [panels_of(cell) for cell in notebook.cells]
    assert [len(found) for found in panels] == [0, 1, 1]
    for (panel,) in panels[1:]:
        assert "out · finished · step 3 of 3 (100%)" in re.sub(r"</?bd?i?>", "", panel["text/html"])
        assert "<svg" in panel["text/html"]
        assert "out: finished, step 3 of 3" in panel["text/plain"]
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert page.count('<div class="gruppo-panel">') == 2
    assert page.count("Reward</figcaption><svg") == 2
    plain, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    assert "step 3 of 3" in plain


def panels_of(cell: Any) -> list[Any]:
    kept = [output["data"] for output in cell.outputs if output.output_type == "display_data"]
    return [data for data in kept if "gruppo-panel" in data.get("text/html", "")]
