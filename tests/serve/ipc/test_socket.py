"""Requests over a socket: concurrent, bounded by a timeout, and served again after the server was away."""

import asyncio
import threading

import msgspec
import pytest

from leadre.errors import PeerError, RefusedError
from leadre.serve.ipc import connection
from leadre.serve.ipc import socket as ipc
from leadre.serve.ipc.socket import Client

GENEROUS_S = 60.0  # guards against a hang; no reply takes this long


class WaitRequest(msgspec.Struct, tag="wait"):
    seconds: float
    name: str


class WaitReply(msgspec.Struct, tag="wait_reply"):
    name: str


async def handle(request):
    await asyncio.sleep(request.seconds)
    return WaitReply(request.name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "peer.sock"


def test_replies_arrive_as_soon_as_they_are_ready(path):
    async def main():
        quick_is_done = asyncio.Event()

        async def handle_in_order(request):
            if request.name == "slow":
                await quick_is_done.wait()
            return WaitReply(request.name)

        server = await ipc.serve(path, WaitRequest, handle_in_order)
        client = Client(path, WaitReply)
        names = []

        async def request(name):
            names.append((await client.request(WaitRequest(0.0, name), timeout_s=GENEROUS_S)).name)
            if name == "quick":
                quick_is_done.set()

        await asyncio.gather(request("slow"), request("quick"))
        await client.close()
        server.close()
        return names

    assert asyncio.run(main()) == ["quick", "slow"]


def test_late_reply_raises_and_is_not_taken_for_the_next_one(path):
    async def main():
        server = await ipc.serve(path, WaitRequest, handle)
        client = Client(path, WaitReply)
        with pytest.raises(PeerError, match=r"no reply within 0\.05"):
            await client.request(WaitRequest(0.3, "slow"), timeout_s=0.05)
        assert (await client.request(WaitRequest(0.0, "next"), timeout_s=GENEROUS_S)).name == "next"
        await client.close()
        server.close()

    asyncio.run(main())


def test_connection_that_is_open_when_the_process_ends_is_no_error(path, caplog):
    async def main():
        server = await ipc.serve(path, WaitRequest, handle)
        client = Client(path, WaitReply)
        await client.request(WaitRequest(0.0, "last"), timeout_s=GENEROUS_S)
        server.close()

    asyncio.run(main())
    assert caplog.messages == []


def test_client_reconnects_to_a_server_that_was_away(path):
    async def main():
        client = Client(path, WaitReply)
        with pytest.raises(PeerError):
            await client.request(WaitRequest(0.0, "early"), timeout_s=1)
        client._not_before_s = asyncio.get_running_loop().time() + GENEROUS_S
        with pytest.raises(PeerError, match="a moment ago"):  # the client does not connect for every request
            await client.request(WaitRequest(0.0, "early"), timeout_s=1)
        client._not_before_s = 0.0
        server = await ipc.serve(path, WaitRequest, handle)
        assert (await client.request(WaitRequest(0.0, "now"), timeout_s=GENEROUS_S)).name == "now"
        await client.close()
        server.close()

    asyncio.run(main())


def test_failed_connection_is_not_repeated_before_the_retry_interval(path):
    async def main():
        client = Client(path, WaitReply)
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(PeerError):
            await client.request(WaitRequest(0.0, "early"), timeout_s=1)
        assert client._not_before_s >= before_s + ipc.RETRY_S

    asyncio.run(main())


def test_thread_without_event_loop_sends_one_request(path):
    is_ready = threading.Event()
    is_over = threading.Event()

    async def main():
        server = await ipc.serve(path, WaitRequest, handle)
        is_ready.set()
        await asyncio.to_thread(is_over.wait, GENEROUS_S)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert is_ready.wait(GENEROUS_S)
    assert ipc.request_once(path, WaitRequest(0.0, "once"), WaitReply, timeout_s=GENEROUS_S) == WaitReply("once")
    with pytest.raises(PeerError):
        ipc.request_once(path, WaitRequest(1.0, "late"), WaitReply, timeout_s=0.05)
    is_over.set()
    thread.join()
    with pytest.raises(PeerError):
        ipc.request_once(path.with_name("absent.sock"), WaitRequest(0.0, "x"), WaitReply, timeout_s=0.5)


def test_message_above_the_limit_is_refused_to_its_producer_alone(path, monkeypatch):
    """Requests and replies alike; requests that share the connection go on."""
    monkeypatch.setattr(connection, "MAX_FRAME_BYTES", 1000)

    async def main():
        server = await ipc.serve(path, WaitRequest, handle_name)
        client = Client(path, WaitReply)
        pending = asyncio.create_task(client.request(WaitRequest(0.2, "small"), timeout_s=GENEROUS_S))
        with pytest.raises(RefusedError, match=r"a message of 1,0.. bytes"):
            await client.request(WaitRequest(0.0, "x" * 1000), timeout_s=GENEROUS_S)
        with pytest.raises(RefusedError, match=r"peer\.sock: a message of 9,0.. bytes"):
            await client.request(WaitRequest(0.0, "y" * 900), timeout_s=GENEROUS_S)
        assert (await pending).name == "small" * 10
        with pytest.raises(RefusedError, match="a message of"):
            await asyncio.to_thread(
                ipc.request_once, path, WaitRequest(0.0, "y" * 900), WaitReply, timeout_s=GENEROUS_S
            )
        await client.close()
        server.close()

    async def handle_name(request):
        await asyncio.sleep(request.seconds)
        return WaitReply(request.name * 10)

    asyncio.run(main())


def test_error_in_the_server_fails_its_own_request_alone(path, capsys):
    async def main():
        async def fail_at_bad(request):
            await asyncio.sleep(request.seconds)
            if request.name == "bad":
                raise OverflowError("int too big")
            return WaitReply(request.name)

        server = await ipc.serve(path, WaitRequest, fail_at_bad)
        client = Client(path, WaitReply)
        pending = asyncio.create_task(client.request(WaitRequest(0.2, "good"), timeout_s=GENEROUS_S))
        with pytest.raises(RefusedError, match="OverflowError: int too big"):
            await client.request(WaitRequest(0.0, "bad"), timeout_s=GENEROUS_S)
        with pytest.raises(RefusedError, match="Expected `str`"):
            await client.request(WaitRequest(0.0, 7), timeout_s=GENEROUS_S)
        assert (await pending).name == "good"
        await client.close()
        server.close()

    asyncio.run(main())
    assert "OverflowError" in capsys.readouterr().err
