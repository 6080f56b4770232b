"""How long until the Overview of a long run is on the screen? Server and Chromium on this machine.

    python benchmarks/first_paint.py [--steps 100000] [--chars 10000000] [--rounds 5]

The run: `--steps` lines of metrics with every name that the recorder writes, a folder of rollouts for each of these
steps (empty but the last), an evaluation every 1,000 steps, and in the last round a completion of `--chars` characters.
It was written a moment ago, so the page takes it for one that is going on.

Each round starts `gruppo monitor`, opens the Overview in a fresh browser context (cold: the server has read nothing
yet), and in another one (warm). Seconds since the navigation began, as the page's own clock says:

    first_paint   first-contentful-paint of the Performance API
    charts        the charts are drawn, with as much of the run as the server had read by then
    whole         the charts are drawn with all steps

The size of what was sent, and the server's largest resident memory, are there too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "scripts"))

from make_golden_run import STORIES, RunWriter  # noqa: E402
from page_screenshots import CHROMIUM, FLAGS  # noqa: E402

from gruppo.monitor.files import write_parquet  # noqa: E402
from gruppo.monitor.server.folders import find_runs  # noqa: E402
from gruppo.monitor.step_folders import step_folder  # noqa: E402

EVAL_EVERY = 1000
MOMENTS = ("first_paint", "charts", "whole")
TIMEOUT_SECONDS = 120

WATCH = """
window.moments = {};
(function look() {
  const now = performance.now() / 1000, found = window.moments;
  const said = document.querySelector('.chart-reward .legend-at')?.textContent ?? '';
  if (!found.charts && document.querySelector('.chart-reward canvas')) found.charts = now;
  if (found.charts && said.endsWith('LAST')) found.whole = now;
  if (!found.whole) requestAnimationFrame(look);
})();
"""

PAINT = """() => ({...window.moments,
  first_paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime / 1000,
  bytes: performance.getEntriesByType('resource').reduce((sum, entry) => sum + entry.encodedBodySize, 0),
  data_bytes: performance.getEntriesByType('resource').filter((entry) => entry.name.includes('/api/'))
    .reduce((sum, entry) => sum + entry.encodedBodySize, 0),
  requests: performance.getEntriesByType('resource').length})"""


@dataclass(frozen=True)
class Server:
    """`gruppo monitor`, running."""

    url: str
    """Without the token."""
    token: str
    pid: int

    def peak_mib(self) -> float:
        """Largest resident memory so far (Linux)."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--chars", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "first_paint.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "runs" / "long", arguments.steps, arguments.chars)
        report = measure(run, arguments.steps, arguments.rounds) | {"chars": arguments.chars} | circumstances()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


# -- the run


def make_run(folder: Path, num_steps: int, num_chars: int) -> Path:
    """One step as the recorder writes it, drawn out to `num_steps` steps, with one long completion at the end."""
    story = replace(STORIES[0], num_steps=num_steps, max_steps=num_steps + 1, alarms=False)
    writer = RunWriter(folder, story)
    writer.step(num_steps)
    writer.abandon()
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    write_lines(folder / "metrics.jsonl", line, num_steps)
    for step in range(1, num_steps):
        step_folder(folder / "rollouts", step).mkdir()
    lengthen(step_folder(folder / "rollouts", num_steps) / "part-r0-a1.parquet", num_chars)
    return folder


def write_lines(path: Path, line: dict[str, Any], num_steps: int) -> None:
    """All steps' lines in place of the last one's, each number moved by a few percent."""
    random, now = np.random.default_rng(0), time.time()
    names = [name for name, value in line.items() if isinstance(value, float) and name != "time"]
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, num_steps + 1):
            factors = random.normal(1.0 + step / num_steps, 0.05, len(names))
            moved = {name: line[name] * factor for name, factor in zip(names, factors.tolist(), strict=True)}
            told = {"step": step, "time": now - (num_steps - step)}
            file.write(json.dumps(line | moved | told) + "\n")
            if step % EVAL_EVERY == 0:
                evaluation = {"split": "eval", "attempt": 1, "eval_reward": moved["reward"]}
                file.write(json.dumps(told | evaluation) + "\n")


