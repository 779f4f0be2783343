"""The rules by which a bidder's time is certain: steps, jumps, restarts, reboots, a missing and a damaged file."""

from __future__ import annotations

import json

import pytest

from leadre.clock import ManualClock
from leadre.serve.processes.steady_clock import KEEP_US, ClockKeeper, SteadyClock
from leadre.units import S_PER_DAY, S_PER_HOUR, US_PER_S

START_US = 1_700_000_000 * US_PER_S


@pytest.fixture
def machine():
    return ManualClock(wall_us=START_US, elapsed_s=1000.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "clock"


def set_ahead(machine, seconds):
    machine.wall_us += round(seconds * US_PER_S)


def test_small_corrections_are_followed_and_add_up(machine, path):
    keeper = ClockKeeper(path, machine)
    follower = SteadyClock(path, machine)
    for _ in range(10):
        set_ahead(machine, 59)
        machine.advance(KEEP_US / US_PER_S)
        assert keeper.now_us() == machine.wall_us and not keeper.doubt()
        keeper.keep()
        follower.follow()
        assert follower.now_us() == follower.certain_us() == machine.wall_us and not follower.doubt()


@pytest.mark.parametrize("seconds", [61, 8 * S_PER_DAY, -61, -8 * S_PER_DAY])
def test_jump_holds_the_time_of_every_process_until_it_is_set_back(machine, path, seconds):
    keeper = ClockKeeper(path, machine)
    follower = SteadyClock(path, machine)
    set_ahead(machine, seconds)
    machine.advance(3 * S_PER_DAY)
    for clock in (keeper, follower, SteadyClock(path, machine), ClockKeeper(path, machine)):
        assert clock.now_us() == START_US + 3 * S_PER_DAY * US_PER_S
        assert clock.certain_us() == START_US and clock.state().doubt == "jump"
    keeper.keep(at_once=True)
    set_ahead(machine, -seconds)
    assert not keeper.doubt() and keeper.certain_us() == machine.wall_us


def test_sleep_is_no_jump(machine, path):
    """Boot time counts a sleep, as `ManualClock.elapsed_s` does here; `time.monotonic` of Linux does not."""
    keeper = ClockKeeper(path, machine)
    machine.advance(S_PER_DAY - 1)
    assert not keeper.doubt() and keeper.now_us() == machine.wall_us


@pytest.mark.parametrize(
    ("boot", "off_s", "wall_s", "doubt"),
    [
        ("same", 5, 5, ""),
        ("same", S_PER_DAY - 1, S_PER_DAY, ""),
        ("same", S_PER_DAY + 1, S_PER_DAY + 1, "gap"),
        ("same", 5, 3 * S_PER_DAY, "jump"),
        ("another", 0, 5, ""),
        ("another", 0, S_PER_HOUR - 1, ""),
        ("another", 0, S_PER_HOUR + 1, "gap"),
        ("another", 0, -59, ""),
        ("another", 0, -61, "gap"),
        ("another", 0, 3 * S_PER_DAY, "gap"),
    ],
)
def test_start_trusts_boot_time_for_a_day_and_a_reboot_for_an_hour(machine, path, boot, off_s, wall_s, doubt):
    ClockKeeper(path, machine)
    machine.elapsed_s = machine.elapsed_s + off_s if boot == "same" else 7.0
    machine.boot = boot if boot != "same" else machine.boot
    set_ahead(machine, wall_s)
    for _ in range(2):  # a second start knows the same
        for clock in (SteadyClock(path, machine), ClockKeeper(path, machine)):
            assert clock.state().doubt == doubt
            assert clock.certain_us() == (START_US if doubt else machine.wall_us)
            assert doubt == "jump" or clock.now_us() == machine.wall_us
        machine.advance(1)
        machine.wall_us -= US_PER_S
        machine.elapsed_s -= 1


def test_gap_survives_jumps_and_reboots_and_ends_with_a_confirmation(machine, path):
    ClockKeeper(path, machine)
    machine.boot = "second"
    set_ahead(machine, 3 * S_PER_DAY)
    keeper = ClockKeeper(path, machine)
    set_ahead(machine, 9 * S_PER_DAY)
    assert keeper.state().doubt == "jump" and keeper.certain_us() == START_US
    machine.boot = "third"
    keeper = ClockKeeper(path, machine)
    assert keeper.state().doubt == "gap" and keeper.certain_us() == START_US
    assert keeper.confirm("Ada").doubt == "" and keeper.certain_us() == machine.wall_us
    confirmed_us = machine.wall_us
    follower = SteadyClock(path, machine)
    machine.advance(10)
    assert not follower.doubt() and not ClockKeeper(path, machine).doubt()
    machine.boot = "fourth"
    ClockKeeper(path, machine).keep(at_once=True)
    assert json.loads(path.read_bytes())["confirmed"] == {"by": "Ada", "at_us": confirmed_us}, "who confirmed stays"


@pytest.mark.parametrize("wrong_s", [14 * S_PER_HOUR, -8 * S_PER_DAY, -START_US // US_PER_S])
def test_time_service_that_corrects_the_clock_after_a_reboot_ends_the_doubt(machine, path, wrong_s):
    """A machine without a battery starts at another time, until a time server corrects it."""
    ClockKeeper(path, machine)
    machine.boot = "second"
    set_ahead(machine, 300 + wrong_s)
    keeper = ClockKeeper(path, machine)
    follower = SteadyClock(path, machine)
    machine.advance(40)
    assert keeper.state().doubt == "gap" and keeper.now_us() == machine.wall_us
    set_ahead(machine, -wrong_s)
    for clock in (keeper, follower):
        assert clock.state().doubt == "" and clock.now_us() == clock.certain_us() == machine.wall_us
    keeper.keep(at_once=True)
    set_ahead(machine, 600)
    assert keeper.state().doubt == "jump", "the corrected time is held from now on"


def test_confirmed_jump_reaches_followers(machine, path):
    keeper = ClockKeeper(path, machine)
    follower = SteadyClock(path, machine)
    set_ahead(machine, 8 * S_PER_DAY)
    assert follower.doubt()
    keeper.confirm("Ada")
    follower.follow()
    assert not follower.doubt() and follower.now_us() == machine.wall_us


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"boot_id": 1}', b"\xff"])
def test_without_a_file_the_newest_record_is_the_last_time(machine, path, content):
    path.parent.mkdir()
    for last_us, doubt in ((0, ""), (START_US - 60 * US_PER_S, ""), (START_US - S_PER_DAY * US_PER_S, "gap")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert not SteadyClock(path, machine).doubt(), "it waits for the writer"
        assert ClockKeeper(path, machine, lambda last_us=last_us: last_us).state().doubt == doubt
        assert SteadyClock(path, machine).state().doubt == doubt
