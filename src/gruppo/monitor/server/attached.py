"""`python -m gruppo.monitor.server.attached RUN`: the page of one run, started by its trainer (`monitor="web"`).

Like `gruppo monitor RUN`, but it opens no browser and ends by itself; see lifetime.py. The trainer's side is in
monitor/web.py.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from gruppo.errors import GruppoError
from gruppo.monitor.server.lifetime import Lifetime
from gruppo.monitor.server.serve import Address, serve

STDIN = 0
"""Read as it is: a thread that waits in Python's buffered sys.stdin is a fatal error when the interpreter ends."""


def main(run: str) -> int:
    """Serve; returns the exit code."""
    try:
        serve(Path(run), Address(), is_browser_wanted=False, lifetime=Lifetime(partial(os.read, STDIN)))
    except GruppoError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
