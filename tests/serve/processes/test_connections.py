"""Limits of connections on a real server: long heads, silence, slow bodies, and more connections than it may have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import pytest
import uvicorn
import uvloop

from leadre.clock import SystemClock
from leadre.serve.processes import connections
from leadre.serve.processes.connections import Connections, Limits

PATIENCE_S = 60.0  # guards against a hang
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"


async def echo(scope, receive, send):
    """Responds with the request's body; uvicorn's lifespan is not used."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def served(app_of=lambda _guard: echo, **limits):
    """(guard, port) of a server with these limits."""
    guard = Connections(Limits(**limits), SystemClock())
    config = uvicorn.Config(
        app_of(guard),
        port=0,
        http=connections.protocol(guard),
        lifespan="off",
        log_level="error",
        timeout_keep_alive=600,
    )
    server = uvicorn.Server(config)
    sweeping = asyncio.create_task(guard.run())
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield guard, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        sweeping.cancel()


def run(test, **limits):
    """Run ``test(guard, connect)`` in an event loop as a bidder has.

    ``connect()`` opens a connection, (reader, writer), which is closed at the end.
    """

    async def main():
        async with asyncio.timeout(PATIENCE_S), served(**limits) as (guard, port):
            writers = []

            async def connect():
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                return reader, writer

            try:
                await test(guard, connect)
            finally:
                for writer in writers:
                    writer.close()
                for writer in writers:
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def answered(connection, data=REQUEST):
    """The status of the response to one request; 0 if the server hung up."""
    reader, writer = connection
    try:
        writer.write(data)
        line = await reader.readline()
        while line.strip() and await reader.readline() != b"\r\n":
            pass
        if line.startswith(b"HTTP/1.1 200"):
            await reader.readexactly(4)
    except ConnectionError:
        return 0
    return int(line.split()[1]) if line else 0


async def is_closed(connection):
    with contextlib.suppress(ConnectionError):
        return await connection[0].read() == b""
    return True


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\ncookie: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"cookie: xxxxxxxxxxxxxxxxxxxxxxx\r\n" * 5000, 431),
        (b"no request\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 90 + b"content-length: 4\r\n\r\nbody", 200),
    ],
)
def test_head_beyond_a_limit_is_refused(head, status):
    async def test(guard, connect):
        assert await answered(await connect(), head) == status
        assert await answered(await connect()) == 200

    run(test, url=4096, headers=100, head=8192)


def test_header_that_never_ends_is_refused_before_its_end():
    async def test(guard, connect):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                writer.write(b"x" * 4096)
                await writer.drain()
                await asyncio.sleep(0)
        assert await is_closed((reader, writer)) or writer.is_closing()
        assert not guard.all

    run(test, head=8192)


def test_silence_slow_heads_and_slow_bodies_are_closed_and_idle_connections_stay():
    async def test(guard, connect):
        idle = await connect()
        assert await answered(idle) == 200
        silent = await connect()
        slow_head = await connect()
        slow_head[1].write(b"GET / HTTP/1.1\r\nhost:")
        slow_body = await connect()
        slow_body[1].write(REQUEST[:-2])
        second_head = await connect()
        assert await answered(second_head) == 200
        second_head[1].write(b"\r\nGET")
        for connection in (silent, slow_head, slow_body, second_head):
            assert await is_closed(connection)
        assert await answered(idle) == 200

    run(test, head_s=0.3, body_s=0.3)


def test_silent_connections_leave_room_for_newcomers():
    async def test(guard, connect):
        working = []
        for _ in range(5):
            working.append(await connect())
            assert await answered(working[-1]) == 200
        silent = [await connect() for _ in range(100)]
        newcomer = await connect()
        assert await answered(newcomer) == 200
        assert len(guard.silent) <= guard.max_silent and len(guard.all) <= 16
        assert [await answered(connection) for connection in working] == [200] * 5
        assert await is_closed(silent[0])

    run(test, connections=16)


def test_newcomer_replaces_the_connection_that_has_been_idle_longest(monkeypatch):
    monkeypatch.setattr(connections, "EVICTED_AT_ONCE", 1)

    async def test(guard, connect):
        idle = []
        for _ in range(16):
            idle.append(await connect())
            assert await answered(idle[-1]) == 200
        assert await answered(idle[0]) == 200, "now the second has been idle for longest"
        assert await answered(await connect()) == 200
        assert await is_closed(idle[1])
        assert await answered(idle[0]) == 200

    run(test, connections=16)


def test_pipelined_requests_with_long_bodies_are_all_answered():
    async def test(guard, connect):
        reader, writer = await connect()
        body = b"x" * 60_000
        request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + body
        writer.write(request * 3 + b"GET / HTTP/1.1\r\n")
        await writer.drain()
        writer.write(b"host: x\r\n\r\n")
        for length in (60_000, 60_000, 60_000, 0):
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(length)) == length

    run(test, head=8192)


DATA_SEGMENTS_IN = 152  # offset of `tcpi_data_segs_in` in Linux's `struct tcp_info`


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counter of segments")
def test_head_and_body_of_a_response_arrive_in_one_segment():
    async def test(guard, connect):
        connection = await connect()
        client = connection[1].get_extra_info("socket")
        for number in range(1, 4):
            assert await answered(connection) == 200
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            assert int.from_bytes(info[DATA_SEGMENTS_IN : DATA_SEGMENTS_IN + 4], sys.byteorder) == number

    run(test)


@pytest.mark.parametrize(
    ("request_", "begin", "end"),
    [
        (b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200", b"\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200", b"\r\n\r\n"),
        (REQUEST.replace(b"host: x", b"connection: close"), b"HTTP/1.1 200", b"\r\n\r\nbody"),
        (b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", b"HTTP/1.1 200", b"\r\n\r\n"),
    ],
)
def test_response_without_a_body_and_the_last_one_are_sent_whole(request_, begin, end):
    async def test(guard, connect):
        reader, writer = await connect()
        writer.write(request_)
        received = await reader.readuntil(end)
        assert received.startswith(begin) and received.endswith(end)
        if b"close" in request_:
            assert await reader.read() == b""

    run(test)


def test_client_that_expects_100_continue_gets_it_before_its_body():
    async def test(guard, connect):
        reader, writer = await connect()
        writer.write(REQUEST.removesuffix(b"body").replace(b"host: x", b"host: x\r\nexpect: 100-continue"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"body")
        assert (await reader.readuntil(b"\r\n\r\nbody")).startswith(b"HTTP/1.1 200")

    run(test)


def test_response_to_a_pipelined_request_of_a_closed_connection_is_dropped(capsys):
    """uvicorn notes the end of a connection at its last request alone."""
    done = []

    def app_of(guard):
        async def app(scope, receive, send):
            for connection in list(guard.all):
                connection.close("reply_timeout")
            await asyncio.sleep(0.05)  # the protocol is told
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"late"})
            done.append(scope["path"])

        return app

    async def test(guard, connect):
        assert await answered(await connect(), REQUEST * 3) == 0
        while not done:
            await asyncio.sleep(0.01)

    run(test, app_of=app_of)
    assert "Traceback" not in capsys.readouterr().err
