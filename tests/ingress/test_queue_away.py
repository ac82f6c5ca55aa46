"""A call whose enqueue was not answered: nobody knows whether it was queued, and that is said."""

import asyncio

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import TimeoutError as RedisSilent

from shared.queue import InferenceQueue
from tests.ingress.conftest import SignUp


@pytest.mark.parametrize("error", [RedisAway, RedisSilent, ConnectionResetError])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/inference", 503), ("/v1/chat/completions", 503), ("/v1/messages", 529)],
)
async def test_what_is_not_known_is_not_promised(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    path: str,
    status: int,
) -> None:
    async def enqueue(*_: object, **__: object) -> bool:
        raise error("the connection broke")

    new = await sign_up()
    monkeypatch.setattr(InferenceQueue, "enqueue", enqueue)
    body = {"model": "gpt-5.5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]}
    answer = await client.post(path, json=body, headers=new["auth"])
    assert answer.status_code == status
    assert "nothing was charged" not in answer.text
    for truth in ("may or may not have been queued", "charged once", "wallet"):
        assert truth in answer.text
    assert answer.headers["retry-after"]


async def test_a_queue_that_stands_still_keeps_no_client_waiting(
    client: httpx.AsyncClient, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def stand_still(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(3600)

    new = await sign_up()
    monkeypatch.setattr("ingress.opening.CALL_PATIENCE_S", 0.1)
    monkeypatch.setattr("ingress.inference.STOP_PATIENCE_S", 0.1)
    monkeypatch.setattr(InferenceQueue, "enqueue", stand_still)
    monkeypatch.setattr(InferenceQueue, "stop", stand_still)
    body = {"model": "gpt-5.5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]}
    async with asyncio.timeout(10):
        answer = await client.post("/v1/inference", json=body, headers=new["auth"])
    assert (answer.status_code, asked) == (503, 2)
    assert "may or may not have been queued" in answer.text
