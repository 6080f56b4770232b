"""Every view of the page on recorded runs: what it shows, in light and dark, wide and narrow, and for axe-core."""

import json
import re
from pathlib import Path

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
AXE = Path(__file__).parent / "vendor" / "axe.min.js"

VIEWS = {
    "runs": ("/", "Qwen/Qwen2.5-0.5B-Instruct"),
    "overview": ("/run/{a}", "Held-out reward"),
    "health": ("/run/{a}/health", "Checks over the steps"),
    "rewards": ("/run/{a}/rewards", "Where the signal comes from"),
    "step": ("/run/{a}/step/9", "Groups that teach"),
    "group": ("/run/{a}/step/9/group/6", "4 Compare"),
    "completion": ("/run/{a}/sample/9.6.2.train", "contribution"),
    "tokens": ("/run/{a}/sample/9.6.2.train/tokens", "how hard the update pushes"),
    "prompts": ("/run/{a}/prompt", "Prompts of the latest round"),
    "prompt": ("/run/{a}/prompt/6", "Reward of this prompt"),
    "evals": ("/run/{a}/evals", "Held-out and training reward"),
    "timeline": ("/run/{a}/timeline", "Where the time goes"),
    "discarded": ("/run/{a}/discarded?reason=cut&range=20", "hit max_completion_length"),
    "compare": ("/compare/{a}/{b}", "Set differently"),
    "settings": ("/run/{a}/settings", "What one step consumes"),
}


@pytest.fixture(scope="module")
def ids(served_site, sums):
    other = served_site.run("other")
    served_site.close_pages(is_checked=True)
    return {"a": sums, "b": other}


def open_view(site, ids, view, **options):
    route, words = VIEWS[view]
    page = site.page(route.format(**ids), **options)
    page.get_by_text(words, exact=False).first.wait_for()
    page.wait_for_timeout(150)  # charts measure themselves
    return page


@pytest.mark.parametrize("view", VIEWS)
def test_view_is_accessible_in_both_themes(site, ids, view):
    page = open_view(site, ids, view, color_scheme="light")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(250)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
        assert not serious, json.dumps(
            [[rule["id"], [node["html"][:200] for node in rule["nodes"]]] for rule in serious]
        )


