"""Ways through the page: keyboard alone, addresses that lead straight to a place, the token, live changes."""

import re
from dataclasses import replace

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
SOON = 400
"""Milliseconds for a key to take effect."""


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(SOON)


def assert_at(page, route):
    """The page is, or soon will be, at this address."""
    expect(page).to_have_url(f"{page.url.split('#')[0]}#{route}")


def where(page):
    return page.url.split("#", 1)[1]


def test_keyboard_alone_leads_from_the_curve_to_a_token(site, sums):
    page = site.page(f"/run/{sums}")
    plot = page.locator(".chart-reward .plot")
    plot.wait_for()
    page.wait_for_timeout(SOON)
    plot.focus()
    press(page, "End", "ArrowLeft")
    expect(page.locator(".chart-reward [aria-live]")).to_have_text(re.compile(r"^step 15: reward \d"))
    press(page, "Enter")
    assert_at(page, f"/run/{sums}/step/15")
    page.locator(".group-row").first.wait_for()
    press(page, "ArrowLeft")
    assert_at(page, f"/run/{sums}/step/14")
    press(page, "ArrowRight", "ArrowDown", "ArrowDown")
    expect(page.locator(".group-row-link").nth(1)).to_be_focused()
    press(page, "Enter")
    page.locator(".grpo-svg").wait_for()
    group = where(page)
    assert re.fullmatch(rf"/run/{sums}/step/15/group/\d+", group)
    press(page, "j", "j", "k")
    assert_at(page, f"{group}?sample=1")
    press(page, "Enter")
    page.locator(".long-text").wait_for()
    press(page, "j")
    expect(page.locator("h1")).to_have_text("Answer 2 of 8")
    press(page, "t")
    expect(page).to_have_url(re.compile("/tokens$"))
    press(page, "u", "u", "u", "u")
    assert_at(page, f"/run/{sums}")


def test_arrows_move_through_groups_and_tokens(site, sums):
    page = site.page(f"/run/{sums}/step/9/group/6")
    page.locator(".grpo-svg").wait_for()
    press(page, "ArrowDown")
    assert_at(page, f"/run/{sums}/step/9/group/7")
    press(page, "ArrowUp", "ArrowRight")
    assert_at(page, f"/run/{sums}/step/10")
    page.goto(f"{site.base}/#/run/{sums}/sample/9.6.2.train/tokens")
    page.locator(".token-text").focus()
    press(page, "ArrowRight", "ArrowRight", "ArrowLeft")
    expect(page.locator(".tok.is-at")).to_have_id("token-1")
    press(page, "w")
    expect(page.locator(".tok.is-at")).to_have_class(re.compile(r"\b(pos|neg)4\b"))


def test_arrows_scroll_a_text_that_has_the_focus(site, sums):
    page = site.page(f"/run/{sums}/step/9/group/6")
    page.locator(".grpo-svg").wait_for()
    text = page.locator(".answer-text").first
    text.evaluate("box => { box.append('long text '.repeat(800)); box.focus(); }")
    press(page, "ArrowDown", "ArrowDown", "ArrowUp")
    assert_at(page, f"/run/{sums}/step/9/group/6")
    assert text.evaluate("box => box.scrollTop") > 0
    press(page, "j")
    assert_at(page, f"/run/{sums}/step/9/group/6?sample=1")
    text.evaluate("box => { box.lastChild.remove(); box.focus(); }")
    press(page, "ArrowDown")
    assert_at(page, f"/run/{sums}/step/9/group/7")  # there was nothing to scroll