def lengthen(part: Path, num_chars: int) -> None:
    """Make the first completion of a part `num_chars` long."""
    table = pq.read_table(part)
    texts = table["completion"].to_pylist()
    texts[0] = (texts[0] * (num_chars // len(texts[0]) + 1))[:num_chars]
    place = table.column_names.index("completion")
    write_parquet(part, table.set_column(place, "completion", pa.array(texts)))


# -- the measurement


def measure(run: Path, num_steps: int, rounds: int) -> dict[str, Any]:
    """Medians and all values, cold and warm, of `rounds` servers."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    (folder,) = find_runs(run.parent)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("GRUPPO_CHROMIUM", CHROMIUM), args=FLAGS)
        for _ in range(rounds):
            with served(run.parent) as server:
                for kind in ("cold", "warm"):
                    once = open_overview(browser, server, folder.id, num_steps)
                    found[kind].append(once | {"server_peak_mib": server.peak_mib()})
        version = browser.version
        browser.close()
    medians = {kind: {name: median(once[name] for once in runs) for name in runs[0]} for kind, runs in found.items()}
    size = (run / "metrics.jsonl").stat().st_size
    return {"steps": num_steps, "metrics_bytes": size, "chromium": version, "medians": medians, "rounds": found}


@contextmanager
def served(root: Path) -> Iterator[Server]:
    """`gruppo monitor` on the folder, in a process of its own."""
    command = [sys.executable, "-m", "gruppo.cli.main", "monitor", str(root), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = re.search(r"(http\S+)/#token=(\S+)", process.stdout.readline())
            assert told, "the server printed no URL"
            yield Server(told[1], told[2], process.pid)
        finally:
            process.terminate()


def open_overview(browser: Any, server: Server, run_id: str, last_step: int) -> dict[str, float]:
    """One visit, with nothing in the browser's cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.add_init_script(WATCH.replace("LAST", str(last_step)))
    page = context.new_page()
    page.goto(f"{server.url}/#token={server.token}/run/{run_id}")
    end = time.monotonic() + TIMEOUT_SECONDS
    while not page.evaluate("window.moments.whole"):
        assert time.monotonic() < end, f"the charts never reached step {last_step}"
        page.wait_for_timeout(50)
    moments: dict[str, float] = page.evaluate(PAINT)
    context.close()
    return moments


# -- what is told


def circumstances() -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    return {
        "command": " ".join(["python", "benchmarks/first_paint.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        "load": os.getloadavg()[0],
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Until the Overview of a long run is on the screen",
        "",
        f"{report['steps']:,} steps ({report['metrics_bytes'] / 2**20:.0f} MiB of metrics), one completion of "
        f"{report['chars']:,} characters. Medians in seconds, lowest and highest in brackets. "
        "`benchmarks/first_paint.py` says what is measured.",
        "",
        "| server | first paint | charts | whole | requests | data sent | server's peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, runs in report["rounds"].items():
        middle = report["medians"][kind]
        cells = [
            f"{middle[name]:.2f} [{min(once[name] for once in runs):.2f}, {max(once[name] for once in runs):.2f}]"
            for name in MOMENTS
        ]
        cells += [f"{middle['requests']:.0f}", f"{middle['data_bytes'] / 1000:.0f} kB"]
        lines.append(f"| {kind} | {' | '.join(cells)} | {middle['server_peak_mib']:.0f} MiB |")
    lines += [
        "",
        f"{len(report['rounds']['cold'])} rounds, `{report['command']}`, commit {report['commit']} and what was not "
        f"committed then, {report['cores']} cores ({report['machine']}), Chromium {report['chromium']}, "
        f"Python {report['python']}, load {report['load']:.1f} at the end.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
