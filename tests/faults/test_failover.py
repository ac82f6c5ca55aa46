"""Valkey's master is killed under a running fleet: its replica takes over and calls go on."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool

from shared.embedded import Servers, postgres_url
from shared.valkey import connection_pool, open_valkey
from tests.e2e.stack import Stack, running_stack
from tests.faults.sentinels import Watched, watched_valkey

SIMULATED = {"SIMULATED_FIRST_TOKEN_MS": "0", "SIMULATED_TOKEN_MS": "0"}
QUESTION = {"model": "ainfera-inference", "messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_valkey(tmp_path_factory.mktemp("sentinels")) as watched:
        yield watched


@pytest.fixture(scope="module")
def stack(
    valkey: Watched,
    servers: Servers,
    database_name: str,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    superuser = postgres_url(servers.sockets, "postgres", database_name)
    home = tmp_path_factory.mktemp("failover")
    with running_stack(home, database_url, superuser, valkey.url, SIMULATED) as running:
        yield running


@pytest.fixture(scope="module")
def api_key(stack: Stack) -> str:
    signed_up = stack.request("POST", "/v1/agents/signup", json={"agent_handle": "failover"})
    key: str = signed_up.json()["api_key"]
    return key


def ask(stack: Stack, api_key: str) -> int:
    """One call; the status of its answer, or 0 if none came in the time that a client waits."""
    headers = {"authorization": f"Bearer {api_key}"}
    url = f"{stack.url}/v1/inference"
    try:
        return httpx.post(url, json=QUESTION, headers=headers, verify=False, timeout=8).status_code
    except httpx.ReadTimeout:
        return 0


def test_the_fleet_goes_on_with_the_new_master(stack: Stack, valkey: Watched, api_key: str) -> None:
    assert ask(stack, api_key) == 200

    killed = valkey.kill_master()
    began = time.monotonic()
    refused: list[int] = []
    while (status := ask(stack, api_key)) != 200:
        refused.append(status)
        assert time.monotonic() - began < 60, f"the fleet did not come back: {refused}"
        time.sleep(0.1)
    took = time.monotonic() - began

    # what could not be taken was refused as the contract says; nobody was left without an answer
    assert set(refused) <= {503}
    assert valkey.master_port() != killed
    assert [name for name, process in stack.processes.items() if process.poll() is not None] == []
    assert [ask(stack, api_key) for _ in range(5)] == [200] * 5
    print(f"calls are answered {took:.1f} s after kill -9")  # noqa: T201


async def test_a_client_follows_the_sentinel(valkey: Watched) -> None:
    async with open_valkey(valkey.url) as client:
        assert await client.ping()
        info: dict[str, Any] = await client.info("replication")
    assert info["role"] == "master"


def test_what_the_url_says() -> None:
    pool = connection_pool(
        "rediss+sentinel://me:p%40ss@a:26380,[::1],b/the-master/3?sentinel_password=other"
    )
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "the-master"
    told = pool.connection_kwargs
    assert (told["username"], told["password"], told["db"]) == ("me", "p@ss", 3)
    sentinels = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in sentinels] == [
        ("a", 26380),
        ("::1", 26379),
        ("b", 26379),
    ]
    assert {each["password"] for each in sentinels} == {"other"}


@pytest.mark.parametrize(
    "url", ["redis+sentinel://host:1", "redis+sentinel:///master", "redis+sentinel://h/m/x"]
)
def test_a_url_that_names_no_master_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL"):
        connection_pool(url)


def test_a_socket_gets_no_probes_of_tcp() -> None:
    assert (
        "socket_keepalive" not in connection_pool("unix:///run/valkey.sock?db=1").connection_kwargs
    )
    assert connection_pool("redis://host:1/2").connection_kwargs["socket_keepalive"]
    assert isinstance(open_valkey("redis://host"), Redis)
