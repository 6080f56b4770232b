"""`gruppo report RUN -o x.html [--png x.png]`: a run as one file that can be mailed, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from gruppo.errors import ConfigError, boundary


def run(argv: list[str]) -> int:
    """Write the report. Returns the exit code."""
    return tyro.cli(report, args=argv, prog="gruppo report")


def report(
    run: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of the run (its output_dir).")
    ],
    *,
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], help="The HTML file to write; an older one is replaced.")
    ] = None,
    png: Annotated[
        Path | None, tyro.conf.arg(help="Write verdict and curves as a picture too (needs the extra `report`).")
    ] = None,
) -> int:
    """One HTML file that needs nothing else: verdict, curves, findings, evaluations, phases, completions, settings."""
    from gruppo.monitor.report.contents import read_contents  # late: `--help` needs no readers

    if output is None and png is None and (run / "metrics.jsonl").exists():  # without it, that is to be said first
        raise ConfigError("There is nothing to write: give -o report.html, or --png overview.png, or both.")
    contents = read_contents(run)
    if output is not None:
        from gruppo.monitor.report.page import page

        with boundary(ConfigError, f"Writing {output}"):
            # A lone surrogate cannot be written; `escaped` leaves none in, so strict is right.
            output.write_text(page(contents), encoding="utf-8")
        print(f"wrote {output}")
    if png is not None:
        with boundary(ConfigError, "Importing matplotlib (install it: `pip install 'gruppo[report]'`)"):
            from gruppo.monitor.report.picture import draw
        with boundary(ConfigError, f"Writing {png}"):
            draw(contents, png)
        print(f"wrote {png}")
    return 0
