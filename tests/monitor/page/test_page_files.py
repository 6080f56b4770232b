"""The page's files by themselves: vendored libraries untouched, modules small, imports that resolve, no markup APIs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "src" / "gruppo" / "monitor" / "page"
MODULES = sorted((PAGE / "app").rglob("*.js"))

FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|dangerouslySet|\beval\(|new Function"
    r"|createContextual|https?://(?!www\.w3\.org)|new EventSource|document\.cookie|style=\"|style=\$|style='"
)


def test_vendored_libraries_are_as_listed():
    command = [sys.executable, str(ROOT / "scripts" / "vendor_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PAGE).as_posix())
def test_module_keeps_the_rules(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("/**"), "a module opens by saying what it is"
    assert len(text.splitlines()) < 400
    assert FORBIDDEN.findall(text) == []
    for target in re.findall(r"(?:from|import) '(\.[^']+)'", text):
        assert (path.parent / target).is_file(), f"{target} is not there"


def test_the_shell_carries_no_script_style_or_foreign_address():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=\"page/)[^>]*>|<style|\sstyle=|\son\w+=|https?://", text) == []
    for target in re.findall(r"(?:src|href)=\"page/([^\"]+)\"", text):
        assert (PAGE / target).is_file(), f"{target} is not there"


def test_the_shell_asks_for_every_module_at_once():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    asked = re.findall(r"rel=\"modulepreload\" href=\"page/([^\"]+)\"", text)
    modules = sorted(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.js"))
    assert asked == [name for name in modules if name != "app/main.js"]


def test_stylesheets_ask_for_nothing():
    for path in (PAGE / "css").iterdir():
        assert re.findall(r"url\(|@import|@font-face", path.read_text(encoding="utf-8")) == [], path.name
