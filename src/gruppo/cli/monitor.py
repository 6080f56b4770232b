"""`gruppo monitor RUNS_DIR`: look at runs in the browser, while they run or later. Or, with --json, print an answer.

The work is done by `gruppo.monitor.server`; this is a process of its own, never the trainer's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, unquote

import tyro

from gruppo.errors import ConfigError, boundary

BARE = "runs"
"""What --json alone asks for."""


def run(argv: list[str]) -> int:
    """Serve until stopped, or print one answer. Returns the exit code."""
    return tyro.cli(monitor, args=_with_value("--json", BARE, argv), prog="gruppo monitor")


def monitor(
    runs_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A run's output_dir, or a folder of runs.")],
    *,
    host: Annotated[
        str, tyro.conf.arg(help="Address to listen on. Anything but 127.0.0.1 can be reached from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int | None, tyro.conf.arg(help="Port; by default 6007, or a free one if that is taken.")] = None,
    base_path: Annotated[str, tyro.conf.arg(help="Prefix of all paths, behind a proxy that does not cut it.")] = "",
    allow_host: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Further names of the server in URLs, as behind a proxy."),
    ] = (),
    open: Annotated[bool, tyro.conf.arg(help="Open the page in a browser.")] = True,
    json: Annotated[
        str | None,
        tyro.conf.arg(
            help="Do not serve: print the answer to a path of docs/monitor-api.md, as runs/ID/health; alone: runs."
        ),
    ] = None,
) -> int:
    """Look at runs in the browser: reward curves, alarms, groups, completions, tokens. Reads files, changes nothing."""
    if not runs_dir.is_dir():
        raise ConfigError(f"runs_dir={str(runs_dir)!r} cannot be: there is no such folder. Give a run's output_dir.")
    with boundary(ConfigError, "Importing the monitor's server (install it: `pip install 'gruppo[monitor]'`)"):
        from gruppo.monitor.server import routes, serve, store
    if json is not None:
        api = routes.Api(store.Store(runs_dir))
        path, _, query = json.removeprefix("/").removeprefix("api/").partition("?")
        answer = routes.to_bytes(api.answer_whole(unquote(path), parse_qsl(query, keep_blank_values=True)))
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.flush()
        api.close()
        return 0
    address = serve.Address(host, port, base_path, allow_host)
    serve.serve(runs_dir, address, is_browser_wanted=open and sys.stdout.isatty())
    return 0


def _with_value(flag: str, value: str, argv: Sequence[str]) -> list[str]:
    """The arguments, with `value` after `flag` where it stands alone."""
    arguments: list[str] = []
    for position, argument in enumerate(argv):
        arguments.append(argument)
        follows = argv[position + 1] if position + 1 < len(argv) else "--"
        if argument == flag and follows.startswith("--"):
            arguments.append(value)
    return arguments
