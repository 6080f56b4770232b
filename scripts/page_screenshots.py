"""Take pictures of every view of the monitor page: for the docs, and for looking at changes.

    python scripts/page_screenshots.py OUT_DIR [--views overview group] [--themes light dark] [--widths 1280 400]
    python scripts/page_screenshots.py OUT_DIR --runs runs --prefix demo- --views overview step group tokens

Of the golden run, or of the first run by name in a folder of runs.

It needs playwright and a Chromium (see docs/monitor-page.md). It compares nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from gruppo.monitor.readers import read_rollouts, read_tokens

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
    "step": "/run/{a}/step/{step}",
    "group": "/run/{a}/step/{step}/group/{group_id}?sample={sample}",
    "completion": "/run/{a}/sample/{step}.{group_id}.{sample}.train",
    "tokens": "/run/{a}/sample/{step}.{group_id}.{sample}.train/tokens",
    "prompts": "/run/{a}/prompt",
    "prompt": "/run/{a}/prompt/{prompt_id}",
    "evals": "/run/{a}/evals",
    "timeline": "/run/{a}/timeline",
    "discarded": "/run/{a}/discarded?reason=flat&range=20",
    "compare": "/compare/{a}/{b}?prompt={prompt_id}",
    "settings": "/run/{a}/settings",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", nargs="*", default=list(VIEWS))
    parser.add_argument("--themes", nargs="*", default=["light", "dark"])
    parser.add_argument("--widths", nargs="*", type=int, default=[1280, 400])
    parser.add_argument("--runs", type=Path, help="a folder of runs; by default the golden run is made anew")
    parser.add_argument("--prefix", default="", help="what the names of the pictures begin with")
    parser.add_argument("--max-height", type=int, help="cut the pictures off below so many pixels")
    parser.add_argument("--screen", action="store_true", help="only what fits on the screen, not the whole page")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        runs = args.runs or Path(folder) / "runs"
        if args.runs is None:
            subprocess.run([sys.executable, ROOT / "scripts/make_golden_run.py", runs], check=True)
        names = sorted(path.parent.name for path in runs.glob("*/run.json"))
        place = place_of(runs / names[0])
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with served(runs) as url:
            for theme in args.themes:
                for width in args.widths:
                    look = {"views": args.views, "theme": theme, "width": width, "is_whole": not args.screen}
                    look |= {"prefix": args.prefix, "max_height": args.max_height}
                    shoot(browser, url, args.out, place, **look)
        browser.close()


def place_of(run: Path) -> Mapping[str, int]:
    """An answer with token records and an advantage, from the first half of the run: the longest of its step."""
    names = ["step", "group_id", "sample", "prompt_id"]
    recorded = {tuple(row.values()) for row in read_tokens(run, columns=names).to_pylist()}
    answers = read_rollouts(run, split="train", columns=[*names, "advantage", "n_completion"]).to_pylist()
    found = [row for row in answers if row["advantage"] and tuple(row[name] for name in names) in recorded]
    steps = sorted({row["step"] for row in found})
    rows = [row for row in found if row["step"] == steps[len(steps) * 2 // 5]]
    return max(rows, key=lambda row: row["n_completion"])


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


def reduced(picture: Image.Image) -> Image.Image:
    """128 colours: the 64 most frequent as they are (grounds stay white), the rest spread over what is left, so that
    the few pixels of a signal colour do not turn grey."""
    counted = sorted(picture.getcolors(picture.width * picture.height) or [], reverse=True)
    colours = [colour for _, colour in counted]
    rest = Image.new("RGB", (max(len(colours) - 64, 1), 1))
    rest.putdata(colours[64:] or colours[:1])
    spread = rest.quantize(64, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours[:64] for part in colour] + spread)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def shoot(
    browser: Browser,
    url: str,
    out: Path,
    place: Mapping[str, int],
    *,
    views: list[str],
    theme: Any,
    width: int,
    is_whole: bool,
    prefix: str,
    max_height: int | None,
) -> None:
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
        route = VIEWS[view].format(a=ids[names[0]], b=ids[names[-1]], **place)
        page.evaluate("route => { location.hash = route }", route)
        page.wait_for_timeout(200)  # the content security policy forbids wait_for_function
        page.locator("main h1").first.wait_for()
        page.wait_for_timeout(500)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")  # what is far down loads when it is seen
        page.wait_for_timeout(200)
        page.get_by_text("Loading ...").first.wait_for(state="hidden")
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(200)
        path = out / f"{prefix}{view}-{theme}-{width}.png"
        page.screenshot(path=path, full_page=is_whole)
        picture = Image.open(path).convert("RGB")
        if max_height:
            picture = picture.crop((0, 0, picture.width, min(picture.height, max_height)))
        reduced(picture).save(path, optimize=True)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if overflow > 0:
            print(f"{view} at {width}: {overflow} pixels too wide", file=sys.stderr)
    context.close()


if __name__ == "__main__":
    main()
