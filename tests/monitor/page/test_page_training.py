"""The page while a real trainer works: curves move, and a point leads to its step, a group, an answer, its tokens."""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gruppo.monitor.readers import read_rollouts, read_tokens

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
SCRIPT = Path(__file__).parent / "training_script.py"
PATIENCE = 120
"""Seconds for what takes two or three."""

FORMULAS = {
    "push": lambda token, advantage: (
        advantage * (1 - math.exp(min(token["logp_infer"] + (token["delta"] or 0.0), 0.0)))
    ),
    "advantage × (ratio − 1)": lambda token, advantage: advantage * (token["ratio"] - 1),
    "sampler gap": lambda token, advantage: token["delta"],
    "entropy": lambda token, advantage: token["entropy"],
    "KL to the reference": lambda token, advantage: math.exp(-token["delta_ref"]) + token["delta_ref"] - 1,
}
"""What each colour means (docs/monitor-page.md), of a token's recorded values."""


@pytest.fixture(scope="module")
def training(served_site):
    """(folder, process) of a run that trains."""
    folder = served_site.folder / "training"
    command = [sys.executable, str(SCRIPT), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        end = time.monotonic() + PATIENCE
        while not (folder / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end, "the trainer wrote nothing"
            time.sleep(0.1)
        yield folder, process
        process.kill()


@pytest.fixture
def overview(site, training):
    run = site.run("training")
    page = site.page(f"/run/{run}")
    page.set_default_timeout(PATIENCE * 1000)
    page.locator(".mode-live").wait_for()
    page.locator(".chart-reward canvas").wait_for()
    return page


def wait_until(page, is_so):
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        page.wait_for_timeout(100)


def num_points(page):
    label = page.locator(".chart-reward .plot").get_attribute("aria-label")
    return int(re.search(r"(\d+) points", label)[1])


def path_of(page):
    return page.url.split("#", 1)[1].split("?")[0]


def number(text):
    return float(text.replace("−", "-"))


def sample_of(page):
    """step, group and sample of the answer that is shown."""
    return tuple(map(int, re.search(r"/sample/(\d+)\.(\d+)\.(\d+)\.train", page.url).groups()))


def row_of(table, place):
    names = ("step", "group_id", "sample")
    return next(row for row in table.to_pylist() if tuple(row[name] for name in names) == place)


def wordy_sample(page, folder):
    """The longest answer but the first of the group that is shown: a random policy ends some at once."""
    step, group = map(int, re.search(r"/step/(\d+)/group/(\d+)", page.url).groups())
    rows = read_rollouts(folder, split="train", columns=["step", "group_id", "sample", "completion", "n_completion"])
    rows = [row for row in rows.to_pylist() if row["group_id"] == group and row["step"] <= step]
    siblings = [row for row in rows if row["step"] == max(each["step"] for each in rows) and row["sample"] > 0]
    return max(siblings, key=lambda row: (bool(row["completion"].strip()), row["n_completion"]))["sample"]


def assert_tokens_are_those_recorded(page, folder):
    place = sample_of(page)
    row, tokens = (row_of(read(folder), place) for read in (read_rollouts, read_tokens))
    page.locator(".token-text").wait_for()
    texts = page.locator(".token-text > .tok").all_text_contents()
    assert "".join(texts) == row["completion"]
    assert len(texts) == row["n_completion"], "the end of the text is a token too"
    names = ("logp_infer", "delta", "delta_ref", "entropy", "ratio")
    values = [dict(zip(names, token, strict=True)) for token in zip(*(tokens[name] for name in names), strict=True)]
    for colour, formula in FORMULAS.items():
        page.get_by_role("button", name=colour, exact=True).click()
        for i, token in enumerate(values):
            page.locator(f"#token-{i}").click()
            shows = re.compile(rf"^token {i}: .*, {re.escape(colour)} ", re.DOTALL)
            expect(page.locator(".token-detail [aria-live]")).to_have_text(shows)
            pair = page.locator(".token-detail .pairs > div").filter(has=page.get_by_text(colour, exact=True))
            wanted = formula(token, row["advantage"])
            shown = pair.first.locator("dd").inner_text()
            rounding = 0.0 if "e" in shown else 5.1e-5  # plain numbers have four decimals
            assert number(shown) == pytest.approx(wanted, rel=0.01, abs=rounding)
            is_coloured = re.search(r"\b(pos|neg)[1-4]", page.locator(f"#token-{i}").get_attribute("class"))
            largest = max(abs(formula(each, row["advantage"])) for each in values)
            assert bool(is_coloured) or abs(wanted) <= 0.1 * largest


def test_curves_move_while_the_trainer_works(overview, training):
    _, process = training
    before = num_points(overview)
    picture = "canvas => canvas.toDataURL()"
    drawn = overview.locator(".chart-reward canvas").evaluate(picture)
    wait_until(overview, lambda: num_points(overview) >= before + 4)
    wait_until(overview, lambda: overview.locator(".chart-reward canvas").evaluate(picture) != drawn)
    progress = overview.locator(".progress-line b")
    wait_until(overview, lambda: int(re.match(r"step (\d+) of", progress.inner_text())[1]) > before)
    wait_until(overview, lambda: overview.locator(".chart-heldout canvas").count() == 1)
    expect(overview.locator(".state-running")).to_have_count(1)
    assert process.poll() is None


def test_a_click_on_a_point_leads_down_to_the_tokens(overview, training):
    folder, process = training
    wait_until(overview, lambda: num_points(overview) >= 6)
    over = overview.locator(".chart-reward .u-over")
    size = over.bounding_box()
    over.click(position={"x": size["width"] / 2, "y": size["height"] / 2})
    overview.locator(".group-row").first.wait_for()
    step = int(path_of(overview).rsplit("/", 1)[1])
    rows = read_rollouts(folder, split="train", columns=["step", "reward"]).to_pylist()
    fed_by = max(row["step"] for row in rows if row["step"] <= step)  # a round feeds two steps
    rewards = [row["reward"] for row in rows if row["step"] == fed_by]
    assert number(overview.locator(".fact", has_text="Reward").locator("dd").inner_text().split()[0]) == pytest.approx(
        sum(rewards) / len(rewards), abs=0.005
    )
    overview.locator(".group-row-link").first.click()
    overview.locator(".grpo-svg").wait_for()
    sample = wordy_sample(overview, folder)
    overview.locator(".grpo-row").nth(sample).click()
    overview.locator(f"#answer-{sample}.is-marked").wait_for()
    overview.locator(".grpo-row").nth(sample).click()
    overview.locator(".long-text").wait_for()
    assert sample_of(overview)[2] == sample
    # A token's record may still be replaced by that of the second pass until a later round has any; parts are in order.
    wait_until(overview, lambda: max(read_tokens(folder)["step"].to_pylist()) > fed_by)
    overview.get_by_role("link", name="Tokens", exact=True).click()
    assert_tokens_are_those_recorded(overview, folder)
    assert process.poll() is None


def test_keys_lead_the_same_way(overview, training):
    folder, process = training
    wait_until(overview, lambda: num_points(overview) >= 6)
    overview.locator(".chart-reward .plot").focus()
    overview.keyboard.press("End")
    overview.keyboard.press("ArrowLeft")
    overview.keyboard.press("Enter")
    overview.locator(".group-row").first.wait_for()
    overview.wait_for_timeout(300)
    overview.keyboard.press("ArrowDown")
    overview.keyboard.press("Enter")
    overview.locator(".grpo-svg").wait_for()
    overview.wait_for_timeout(300)
    sample = wordy_sample(overview, folder)
    for place in range(1, sample + 1):
        overview.keyboard.press("j")
        overview.locator(f"#answer-{place}.is-marked").wait_for()
    overview.keyboard.press("Enter")
    overview.locator(".long-text").wait_for()
    overview.wait_for_timeout(300)
    overview.keyboard.press("t")
    overview.locator(".token-text").wait_for()
    assert sample_of(overview)[2] == sample
    overview.locator(".token-text").focus()
    overview.keyboard.press("ArrowRight")
    expect(overview.locator(".tok.is-at")).to_have_id("token-1")
    overview.keyboard.press("w")
    expect(overview.locator(".tok.is-at")).to_have_class(re.compile(r"\b(pos|neg)4\b"))
    assert process.poll() is None
