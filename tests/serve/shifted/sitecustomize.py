"""Shifts the clocks of every Python process that has this folder on its path: by ``shift`` beside this file.

The file has two whole numbers of seconds, of wall time and of boot time, and the ID of the boot, which a process reads
once; "-" is the real one.
Python imports a module of this name when it starts.
"""

import time
from pathlib import Path

import leadre.clock

FOLDER = Path(__file__).parent
BOOT = getattr(time, "CLOCK_BOOTTIME", None)
NS = 10**9
real_time_ns = time.time_ns
real_gettime_ns = time.clock_gettime_ns


def shift():
    wall_s, boot_s, _ = (FOLDER / "shift").read_text().split()
    return int(wall_s) * NS, int(boot_s) * NS


def time_ns():
    return real_time_ns() + shift()[0]


def clock_gettime_ns(clock):
    return real_gettime_ns(clock) + (shift()[1] if clock == BOOT else 0)


time.time_ns = time_ns
time.time = lambda: time_ns() / NS
time.clock_gettime_ns = clock_gettime_ns
boot_id = (FOLDER / "shift").read_text().split()[2]
if boot_id != "-":
    (FOLDER / "boot_id").write_text(boot_id)
    leadre.clock.BOOT_ID = FOLDER / "boot_id"
