"""The parts of benchmarks/first_paint.py at small size. Times are not judged here."""

import os
import shutil
from pathlib import Path

import first_paint
import pytest

from gruppo.monitor.readers import read_metrics, read_rollouts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_paint.make_run(tmp_path_factory.mktemp("project") / "runs" / "long", 1200, 5000)


def test_the_run_is_as_long_as_asked_for(run: Path) -> None:
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 1201))
    assert len(lines[0]) > 20, "a line as the recorder writes it"
    assert len({line["reward"] for line in lines}) == 1200
    assert [line["step"] for line in read_metrics(run, split="eval")] == [1000]
    assert len(list((run / "rollouts").iterdir())) == 1200


def test_one_completion_is_long(run: Path) -> None:
    lengths = sorted(len(text) for text in read_rollouts(run, split="train")["completion"].to_pylist())
    assert lengths[-1] == 5000
    assert lengths[-2] < 1000


@pytest.mark.browser
def test_the_page_is_measured_cold_and_warm(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ.get("GRUPPO_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install Debian's `chromium`, or set GRUPPO_CHROMIUM to a browser")
    monkeypatch.setenv("GRUPPO_CHROMIUM", path)
    report = first_paint.measure(run, 1200, rounds=1)
    for kind in ("cold", "warm"):
        (once,) = report["rounds"][kind]
        assert 0 < once["first_paint"] <= once["whole"]
        assert 0 < once["charts"] <= once["whole"]
        assert once["requests"] > 10
        assert 1000 < once["data_bytes"] < 300_000 < once["bytes"] * 10
        assert once["server_peak_mib"] > 10
        assert report["medians"][kind] == once
    text = first_paint.markdown(report | {"chars": 5000} | first_paint.circumstances())
    assert "| cold | " in text
    assert "1,200 steps" in text
