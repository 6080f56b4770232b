"""A Chromium, the real server and small recorded runs for the page's tests. Skipped where there is no Chromium."""

import importlib.util
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

PATIENCE = 30_000
"""Milliseconds for what takes a tenth of a second on a machine that has nothing else to do."""
SCRIPTS = Path(__file__).parents[3] / "scripts"

WATCH = """
window.ran = []; window.violations = [];
window.pwned = (word) => window.ran.push(String(word));
document.addEventListener('securitypolicyviolation', (event) => {
  window.violations.push(event.violatedDirective + ' ' + event.blockedURI);
});
"""


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents and "site" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def golden():
    return load_script("make_golden_run")


@pytest.fixture(scope="session")
def chromium():
    path = os.environ.get("GRUPPO_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install Debian's `chromium`, or set GRUPPO_CHROMIUM to a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    sync_api.expect.set_options(timeout=PATIENCE)
    flags = load_script("page_screenshots").FLAGS
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


class Site:
    """The served page: run ids by folder name, and browser pages that complain about what must never happen."""

    def __init__(self, browser, url: str, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.base, self.token = url.split("/#token=")
        self._open: list = []

    def page(self, route: str = "/", *, token: str | None = None, **options):
        context = self.browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        context.set_default_timeout(PATIENCE)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and page.problems.append(f"console: {said.text}"))
        page.on("dialog", lambda dialog: (page.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(self.base) or page.problems.append(request.url))
        self._open.append(page)
        page.goto(f"{self.base}/#token={self.token if token is None else token}{route}")
        return page

    def close_pages(self, *, is_checked: bool) -> None:
        """Close them; each must be without errors, refused content, scripts of the data and requests elsewhere."""
        pages, self._open = self._open, []
        found = [(page.problems, page.evaluate("[window.ran, window.violations]")) for page in pages]
        for page in pages:
            page.context.close()
        if is_checked:
            assert found == [([], [[], []])] * len(pages)

    def run(self, name: str) -> str:
        """The id of a run: its folder's name and six characters."""
        page = self.page()
        links = page.locator("a.run-name")
        links.first.wait_for()
        ids = [link.get_attribute("href").removeprefix("#/run/") for link in links.all()]
        return next(found for found in ids if found[:-7] == name)


def make_runs(golden: ModuleType, folder: Path) -> None:
    first, second = golden.STORIES
    golden.make_run(folder / "sums", replace(first, num_steps=16, max_steps=20, resumes_at=8))
    golden.make_run(folder / "other", replace(second, num_steps=8, max_steps=8))


@pytest.fixture(scope="session")
def served_site(chromium, golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(golden, folder)
    with load_script("page_screenshots").served(folder) as url:
        yield Site(chromium, url, folder)


@pytest.fixture
def site(served_site, request):
    """The site; pages that the test opened are closed and checked after it."""
    yield served_site
    served_site.close_pages(is_checked=not request.node.get_closest_marker("may_complain"))


@pytest.fixture(scope="session")
def sums(served_site):
    found = served_site.run("sums")
    served_site.close_pages(is_checked=True)
    return found
