"""What a model's name may mean: a folder here, or an id on the hub. Not here: loading."""

from __future__ import annotations

import os


def loading(what: str, source: str) -> str:
    """What is being done, for an `errors.boundary`.

    A name that is no folder here goes to the hub, whose answer says nothing of folders; whoever mistyped one reads on.

    >>> loading("the model", "no/folder")
    "There is no folder 'no/folder' here, and loading the model 'no/folder' from the hub"
    """
    if os.path.exists(source):  # not Path's: a name may be too long for one
        return f"Loading {what} {source!r}"
    return f"There is no folder {source!r} here, and loading {what} {source!r} from the hub"
