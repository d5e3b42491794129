"""A real WebSocket client: Python's `websockets`, through the gateway to the echo of the sample backend."""

import asyncio
import hashlib
import json
import os
import time

import pytest
import requests
from harness import bearer, eventually
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def key(anything):
    return anything.key("anything:use")


def socket(gateway, key, path="/ws", **options):
    headers = bearer(key) if key else {}
    options.setdefault("max_size", None)
    return connect(f"ws://{gateway.address}{path}", additional_headers=headers, **options)


def test_text_binary_ping_and_close(anything, key):
    async def talk():
        async with socket(anything, key) as ws:
            for message in ("hello", "grüße", b"\x00\xff", "", b"x" * 125, b"x" * 126, b"x" * 65535, b"x" * 65536):
                await ws.send(message)
                assert await ws.recv() == message
            await asyncio.wait_for(await ws.ping(b"are you there"), 5)
            await ws.send(["in ", "three ", "fragments"])
            assert await ws.recv() == "in three fragments"
        assert ws.close_code == CloseCode.NORMAL_CLOSURE

    asyncio.run(talk())


def test_the_backend_may_close_and_name_a_subprotocol(anything, key):
    async def talk():
        async with socket(anything, key, "/ws?close=1&subprotocol=chat", subprotocols=["chat"]) as ws:
            assert ws.subprotocol == "chat"
            await ws.send("last words")
            assert await ws.recv() == "last words"
            with pytest.raises(ConnectionClosed) as closed:
                await ws.recv()
            assert closed.value.rcvd.code == CloseCode.NORMAL_CLOSURE

    asyncio.run(talk())


def test_a_refusal_is_an_answer_that_can_be_read(anything, key):
    async def talk():
        other = anything.key("models:read")
        for presented, status, code in ((None, 401, "missing_key"), (other, 403, "insufficient_scope")):
            with pytest.raises(InvalidStatus) as refused:
                async with socket(anything, presented):
                    pass
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body)["code"] == code
        # A path that is no WebSocket of the backend's.
        with pytest.raises(InvalidStatus) as refused:
            async with socket(anything, key, "/healthz"):
                pass
        assert refused.value.response.status_code == 200

    asyncio.run(talk())


@pytest.mark.parametrize("size", [MEBIBYTE, 64 * MEBIBYTE])
def test_64_mebibytes_both_ways(anything, key, size):
    async def talk():
        async with socket(anything, key, ping_interval=None) as ws:
            chunk = os.urandom(size)
            sent, received = hashlib.blake2b(), hashlib.blake2b()

            async def send():
                for _ in range(64 * MEBIBYTE // size):
                    sent.update(chunk)
                    await ws.send(chunk)

            sending = asyncio.create_task(send())
            for _ in range(64 * MEBIBYTE // size):
                received.update(await ws.recv())
            await sending
            assert sent.digest() == received.digest()

    asyncio.run(talk())


def test_a_hundred_at_once_are_counted_once_each_and_end_with_their_key(anything):
    key = anything.key("anything:use")
    reader = anything.key("api-keys:read")

    async def talk():
        sockets = await asyncio.gather(*(socket(anything, key).__aenter__() for _ in range(100)))
        for round in range(3):
            await asyncio.gather(*(ws.send(f"{round} {number}") for number, ws in enumerate(sockets)))
            echoed = await asyncio.gather(*(ws.recv() for ws in sockets))
            assert echoed == [f"{round} {number}" for number in range(100)]
        await asyncio.to_thread(anything.cli, "keys", "delete", key["id"])
        deleted = time.monotonic()
        await asyncio.gather(*(ws.wait_closed() for ws in sockets))
        assert time.monotonic() - deleted < 1.0
        # The gateway closes the connection; a Close frame of its own could come to stand within a frame of the backend's.
        assert {ws.close_code for ws in sockets} == {CloseCode.ABNORMAL_CLOSURE}
        with pytest.raises(InvalidStatus) as refused:
            async with socket(anything, key):
                pass
        assert refused.value.response.status_code == 401

    asyncio.run(talk())

    def counted():
        answer = requests.get(f"{anything.api}api-keys/{key['id']}/usage", headers=bearer(reader), timeout=5).json()
        # The last one came with a key that nobody knows any more.
        return (answer["successful"], answer["failed"]) == (100, 0)

    assert eventually(counted, within=5, every=0.5)
