"""Privacy of a bidder's files: only their owner can read them, as they name users and hold keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OTHERS = 0o077  # the permissions of group and others


def keep_private(folder: Path) -> None:
    """Make a folder, and let its owner alone read it: all files in it, and all that this process and its children make.

    Files and folders that others may read, as a release before made them, are mended. A link is left as it is. OSError
    if the folder belongs to another user.
    """
    os.umask(OTHERS)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *_below(folder)):
        with suppress(FileNotFoundError):  # another process of the bidder may replace files meanwhile
            mode = path.stat().st_mode
            if mode & OTHERS:
                path.chmod(mode & 0o7777 & ~OTHERS)


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if not (path := Path(root, name)).is_symlink())
