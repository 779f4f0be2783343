"""Questions over a socket: answered side by side, never a hang, and found again after the server was away."""

import asyncio
import threading

import msgspec
import pytest

from leadre.errors import PeerError
from leadre.serve.ipc import socket as ipc
from leadre.serve.ipc.socket import Client


class Wait(msgspec.Struct, tag="wait"):
    seconds: float
    name: str


class Waited(msgspec.Struct, tag="waited"):
    name: str


async def answer(question):
    await asyncio.sleep(question.seconds)
    return Waited(question.name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "peer.sock"


def test_answers_come_as_they_are_ready(path):
    async def main():
        server = await ipc.serve(path, Wait, answer)
        client, told = Client(path, Waited), []

        async def ask(seconds, name):
            told.append((await client.ask(Wait(seconds, name), timeout_s=5)).name)

        await asyncio.gather(ask(0.2, "slow"), ask(0.0, "quick"))
        await client.close()
        server.close()
        return told

    assert asyncio.run(main()) == ["quick", "slow"]


def test_a_slow_answer_is_an_error_in_time_and_the_next_one_is_its_own(path):
    async def main():
        server = await ipc.serve(path, Wait, answer)
        client = Client(path, Waited)
        with pytest.raises(PeerError, match=r"no answer within 0\.05"):
            await client.ask(Wait(0.3, "slow"), timeout_s=0.05)
        assert (await client.ask(Wait(0.0, "next"), timeout_s=5)).name == "next"
        await client.close()
        server.close()

    asyncio.run(main())


def test_a_server_that_is_away_is_found_again(path):
    async def main():
        client = Client(path, Waited)
        with pytest.raises(PeerError):
            await client.ask(Wait(0.0, "early"), timeout_s=1)
        with pytest.raises(PeerError, match="a moment ago"):  # not tried again for every question
            await client.ask(Wait(0.0, "early"), timeout_s=1)
        server = await ipc.serve(path, Wait, answer)
        await asyncio.sleep(ipc.RETRY_S)
        assert (await client.ask(Wait(0.0, "now"), timeout_s=5)).name == "now"
        await client.close()
        server.close()

    asyncio.run(main())


def test_a_thread_may_ask_once(path):
    ready, over = threading.Event(), threading.Event()

    async def main():
        server = await ipc.serve(path, Wait, answer)
        ready.set()
        await asyncio.to_thread(over.wait, 10)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    assert ipc.ask_once(path, Wait(0.0, "once"), Waited, timeout_s=5) == Waited("once")
    with pytest.raises(PeerError):
        ipc.ask_once(path, Wait(1.0, "late"), Waited, timeout_s=0.05)
    over.set()
    thread.join()
    with pytest.raises(PeerError):
        ipc.ask_once(path.with_name("nobody.sock"), Wait(0.0, "x"), Waited, timeout_s=0.5)