def test_help_opens_and_closes_and_views_have_letters(site, sums):
    page = site.page(f"/run/{sums}")
    page.get_by_text("Curves").wait_for()
    press(page, "?")
    expect(page.locator("dialog[open]")).to_have_count(1)
    press(page, "Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    press(page, "g", "r")
    assert_at(page, f"/run/{sums}/rewards")
    press(page, "h")
    assert_at(page, f"/run/{sums}/rewards")


def test_a_click_on_a_point_opens_its_step(site, sums):
    page = site.page(f"/run/{sums}")
    over = page.locator(".chart-reward .u-over")
    over.wait_for()
    size = over.bounding_box()
    over.click(position={"x": size["width"] - 2, "y": 20})
    assert_at(page, f"/run/{sums}/step/16")


def test_every_view_is_reached_by_its_address(site, sums):
    deep = f"/run/{sums}/step/9?sort=-mean&page=1"
    page = site.page(deep)
    page.locator(".group-row").first.wait_for()
    assert_at(page, deep)
    expect(page.get_by_label("Sorted by")).to_have_value("-mean")
    means = [float(text.split()[0]) for text in page.locator(".group-row-side > :last-child").all_inner_texts()]
    assert means == sorted(means, reverse=True)
    page.reload()
    page.locator(".group-row").first.wait_for()
    page.go_back()


@pytest.mark.parametrize("route", ["/nowhere", "/run/%E0%A4%A", "/run/x/y/z"])
def test_an_address_that_leads_nowhere_says_so(site, route):
    page = site.page(route)
    page.get_by_text("No such page").wait_for()


@pytest.mark.may_complain
def test_a_run_or_step_that_is_not_there_is_said(site, sums):
    page = site.page(f"/run/{sums}/step/9/group/999")
    page.get_by_text("This could not be loaded.").wait_for()
    page = site.page("/run/missing-000000")
    page.get_by_text("There is no run").first.wait_for()


def test_the_token_leaves_the_address_and_stays_in_the_tab(site, sums):
    page = site.page(f"/run/{sums}")
    page.get_by_text("Curves").wait_for()
    assert site.token not in page.url
    assert site.token not in page.content()
    assert page.evaluate("JSON.stringify(localStorage)").find(site.token) == -1
    page.reload()
    page.get_by_text("Curves").wait_for()


@pytest.mark.may_complain
def test_a_wrong_token_is_asked_for_again(site, sums):
    page = site.page(f"/run/{sums}", token="wrong")
    field = page.get_by_label("Token or address")
    field.fill("still wrong")
    page.get_by_role("button", name="Connect").click()
    page.get_by_text("does not know this token").wait_for()
    field.fill(f"{site.base}/#token={site.token}")
    page.get_by_role("button", name="Connect").click()
    page.get_by_text("Curves").wait_for()


@pytest.mark.may_complain
@pytest.mark.parametrize("route", ["/run/{0}", "/run/{0}/step/9", "/compare/{0}/{0}"])
def test_a_server_with_another_token_leads_to_connect(site, sums, route):
    page = site.page(route.format(sums))
    page.locator("h1").wait_for()
    refusal = {"status": 401, "json": {"error": {"code": "no_token", "message": "no"}}}
    page.route("**/api/**", lambda call: call.fulfill(**refusal))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as after a break: ask anew
    page.get_by_label("Token or address").wait_for()
    page.unroute("**/api/**")
    page.goto(f"{site.base}/#token={site.token}/run/{sums}")
    page.get_by_text("Curves").wait_for()


def test_an_open_page_follows_a_run_that_goes_on(site, golden, request):
    story = replace(golden.STORIES[0], name="live", num_steps=40, max_steps=40)
    writer = golden.RunWriter(site.folder / "live", story)
    request.addfinalizer(writer.close)
    for step in (1, 2, 3):
        writer.step(step)
    run = site.run("live")
    page = site.page(f"/run/{run}")
    page.get_by_text("step 3 of 40").wait_for()
    page.locator(".mode-live").wait_for()
    second = site.page(f"/run/{run}/step")
    second.get_by_role("heading", name="Step 3").wait_for()
    expect(second.get_by_label("step after")).to_be_disabled()
    for step in range(4, 10):
        writer.step(step)
    page.get_by_text("step 9 of 40").wait_for()
    page.locator(".finding", has_text="D05 truncation").wait_for()
    page.get_by_role("button", name="Reward: table", exact=True).click()
    expect(page.locator(".chart-reward tbody tr")).to_have_count(9)
    second.locator("button[aria-label='step after']:not(:disabled)").wait_for()
    writer.close()
    page.locator(".state-finished").first.wait_for()


def test_without_a_stream_the_page_polls(site, golden, request):
    story = replace(golden.STORIES[0], name="polled", num_steps=40, max_steps=40)
    writer = golden.RunWriter(site.folder / "polled", story)
    request.addfinalizer(writer.close)
    writer.step(1)
    run = site.run("polled")
    page = site.page()
    page.locator("a.run-name").first.wait_for()
    page.route("**/stream", lambda route: route.fulfill(status=200, body="", content_type="text/event-stream"))
    page.clock.install()
    page.goto(f"{site.base}/#/run/{run}")
    page.get_by_text("step 1 of 40").wait_for()
    for _ in range(5):
        page.clock.run_for(4000)
        page.wait_for_timeout(100)
    page.locator(".mode-polling").wait_for()
    writer.step(2)
    for _ in range(3):
        page.clock.run_for(6000)
        page.wait_for_timeout(200)
    page.get_by_text("step 2 of 40").wait_for()
    page.unroute("**/stream")
    for _ in range(11):
        page.clock.run_for(5100)
        page.wait_for_timeout(100)
    page.locator(".mode-live").wait_for()
    writer.close()