@pytest.mark.parametrize("view", VIEWS)
def test_view_fits_a_narrow_screen(site, ids, view):
    page = open_view(site, ids, view, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_overview_says_what_the_files_say(site, ids):
    page = open_view(site, ids, "overview")
    expect(page.locator(".figure")).to_have_count(8)
    expect(page.locator(".progress-line b")).to_have_text("step 16 of 20")
    lines = [json.loads(line) for line in (site.folder / "sums" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    shown = page.locator(".chart-reward .figure-value").inner_text()
    assert float(re.match(r"[\d.]+", shown)[0]) == pytest.approx(last["reward"], rel=0.01)
    page.get_by_role("button", name="Reward: table", exact=True).click()
    rows = page.locator(".chart-reward tbody tr")
    expect(rows).to_have_count(15)
    assert rows.first.locator("td").all_inner_texts() == ["16", f"{last['reward']:.6g}"]


def test_group_picture_shows_the_recorded_numbers(site, ids):
    page = open_view(site, ids, "group")
    cells = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    rewards = [float(row[1]) for row in cells]
    mean = sum(rewards) / 8
    std = (sum((reward - mean) ** 2 for reward in rewards) / 7) ** 0.5
    wanted = [(reward - mean) / (std + 1e-4) for reward in rewards]
    drawn = [text.split()[-1] for text in page.locator(".grpo-row .grpo-number:last-of-type").all_text_contents()]
    assert [float(text.replace("−", "-")) for text in drawn] == pytest.approx(wanted, abs=0.006)
    assert page.locator(".grpo-svg").get_by_text("A = (r − mean) / std").count() == 1
    up = sum(value > 0 for value in wanted)
    assert page.locator(".grpo-svg").get_by_text(f"▲ {up} made more likely").count() == 1
    assert page.locator(".grpo-svg").get_by_text("× β 0.02").count() == 1


def test_tokens_join_to_the_answer_and_can_be_coloured(site, ids):
    page = open_view(site, ids, "tokens")
    shown = page.locator(".token-text").evaluate("box => [...box.children].map(token => token.textContent).join('')")
    page.get_by_role("link", name="Answer 2").click()
    answer = page.locator(".long-text").text_content()
    assert shown.replace("↵", "") == answer
    page.go_back()
    page.get_by_role("button", name="entropy").click()
    page.locator(".tok.pos4").first.wait_for()
    assert page.locator(".tok.neg4").count() == 0


def test_answer_without_token_record_is_still_shown(site, ids):
    page = site.page(f"/run/{ids['a']}/sample/9.8.2.train/tokens")
    page.get_by_text("No token record for this answer.").wait_for()
    assert "Answer" in page.locator("main").inner_text()


def test_compare_lists_only_what_differs(site, ids):
    page = open_view(site, ids, "compare")
    names = page.locator("section", has_text="Set differently").locator("tbody tr td:first-child").all_inner_texts()
    assert names == ["learning_rate", "max_steps", "output_dir", "seed"]
    page.get_by_label("Row of the dataset").fill("6")
    page.get_by_role("button", name="Show", exact=True).click()
    page.locator(".visit").first.wait_for()
    expect(page).to_have_url(re.compile(r"\?prompt=6$"))
    expect(page.locator(".two > div")).to_have_count(2)


def test_discarded_answers_are_those_of_the_reason(site, ids):
    page = open_view(site, ids, "discarded")
    page.locator(".row-card").first.wait_for()
    assert page.locator(".row-card").count() == page.locator(".row-card .reason-length").count()
    page.get_by_role("button", name="Dropped").click()
    page.get_by_text("No answer of these steps was lost for this reason.").wait_for()


def test_alarms_lead_to_the_answers_that_prove_them(site, ids):
    page = open_view(site, ids, "health")
    page.get_by_role("link", name="step 9 group 6 answer 2").click()
    page.locator(".long-text").wait_for()
    expect(page.locator("h1")).to_have_text("Answer 2 of 8")


def test_a_finding_opens_the_page_of_its_check(site, ids):
    page = open_view(site, ids, "health")
    finding = page.locator(".finding", has_text="D05 truncation").first
    finding.get_by_text("What D05 is").click()
    finding.get_by_text("D05.alert").wait_for()
    told = finding.locator("details").inner_text()
    assert "A cut answer usually gets no reward" in told
    assert "Fires when 3 of its last 5 readings are bad." in told
    assert "docs/health/D05.md" in told
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []


def test_a_theme_is_chosen_and_kept(site, ids):
    page = open_view(site, ids, "overview", color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme: as the system").click()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    page.get_by_text("Curves").wait_for()
    assert page.evaluate(background) == dark


def test_reduced_motion_moves_nothing(site, ids):
    page = open_view(site, ids, "overview", reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0


@pytest.mark.may_complain
def test_older_rounds_of_a_prompt_come_once_and_a_refusal_is_shown(site, ids):
    page = site.page()

    def say_that_there_is_more(call):
        answer = call.fetch().json()
        call.fulfill(json={**answer, "visits": answer["visits"][:1], "next_before": answer["visits"][0]["step"]})

    page.route(re.compile(r"/history\?(?!.*before=)"), say_that_there_is_more)
    held = []

    def hold(call):
        held.append(call)

    page.route(re.compile(r"/history\?.*before="), hold)
    page.evaluate("route => { location.hash = route; }", f"#{VIEWS['prompt'][0].format(**ids)}")
    older = page.get_by_role("button", name="Search older rounds")
    with page.expect_request(re.compile("before=")):
        older.click()
    page.evaluate("0")
    held.pop().fulfill(status=503, json={"error": {"code": "busy", "message": "Too busy."}})
    page.get_by_role("alert").get_by_text("Too busy.").wait_for()
    expect(page.locator("h1")).to_contain_text("1 visit so far")
    with page.expect_request(re.compile("before=")):
        older.dblclick()
    page.evaluate("0")  # whatever the second click asked has been asked by now
    assert len(held) == 1
    visits = held[0].fetch().json()["visits"]
    held[0].continue_()
    expect(page.locator("h1")).to_contain_text(f"{1 + len(visits)} visits")
    expect(older).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)
