"""Small file systems that a test mounts and fills."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(kind: str, size_mb: int, folder: Path) -> Iterator[Path]:
    """A file system of this kind and size, mounted below ``folder``. The test is skipped if that is not permitted."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "none", str(disk)]
    if kind == "ext4":
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(size_mb << 20)
        command = ["mount", "-o", "loop", str(image), str(disk)]
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"a {kind} cannot be mounted here: it wants root and a mount namespace that permits it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all room of its disk, to the last byte."""
    path = folder / "filler"
    path.touch()
    fill_again(path)
    return path


def fill_again(filler: Path) -> None:
    """Take the room that was freed meanwhile."""
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        for size in (64 << 20, 1 << 20):  # quicker than writing
            with suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
