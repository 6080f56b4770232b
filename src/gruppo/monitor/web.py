"""The page of a run, started by its trainer: the trainer's side of `monitor="web"`.

It starts `monitor.server.attached` as a process of its own and says its URL. No failure of it reaches training. What is
served, and to whom, is decided in monitor/server.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

COMMAND = (sys.executable, "-P", "-m", "gruppo.monitor.server.attached")
"""-P: no file in the working directory may stand in for a module."""

URL = re.compile(r"gruppo monitor: (http://\S+)\n")
MAX_SAID = 20_000


@final
class WebPage:
    """The process that serves one run's page on 127.0.0.1.

    It reads the run's files, so it neither slows training nor ends with it: after the trainer's end (or its
    disposal) it goes on until nobody has looked for ten minutes.

    Args:
        run: the run's folder.
        say: where the URL (or why there is none) is told, once; called in a thread.
    """

    def __init__(self, run: Path, say: Callable[[str], None], command: Sequence[str] = COMMAND) -> None:
        self._run, self._say, self._command = run, say, command
        self._process: subprocess.Popen[bytes] | None = None
        self._told = _Told()

    @property
    def url(self) -> str | None:
        """With the token. None if there is no process, or it has not said it yet."""
        return self._told.url if self.is_alive else None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def open(self) -> None:
        """Start the process, unless it is there already."""
        if self.is_alive:
            return
        self._told = _Told()
        try:  # the boundary between the page and training
            self._process = subprocess.Popen(
                [*self._command, str(self._run)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        except OSError as error:
            self._say(f"monitor     the page could not be started, training goes on: {error}")
            return
        assert self._process.stdin is not None
        # The process waits for the end of this pipe: it comes when the trainer object goes, or when its process does.
        weakref.finalize(self, self._process.stdin.close)
        told = (self._process, self._told, self._say)  # not `self`: a running thread would keep it for ever
        threading.Thread(target=_listen, args=told, name="gruppo-web-page", daemon=True).start()

    def close(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


@dataclass(slots=True)
class _Told:
    """What the process has said of itself."""

    url: str | None = None


def _listen(process: subprocess.Popen[bytes], told: _Told, say: Callable[[str], None]) -> None:
    """Wait for the URL; then keep reading, so that the process never waits for us; and see it end."""
    assert process.stdout is not None
    said = ""
    while piece := process.stdout.read(4096):
        if told.url is not None:
            continue
        said = (said + piece.decode("utf-8", "replace"))[-MAX_SAID:]
        match = URL.search(said)
        if match is not None:
            told.url = match[1]
            say(f"monitor     {told.url}")
    process.stdout.close()
    process.wait()
    if told.url is None:
        why = said.strip().splitlines()[-1:] or ["it said nothing"]
        say(f"monitor     the page did not start, training goes on: {why[0]}")
