"""RunMonitor: `trainer.monitor`. Shows a run while it goes on: a panel in a notebook, and a page in the browser.

It reads the run's files like any other reader, and no error in here reaches the training loop. What is on the panel is
in panel.py, the page's process in web.py.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from gruppo.monitor.panel import as_html, as_text, read_panel
from gruppo.monitor.web import WebPage

logger = logging.getLogger(__name__)

MIN_SECONDS = 2.0
"""Between two updates of the panel."""

MAX_SHARE = 0.01
"""Of the time, spent on updates: reading the files of a long run takes longer."""


@final
class RunMonitor:
    """What is to be seen of one run. Does nothing on other ranks than the main process.

    Args:
        run: the run's folder.
        is_main: whether this is the main process.
        page: serves the run in the browser (`monitor="web"`); None for no page.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run: Path,
        *,
        is_main: bool = True,
        page: WebPage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self._is_main, self._page, self._clock = is_main, page, clock
        self._panel: Any = None
        self._next_update = 0.0

    @property
    def url(self) -> str | None:
        """The page's address, with its token; None where no page is served."""
        return None if self._page is None else self._page.url

    def show(self) -> None:
        """Show the panel here; called before `train()` in the same cell, it follows the training.

        In a notebook it is one display that is updated, plain HTML in the saved file. Elsewhere the same is printed as
        text, once.
        """
        if not self._is_main:
            return
        if not is_notebook():
            print(as_text(read_panel(self.run, self.url)))
            return
        from IPython.display import display

        self._panel = display(self._bundle(), raw=True, display_id=True)

    def begin(self) -> None:
        """Training begins: the run's folder is there."""
        if self._is_main and self._page is not None:
            self._page.open()
        self.update()

    def update(self, *, is_last: bool = False) -> None:
        """Something was recorded. The panel takes it up if it is time, and always if it is the last."""
        if self._panel is None or (self._clock() < self._next_update and not is_last):
            return
        start = self._clock()
        with self._guarded():
            self._panel.update(self._bundle(), raw=True)
        end = self._clock()
        self._next_update = end + max(MIN_SECONDS, (end - start) / MAX_SHARE)

    def _bundle(self) -> dict[str, str]:
        panel = read_panel(self.run, self.url)
        return {"text/html": as_html(panel), "text/plain": as_text(panel)}

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The boundary between showing and training: an error ends the updates, once and for all."""
        try:
            yield
        except Exception as error:
            self._panel = None
            logger.warning("The panel failed and is not updated any more: %s: %s", type(error).__name__, error)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab)."""
    ipython, kernel = sys.modules.get("IPython"), sys.modules.get("ipykernel.zmqshell")
    return ipython is not None and kernel is not None and isinstance(ipython.get_ipython(), kernel.ZMQInteractiveShell)
