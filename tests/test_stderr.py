"""Messages of a process whose stderr nothing reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

from leadre.stderr import QueuedText

PATIENCE_S = 60.0


def read_all(descriptor):
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def test_text_is_written_in_order():
    reading, writing = os.pipe()
    stream = QueuedText(writing)
    for number in range(1000):
        print(f"line {number}", file=stream)
    assert stream.drain(PATIENCE_S)
    os.close(writing)
    assert read_all(reading) == "".join(f"line {number}\n" for number in range(1000))
    os.close(reading)


def test_full_pipe_blocks_no_writer_and_dropped_text_is_counted():
    reading, writing = os.pipe()
    stream = QueuedText(writing, max_chars=10_000)
    for number in range(3_000):
        stream.write(f"{number:099}\n")  # 300 kB; a pipe holds 64 kB
    parts = []
    while not stream.drain(0.01):
        parts.append(os.read(reading, 1 << 16))
    stream.write("after\n")
    assert stream.drain(PATIENCE_S)
    os.close(writing)
    lines = (b"".join(parts).decode() + read_all(reading)).splitlines()
    assert lines[0] == f"{0:099}" and lines[-1] == "after"
    dropped = re.findall(r"leadre: ([\d,]+) messages dropped, as nothing read stderr", "\n".join(lines))
    assert dropped
    assert len(lines) - len(dropped) - 1 + sum(int(count.replace(",", "")) for count in dropped) == 3_000
    os.close(reading)


def test_process_with_a_full_pipe_works_and_ends():
    """All messages of Python are queued: print, logging, tracebacks."""
    code = """
    import logging, sys
    from leadre import progress, stderr
    stderr.decouple()
    for number in range(3_000):
        progress.say("x" * 100)
        logging.getLogger("other").error("y" * 100)
        print("z" * 100, file=sys.stderr)
    print("done", flush=True)
    raise ValueError("a traceback")
    """
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout.readline() == b"done\n"
    assert running.wait(PATIENCE_S) == 1
    running.stdout.close()
    running.stderr.close()


def test_last_messages_of_a_process_are_written():
    code = "from leadre import progress, stderr; stderr.decouple(); progress.say('last words')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stderr == "last words\n"


def test_dropped_messages_of_a_serving_process_are_a_metric(tmp_path):
    code = """
    import sys
    from leadre.serve.processes import process_setup
    process_setup.set_up()
    for number in range(40):
        print("x" * (1 << 16), file=sys.stderr)
    from leadre import telemetry
    print(telemetry.exposition().decode())
    """
    reading, writing = os.pipe()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=writing, env=environment, text=True, timeout=PATIENCE_S, check=True
    )
    os.close(writing)
    os.close(reading)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("leadre_stderr_dropped_total")]
    assert float(line.split()[1]) > 0
