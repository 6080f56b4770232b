"""The folder that a run writes into: made and tried before it starts. Not here: what is written (`monitor`)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from gruppo.errors import ConfigError, boundary


def make_output_folder(output_dir: str | Path) -> Path:
    """The folder, made if it is not there. Leaves what is in it alone.

    Raises ConfigError if nothing can be written into it: at the first checkpoint, hours of work would be lost.
    """
    folder = Path(output_dir)
    advice = f"output_dir={str(folder)!r} cannot be used. Set it to a folder that you may write to. Trying this one"
    with boundary(ConfigError, advice):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"output_dir={str(folder)!r} is a file. Set it to a folder, or to a new name.")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            probe.write(b"gruppo")
    return folder
