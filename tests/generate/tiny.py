"""A run with a hardly trained model, whose lists are made again and again."""

import sqlite3
import time
from pathlib import Path

from leadre.store import open_store
from leadre.store.contract import dump

MODEL = {
    "data": "--source world --world-users 60 --world-ads 60 --world-contents 12",
    "semid": "--levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
    "tune": "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2 --batch-tokens 800",
}
LISTS = "--beam 12 --top 10 --batch 4"


def argv(name, work, flags=""):
    return [*name.split(), "--work", str(work), "--run", "r", "--threads", "1", *flags.split()]


def lines_of(spec):
    store = open_store(spec)
    lines = list(dump(store, store.versions().current))
    store.close()
    return lines


def done(work):
    """Batches that the leases say are done."""
    try:
        with sqlite3.connect(f"file:{work / 'r' / '.generate-lists' / 'leases.db'}?mode=ro", uri=True) as connection:
            (count,) = connection.execute("SELECT count(done_at_us) FROM batches").fetchone()
        connection.close()
    except sqlite3.Error:
        return 0
    return count


def wait_for(running, work, count):
    """Until so many batches are done, of a command that is at it."""
    while done(work) < count:
        assert running.poll() is None, f"it ended before {count} batches"
        time.sleep(0.005)


def children(pid):
    """Processes of a command that hold a worker."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            is_child = stat.read_text().rpartition(")")[2].split()[1] == str(pid)
            if is_child and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                pids.append(int(stat.parent.name))
        except OSError:
            continue
    return sorted(pids)
