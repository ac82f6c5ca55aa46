"""Limits at the door: what is refused, what is told of what is left, and to whom."""

import re
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest

from ingress.deps import Deps
from ingress.limits import AddressLimit, as_duration, limit_headers, subscriber, turnstile
from shared.domain.inference import Dialect
from shared.domain.limits import MINUTE_US, KeyLimits
from shared.errors import RateLimited
from shared.limiting import Standing
from tests.ingress.conftest import OpenApp, SignUp

# nobody works here: calls in the background are accepted, and wait
BODY: dict[str, Any] = {
    "model": "gpt-5-5",
    "max_tokens": 400,
    "messages": [{"role": "user", "content": "x" * 400}],
    "background": True,
}
PATHS = ("/v1/inference", "/v1/chat/completions", "/v1/messages")


async def limited(owner_url: str, sign_up: SignUp, **limits: int) -> dict[str, str]:
    """A fresh key with these limits."""
    new = await sign_up()
    connection = await asyncpg.connect(owner_url)
    for column, limit in limits.items():
        await connection.execute(
            f"UPDATE api_keys SET {column} = $2 WHERE tenant_id = $1::uuid", new["tenant_id"], limit
        )
    await connection.close()
    auth: dict[str, str] = new["auth"]
    return auth


async def call(
    client: httpx.AsyncClient, auth: dict[str, str], path: str = PATHS[0], **more: str
) -> httpx.Response:
    return await client.post(path, json=BODY, headers=auth | more)


