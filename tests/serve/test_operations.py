"""The verbs of an operator on a bidder that runs: its first key, more keys, a backup, a kill, a restore elsewhere."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

from leadre.__main__ import main

from .bidder import free_port

PATIENCE_S = 150.0  # guards against a hang


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    flags = "--source world --world-users 20 --world-ads 30 --world-contents 6"
    assert main(["data", "--work", str(folder), "--run", "r", *flags.split()]) == 0
    return folder


@contextmanager
def serving(work, *flags):
    """Run `leadre serve`: (base URL of bids, of the management API, the process, the file of its stderr)."""
    port = free_port()
    manage_port = free_port()
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(work), "--run", "r", *flags]
    command += ["--port", str(port), "--manage-port", str(manage_port)]
    log = work / f"stderr-{port}.txt"
    with log.open("wb") as stderr:
        running = subprocess.Popen(command, stderr=stderr, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    bids, manages = (f"http://127.0.0.1:{number}" for number in (port, manage_port))
    try:
        wait_until(lambda: "writer" not in get(f"{bids}/readyz")["away"], running, log)
        wait_until(lambda: get(f"{manages}/health"), running, log)
        yield bids, manages, running, log
    finally:
        running.kill()  # its child processes end when it has ended
        running.wait()


def wait_until(condition, running, log):
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if running.poll() is not None or time.monotonic() > end_s:  # a guard against hanging
            pytest.fail(log.read_text())
        time.sleep(0.1)


def get(url, key=""):
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def bid_and_show(url, number):
    """One bid whose impression and bill are reported."""
    bid_request = {"id": str(number), "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "tmax": 2000}
    bid_request |= {"user": {"id": f"user-{number % 5}"}, "site": {"domain": "news.example"}}
    body = json.dumps(bid_request).encode()
    with urllib.request.urlopen(f"{url}/openrtb2/bid", body, timeout=10) as answer:
        bid = json.loads(answer.read())["seatbid"][0]["bid"][0]
    for event in (
        bid["burl"].replace("${AUCTION_PRICE}", str(bid["price"])),
        re.findall(r'src="(http.*?)"', bid["adm"])[-1],
    ):
        with urllib.request.urlopen(event.replace("&amp;", "&"), timeout=10) as answer:
            assert answer.status in (200, 204)


def spent(manages, key):
    """(impressions, charged nanos) by campaign, from the reports of the management API."""
    day_s = 86_400
    span = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * day_s)) for days in (-1, 1)]
    rows = get(f"{manages}/reports/campaigns?since={span[0]}&until={span[1]}", key)["items"]
    return {row["campaign_id"]: (row["impressions"], row["charged_nanos"]) for row in rows}


def start(work, state, stderr):
    command = [sys.executable, "-m", "leadre", "serve", "--work", str(work), "--run", "r", "--state", str(state)]
    command += ["--port", "0", "--manage-port", str(free_port()), "--generate", "false"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FORCE_COLOR": "1"}
    return subprocess.Popen(command, stderr=stderr, env=environment)


def lines_until_ready(read):
    """Lines of stderr up to the addresses of a bidder that is ready; ``read()`` returns some bytes."""
    text = ""
    while "Ctrl+C" not in text:
        part = read().decode()
        assert part, f"the bidder ended: {text}"
        text += part
    return text.replace("\r", "").split("\n")


@pytest.mark.slow
def test_first_key_is_a_line_to_paste_in_a_terminal_before_the_addresses(work, tmp_path):
    ours, theirs = pty.openpty()
    running = start(work, tmp_path / "state", theirs)
    os.close(theirs)
    try:
        lines = lines_until_ready(lambda: os.read(ours, 10_000))
        (number,) = (number for number, line in enumerate(lines) if "export KEY=" in line)
        assert lines[number - 1] == lines[number + 1] == "", "a block of its own"
        command = f"leadre serve key --name NAME --state {tmp_path / 'state'}"
        assert lines[number + 2] == f"serve: `{command}` prints another at any time"
        assert lines[number + 3].startswith("serve: ready after")
        key = subprocess.check_output(["sh", "-c", f"{lines[number]}; echo $KEY"], text=True).strip()
        url = re.search(r"status page +(http://127.0.0.1:\d+/);", "\n".join(lines))[1]
        assert get(f"{url}keys", key)[0]["name"] == "first start"
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE_S) == 0
        assert b"serve: stopped" in os.read(ours, 10_000)
    finally:
        running.kill()
        running.wait()
        os.close(ours)


@pytest.mark.slow
def test_log_holds_no_key_and_names_the_file_that_does(work, tmp_path):
    running = start(work, tmp_path / "state", subprocess.PIPE)
    try:
        lines = lines_until_ready(running.stderr.readline)
        paste = next(line for line in lines if "export KEY=" in line)
        key = subprocess.check_output(["sh", "-c", f"{paste}; echo $KEY"], text=True).strip()
        url = re.search(r"status page +(http://127.0.0.1:\d+/);", "\n".join(lines))[1]
        assert get(f"{url}keys", key)[0]["name"] == "first start"
    finally:
        running.kill()
        running.wait()
        running.stderr.close()
    file = tmp_path / "state" / "operator.key"
    assert str(file) in paste and file.read_text().strip() == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in "".join(lines)


@pytest.mark.slow
def test_only_the_owner_can_read_the_state(work, tmp_path):
    """Files of a release before, which others could read, are mended at the start."""
    state = tmp_path / "state"
    (state / "events").mkdir(parents=True)
    (state / "old.txt").touch()
    for path, mode in ((state / "old.txt", 0o644), (state / "events", 0o755), (state, 0o755)):
        path.chmod(mode)
    with serving(work, "--generate", "false", "--state", str(state)) as (bids, _, running, _):
        bid_and_show(bids, 1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0
    paths = [state, *state.rglob("*")]
    assert len(paths) > 20
    open_to_others = [path for path in paths if path.stat().st_mode & 0o077]
    assert open_to_others == []


@pytest.mark.slow
def test_killed_bidder_continues_elsewhere_from_its_backup(work, tmp_path, capsys):
    with serving(work, "--generate", "false") as (bids, manages, running, log):
        run = ["--work", str(work), "--run", "r"]
        assert main(["serve", "key", *run, "--name", "Bob"]) == 0
        key = capsys.readouterr().out.strip()
        for number in range(20):
            bid_and_show(bids, number)
        assert main(["serve", "key", *run, "--name", "Ada"]) == 0
        another = capsys.readouterr().out.strip()
        before = spent(manages, another)
        assert sum(impressions for impressions, _ in before.values()) == 20
        assert main(["serve", "backup", *run, "--to", str(tmp_path / "backup")]) == 0
        bid_and_show(bids, 20)  # later than the backup
        os.kill(running.pid, signal.SIGKILL)
    state = str(tmp_path / "elsewhere")
    assert main(["serve", "restore", *run, "--backup", str(tmp_path / "backup")]) == 2
    assert "move it away first" in capsys.readouterr().err
    assert main(["serve", "restore", *run, "--backup", str(tmp_path / "backup"), "--state", state]) == 0
    with serving(work, "--generate", "false", "--state", state) as (bids, manages, _, log):
        assert "operator's key" not in log.read_text(), "Bob's and Ada's are in force"
        assert spent(manages, key) == before
        bid_and_show(bids, 21)
        assert sum(impressions for impressions, _ in spent(manages, another).values()) == 21
