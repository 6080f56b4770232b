"""Fetch the page's libraries from the npm registry into the repository, or check that nobody has touched them.

    python scripts/vendor_page.py            # fetch again (needs npm), rewrite vendor/ and VENDORED.json
    python scripts/vendor_page.py --check    # compare the files with VENDORED.json; no network

It is not part of the package and users never run it: what it fetched is committed, so the page has no build step.
Raising a version is a change of one line in LIBRARIES.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "src/gruppo/monitor/page/vendor/VENDORED.json"
PAGE = "src/gruppo/monitor/page/vendor"
TESTS = "tests/monitor/page/vendor"


@dataclass(frozen=True)
class Library:
    """One npm package: which of its files go where, and what must be rewritten in them."""

    name: str
    version: str
    licence: str
    files: dict[str, str]
    """path in the package -> path in the repository"""
    rewrites: dict[str, str] = field(default_factory=dict)
    """Exact text -> text. The content security policy forbids an inline import map, so bare imports become paths."""


LIBRARIES = (
    Library(
        "preact",
        "11.2.0",
        "MIT",
        {
            "dist/preact.mjs": f"{PAGE}/preact.js",
            "hooks/dist/hooks.mjs": f"{PAGE}/preact-hooks.js",
            "LICENSE": f"{PAGE}/preact.LICENSE.txt",
        },
        {'from"preact"': 'from"./preact.js"'},
    ),
    Library("htm", "3.1.1", "Apache-2.0", {"dist/htm.mjs": f"{PAGE}/htm.js", "LICENSE": f"{PAGE}/htm.LICENSE.txt"}),
    Library(
        "uplot",
        "1.6.32",
        "MIT",
        {
            "dist/uPlot.esm.js": f"{PAGE}/uplot.js",
            "dist/uPlot.min.css": f"{PAGE}/uplot.css",
            "LICENSE": f"{PAGE}/uplot.LICENSE.txt",
        },
    ),
    Library(
        "axe-core",
        "4.14.1",
        "MPL-2.0",
        {"axe.min.js": f"{TESTS}/axe.min.js", "LICENSE": f"{TESTS}/axe.LICENSE.txt"},
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the files with VENDORED.json")
    if parser.parse_args().check:
        problems = differences()
        print("\n".join(problems) or f"{LIST.relative_to(ROOT)}: all files are as listed")
        return int(bool(problems))
    entries = [fetch(library) for library in LIBRARIES]
    LIST.write_text(json.dumps({"source": "npm registry", "packages": entries}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {sum(len(library.files) for library in LIBRARIES)} files of {len(entries)} packages")
    return 0


def differences() -> list[str]:
    """What is not as VENDORED.json says: missing, changed, or lying in vendor/ unlisted."""
    listed = {
        file["path"]: file["sha256"]
        for entry in json.loads(LIST.read_text(encoding="utf-8"))["packages"]
        for file in entry["files"]
    }
    found = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (PAGE, TESTS)
        for path in (ROOT / folder).iterdir()
        if path != LIST
    }
    return [
        *(f"{path}: listed, but not there" for path in sorted(listed.keys() - found.keys())),
        *(f"{path}: there, but not listed" for path in sorted(found.keys() - listed.keys())),
        *(f"{path}: changed" for path in sorted(listed.keys() & found.keys()) if listed[path] != found[path]),
    ]


def fetch(library: Library) -> dict[str, object]:
    """Let npm download and verify the package, copy its files, and say what was done."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", f"{library.name}@{library.version}", "--json", "--silent"]
        answer = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)
        packed = answer[0] if isinstance(answer, list) else answer[library.name]
        with tarfile.open(Path(folder) / packed["filename"]) as tar:
            tar.extractall(folder, filter="data")
        files = [_copy(library, Path(folder) / "package" / source, target) for source, target in library.files.items()]
    return {
        "name": library.name,
        "version": library.version,
        "licence": library.licence,
        "tarball_integrity": packed["integrity"],
        "rewrites": library.rewrites,
        "files": files,
    }


def _copy(library: Library, source: Path, target: str) -> dict[str, str]:
    text = source.read_text(encoding="utf-8")
    for old, new in library.rewrites.items():
        text = text.replace(old, new)
    # The browser would ask for source maps that are not there.
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("//# sourceMappingURL="))
    path = ROOT / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return {"path": target, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