@pytest.mark.parametrize("path", PATHS)
async def test_one_call_too_many_is_told_when_to_come_again(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str, path: str
) -> None:
    auth = await limited(owner_url, sign_up, requests_per_minute=2)
    names = (
        [f"anthropic-ratelimit-requests-{part}" for part in ("limit", "remaining", "reset")]
        if path == "/v1/messages"
        else [f"x-ratelimit-{part}-requests" for part in ("limit", "remaining", "reset")]
    )
    for left in ("1", "0"):
        taken = await call(client, auth, path)
        assert taken.status_code == 202, taken.text
        assert [taken.headers[name] for name in names[:2]] == ["2", left]
    refused = await call(client, auth, path)
    assert refused.status_code == 429, refused.text
    assert [refused.headers[name] for name in names[:2]] == ["2", "0"]
    seconds, ms = int(refused.headers["retry-after"]), int(refused.headers["retry-after-ms"])
    assert 0 < ms <= 30_000
    assert seconds - 1 < ms / 1000 <= seconds
    assert "rate_limit" in refused.text or "rate_limited" in refused.text
    # it was never accepted
    assert "x-ainfera-inference-id" not in refused.headers
    reset = refused.headers[names[2]]
    if path == "/v1/messages":
        at = datetime.strptime(reset, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert at > datetime.now(UTC)
    else:
        assert re.fullmatch(r"\d+(\.\d+)?s|1m0s", reset)


async def test_a_key_without_limits_hears_of_none(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    taken = await call(client, new["auth"])
    assert taken.status_code == 202
    assert not [name for name in taken.headers if "ratelimit" in name or "concurrent" in name]


async def test_the_settings_hold_for_keys_without_limits_of_their_own(
    open_app: OpenApp, sign_up: SignUp, owner_url: str
) -> None:
    new = await sign_up()
    own = await limited(owner_url, sign_up, requests_per_minute=0)
    async with open_app(requests_per_minute=1, streams_per_key=9) as (client, _):
        assert (await call(client, new["auth"])).status_code == 202
        assert (await call(client, new["auth"])).status_code == 429
        for _ in range(2):
            taken = await call(client, own)
            assert taken.status_code == 202
            assert "x-ratelimit-limit-requests" not in taken.headers
            assert taken.headers["x-ainfera-concurrent-limit"] == "9"


async def test_tokens_are_reserved_by_what_a_call_may_use(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    auth = await limited(owner_url, sign_up, tokens_per_minute=1_000)
    taken = await call(client, auth)
    # a hundred in, four hundred out at most, and what stands around them
    assert 400 <= int(taken.headers["x-ratelimit-remaining-tokens"]) < 500
    refused = await call(client, auth)
    assert refused.status_code == 429
    assert refused.json()["detail"]["limit"] == "tokens" or refused.json()["limit"] == "tokens"


async def test_calls_at_a_time(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str, deps: Deps
) -> None:
    auth = await limited(owner_url, sign_up, concurrent_calls=1)
    taken = await call(client, auth)
    assert taken.headers["x-ainfera-concurrent-remaining"] == "0"
    refused = await call(client, auth)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    job = taken.json()["inference_id"]
    await deps.redis.delete(f"{{ainfera:inference}}:job:{job}")  # as its end does
    assert (await call(client, auth)).status_code == 202


async def test_a_repeat_under_an_idempotency_key_is_no_new_call(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    auth = await limited(owner_url, sign_up, requests_per_minute=1)
    first = await call(client, auth, **{"idempotency-key": "one"})
    for _ in range(2):
        again = await call(client, auth, **{"idempotency-key": "one"})
        assert (again.status_code, again.json()) == (202, first.json())
    refused = await call(client, auth, **{"idempotency-key": "two"})
    assert refused.status_code == 429
    # nothing was kept of it: the key is free
    connection = await asyncpg.connect(owner_url)
    kept = await connection.fetchval(
        "SELECT count(*) FROM kept_calls WHERE inference_id <> $1::uuid AND tenant_id ="
        " (SELECT tenant_id FROM kept_calls WHERE inference_id = $1::uuid)",
        first.json()["inference_id"],
    )
    await connection.close()
    assert kept == 0


def test_what_is_left_is_told_in_the_vendors_words() -> None:
    limits = KeyLimits(requests_per_minute=60, tokens_per_minute=1000)
    standing = Standing(limits, "", 0, 3 * MINUTE_US, 10 * MINUTE_US, 0)
    assert limit_headers(standing, Dialect.OPENAI) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "57",
        "x-ratelimit-reset-requests": "3s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "990",
        "x-ratelimit-reset-tokens": "600ms",
    }
    assert limit_headers(standing, Dialect.NATIVE) == limit_headers(standing, Dialect.OPENAI)


@pytest.mark.parametrize(
    ("us", "told"),
    [
        *((0, "0ms"), (1, "1ms"), (12_000, "12ms"), (1_500_000, "1.5s"), (999_001, "1s")),
        *((60_000_000, "1m0s"), (90_250_000, "1m30.25s"), (59_999_999, "1m0s")),
    ],
)
def test_durations_are_as_go_writes_them(us: int, told: str) -> None:
    assert as_duration(us) == told


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_come_so_often_and_another_is_not_concerned() -> None:
    clock = Clock()
    limit = AddressLimit(3, clock)
    for _ in range(3):
        limit.take("192.0.2.1")
    with pytest.raises(RateLimited) as refused:
        limit.take("192.0.2.1")
    assert refused.value.retry_after == 20
    limit.take("192.0.2.2")
    clock.now += 19.9
    with pytest.raises(RateLimited):
        limit.take("192.0.2.1")
    clock.now += 0.1
    limit.take("192.0.2.1")


def test_one_subscriber_is_one_however_many_addresses_it_has() -> None:
    assert subscriber("2001:db8:1:2::1") == subscriber("2001:db8:1:2:ffff::9")
    assert subscriber("2001:db8:1:2::1") != subscriber("2001:db8:1:3::1")
    assert subscriber("::ffff:192.0.2.1") == "192.0.2.1"
    assert subscriber("a socket") == "a socket"


def test_only_so_many_addresses_are_remembered() -> None:
    limit = AddressLimit(1, Clock(), most=2)
    for address in ("a", "b", "c", "a"):  # by the fourth, the first is forgotten
        limit.take(address)
    with pytest.raises(RateLimited):
        limit.take("a")


async def test_strangers_are_limited_where_they_cost_work(
    open_app: OpenApp, sign_up: SignUp
) -> None:
    new = await sign_up()
    verify = f"/v1/audit/{new['agent_id']}/verify"
    signup: Any = {"json": {"agent_handle": "one"}}
    changes: Any = {"public_requests_per_minute": 2, "signups_per_minute": 1}
    async with open_app(**changes) as (client, _):
        assert (await client.post("/v1/agents/signup", **signup)).status_code == 200
        again = await client.post("/v1/agents/signup", **signup)
        assert (again.status_code, again.json()["code"]) == (429, "rate_limited")
        assert int(again.headers["retry-after"]) > 50
        assert (await client.get(verify)).status_code == 200
        assert (await client.get("/v1/audit/public")).status_code == 200
        assert (await client.get(verify)).status_code == 429
        for path in ("/health", "/v1/models", "/v1/providers"):
            assert (await client.get(path)).status_code == 200
        # who has a key is known, and who has the operators' is trusted
        wallet = f"/v1/wallets/{new['agent_id']}"
        assert (await client.get(wallet, headers=new["auth"])).status_code == 200
    async with open_app(**changes, signup_mode="internal") as (client, deps):
        key = deps.settings.internal_key.get_secret_value()
        for _ in range(2):
            more: Any = {
                "json": {"agent_handle": "two"},
                "headers": {"x-ainfera-internal-key": key},
            }
            assert (await client.post("/v1/agents/signup", **more)).status_code == 200


async def test_who_has_no_limits_pays_nothing_for_them(sign_up: SignUp, deps: Deps) -> None:
    caller = await deps.keyring.find((await sign_up())["api_key"], None)
    assert caller.limits is None
    assert turnstile(caller, None) is None  # type: ignore[arg-type]
