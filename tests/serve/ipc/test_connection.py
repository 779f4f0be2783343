"""Messages arrive whole and in order, however the stream is cut, and a server reads a bounded amount of work."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.ipc import socket as ipc
from leadre.serve.ipc.connection import LENGTH_BYTES, MAX_FRAME_BYTES, Connection
from leadre.serve.ipc.socket import Client

GENEROUS_S = 60.0  # guards against a hang


class Request(msgspec.Struct, tag="request"):
    number: int
    filling: bytes = b""


class Reply(msgspec.Struct, tag="reply"):
    number: int


@given(messages=st.lists(st.binary(max_size=40)), cuts=st.lists(st.integers(1, 30), min_size=1))
def test_messages_are_whole_and_in_order_wherever_the_stream_is_cut(messages, cuts):
    received = []
    connection = Connection(received.append, lambda: None)
    stream = b"".join(len(message).to_bytes(LENGTH_BYTES, "big") + message for message in messages)
    position = 0
    while position < len(stream):
        size = cuts[position % len(cuts)]
        connection.data_received(stream[position : position + size])
        position += size
    assert received == messages


def test_frame_that_no_process_of_ours_sends_closes_its_connection(tmp_path):
    async def main():
        path = tmp_path / "peer.sock"
        server = await ipc.serve(path, Request, handle)
        for head in ((MAX_FRAME_BYTES + 1).to_bytes(LENGTH_BYTES, "big"), b"\0\0\0\1\xc1"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(head)
            with pytest.raises(ConnectionError):
                assert await asyncio.wait_for(reader.read(), GENEROUS_S) == b""
                raise ConnectionResetError  # closed in order
            writer.close()
        server.close()

    async def handle(request):
        return Reply(request.number)

    asyncio.run(main())


def test_server_leaves_requests_unread_while_many_bytes_of_a_client_have_no_reply(tmp_path, monkeypatch):
    """A backlog waits at its sender, which sees it and refuses newcomers, and not in the server's memory."""
    monkeypatch.setattr(ipc, "MAX_UNANSWERED_BYTES", 1 << 20)
    filling = bytes(256 << 10)
    count = 40

    async def main():
        begun = []
        may_reply = asyncio.Event()

        async def handle(request):
            begun.append(request.number)
            await may_reply.wait()
            return Reply(request.number)

        path = tmp_path / "peer.sock"
        server = await ipc.serve(path, Request, handle)
        client = Client(path, Reply)
        other = Client(path, Reply)
        monkeypatch.setattr(ipc, "MAX_UNREAD_BYTES", count * (1 << 20))
        requests = [client.request(Request(number, filling), timeout_s=GENEROUS_S) for number in range(count)]
        pending = asyncio.gather(*requests)
        while len(begun) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # longer than a busy server needs for the rest
        assert begun == list(range(len(begun)))
        assert len(begun) <= 8, "those beyond the bound were in the same read"
        newcomer = asyncio.create_task(other.request(Request(count), timeout_s=GENEROUS_S))
        while begun[-1] != count:
            await asyncio.sleep(0.01)
        may_reply.set()
        assert [reply.number for reply in await pending] == list(range(count))
        assert (await newcomer).number == count
        await client.close()
        await other.close()
        server.close()

    asyncio.run(main())


def test_requests_of_a_client_that_has_gone_are_cancelled(tmp_path):
    async def main():
        cancelled = asyncio.Event()
        begun = asyncio.Event()

        async def handle(request):
            begun.set()
            try:
                await asyncio.sleep(GENEROUS_S)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        path = tmp_path / "peer.sock"
        server = await ipc.serve(path, Request, handle)
        client = Client(path, Reply)
        pending = asyncio.create_task(client.request(Request(1), timeout_s=GENEROUS_S))
        await asyncio.wait_for(begun.wait(), GENEROUS_S)
        await client.close()
        await asyncio.wait_for(cancelled.wait(), GENEROUS_S)
        with pytest.raises(ipc.PeerError):
            await pending
        server.close()

    asyncio.run(main())
