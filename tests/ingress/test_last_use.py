"""When a key was last used is written down, later and for many keys at once."""

from collections.abc import Callable
from datetime import datetime

import asyncpg
import httpx

from ingress.auth import KeyCache
from ingress.last_use import LastUse
from shared.config import Settings
from shared.db import Database
from shared.keys import hash_api_key
from tests.ingress.conftest import OpenApp, SignUp


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def last_used(url: str, api_key: str) -> tuple[datetime | None, float]:
    """When that was, and how long ago in seconds."""
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "SELECT last_used_at, extract(epoch FROM clock_timestamp() - last_used_at)::float8 AS age"
        "  FROM api_keys WHERE key_hash = $1",
        hash_api_key(api_key),
    )
    await connection.close()
    assert row is not None
    return row["last_used_at"], row["age"]


async def test_uses_are_written_for_all_keys_with_their_own_times(
    sign_up: SignUp, make_settings: Callable[..., Settings], owner_url: str
) -> None:
    clock, db = Clock(), Database(make_settings())
    keyring = KeyCache(db, clock)
    noting = LastUse(keyring, db)
    early, late, never = [(await sign_up())["api_key"] for _ in range(3)]
    await keyring.find(early, None)
    clock.now += 30
    await keyring.find(late, None)
    await noting.flush()
    assert 30 <= (await last_used(owner_url, early))[1] < (await last_used(owner_url, late))[1] + 31
    assert (await last_used(owner_url, late))[1] < 30
    assert (await last_used(owner_url, never))[0] is None

    # a hit in memory is a use as well
    before = (await last_used(owner_url, early))[0]
    await keyring.find(early, None)
    await noting.flush()
    after = (await last_used(owner_url, early))[0]
    assert before is not None
    assert after is not None
    assert after > before
    # what another ingress saw later stands
    keyring.note_uses({hash_api_key(early): clock.now - 500})
    await noting.flush()
    assert (await last_used(owner_url, early))[0] == after
    assert keyring.take_uses() == {}
    await db.aclose()


async def test_what_cannot_be_written_is_kept_for_the_next_time(
    sign_up: SignUp, make_settings: Callable[..., Settings], owner_url: str
) -> None:
    db = Database(make_settings())
    away = Database(
        make_settings(database_url="postgresql://ainfera_app@/ainfera?host=/nowhere/at/all")
    )
    keyring = KeyCache(db)
    api_key = (await sign_up())["api_key"]
    await keyring.find(api_key, None)
    await LastUse(keyring, away).flush()
    await LastUse(keyring, db).flush()
    assert (await last_used(owner_url, api_key))[0] is not None
    await db.aclose()
    await away.aclose()


async def test_a_stop_writes_what_is_left(
    open_app: OpenApp, sign_up: SignUp, owner_url: str
) -> None:
    new = await sign_up()
    async with open_app() as (client, _):
        path = f"/v1/agents/{new['agent_id']}"
        answer: httpx.Response = await client.get(path, headers=new["auth"])
        assert answer.status_code == 200
        assert (await last_used(owner_url, new["api_key"]))[0] is None
    assert (await last_used(owner_url, new["api_key"]))[0] is not None
