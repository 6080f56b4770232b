"""Take pictures of every view of the monitor page on the golden run: for the docs, and for looking at changes.

    python scripts/page_screenshots.py OUT_DIR [--views overview group] [--themes light dark] [--widths 1280 400]

It needs playwright and a Chromium (see docs/monitor-page.md). It compares nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip

VIEWS = {
    "runs": "/",
    "overview": "/run/{a}",
    "health": "/run/{a}/health",
    "rewards": "/run/{a}/rewards",
    "step": "/run/{a}/step/24",
    "group": "/run/{a}/step/24/group/3?sample=2",
    "completion": "/run/{a}/sample/24.3.2.train",
    "tokens": "/run/{a}/sample/24.1.2.train/tokens",
    "prompts": "/run/{a}/prompt",
    "prompt": "/run/{a}/prompt/3",
    "evals": "/run/{a}/evals",
    "timeline": "/run/{a}/timeline",
    "discarded": "/run/{a}/discarded?reason=flat&range=20",
    "compare": "/compare/{a}/{b}?prompt=3",
    "settings": "/run/{a}/settings",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", nargs="*", default=list(VIEWS))
    parser.add_argument("--themes", nargs="*", default=["light", "dark"])
    parser.add_argument("--widths", nargs="*", type=int, default=[1280, 400])
    parser.add_argument("--runs", type=Path, help="a folder of runs; by default the golden run is made anew")
    parser.add_argument("--screen", action="store_true", help="only what fits on the screen, not the whole page")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        runs = args.runs or Path(folder) / "runs"
        if args.runs is None:
            subprocess.run([sys.executable, ROOT / "scripts/make_golden_run.py", runs], check=True)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with served(runs) as url:
            for theme in args.themes:
                for width in args.widths:
                    look = {"views": args.views, "theme": theme, "width": width, "is_whole": not args.screen}
                    shoot(browser, url, args.out, **look)
        browser.close()


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """`gruppo monitor` on the folder; gives the printed URL with its token."""
    command = [sys.executable, "-m", "gruppo.cli.main", "monitor", str(runs), "--no-open", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"(http\S+#token=\S+)", process.stdout.readline())
            assert found, "the server printed no URL"
            yield found[1]
        finally:
            process.terminate()


def shoot(browser: Browser, url: str, out: Path, *, views: list[str], theme: Any, width: int, is_whole: bool) -> None:
    """One picture per view; says on stderr what the browser complained about and which view is too wide."""
    context = browser.new_context(
        viewport={"width": width, "height": 860},
        color_scheme=theme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.on("console", lambda message: print(f"console {message.type}: {message.text}", file=sys.stderr))
    page.on("pageerror", lambda error: print(f"error: {error}", file=sys.stderr))
    page.goto(url)
    page.wait_for_selector(".run-name")
    links = page.locator("a.run-name").evaluate_all("links => links.map(a => [a.textContent, a.getAttribute('href')])")
    ids = {name: href.removeprefix("#/run/") for name, href in links}
    names = sorted(ids)
    for view in views:
        route = VIEWS[view].format(a=ids[names[0]], b=ids[names[-1]])
        page.evaluate("route => { location.hash = route }", route)
        page.wait_for_timeout(200)  # the content security policy forbids wait_for_function
        page.locator("main h1").first.wait_for()
        page.wait_for_timeout(500)
        path = out / f"{view}-{theme}-{width}.png"
        page.screenshot(path=path, full_page=is_whole)
        Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if overflow > 0:
            print(f"{view} at {width}: {overflow} pixels too wide", file=sys.stderr)
    context.close()


if __name__ == "__main__":
    main()
