"""What operators do is written down, whichever way they do it, and cannot be changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
from shared.errors import Overloaded
from shared.operators import OVER_HTTP
from tests.test_cli import fleet

ACTS = "SELECT actor, act, target FROM operator_events ORDER BY at"


async def acts(deps: Deps) -> list[tuple[str, str, str]]:
    connection = await connect(deps.settings.database_url, APP_ROLE, "test")
    try:
        return [(row[0], row[1], row[2]) for row in await connection.fetch(ACTS)]
    finally:
        await connection.close()


async def test_a_drain_is_written_down_over_http_and_by_command(
    client: httpx.AsyncClient, deps: Deps
) -> None:
    headers = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
    drained = await client.post("/internal/drain", json={"worker": "all"}, headers=headers)
    assert drained.status_code == 200
    told = {"DATABASE_URL": deps.settings.database_url, "REDIS_URL": deps.settings.redis_url}
    resumed = await asyncio.to_thread(fleet, "resume", "all", **told)
    assert resumed.exit_code == 0, resumed.output
    over_http, by_command = await acts(deps)
    assert over_http == (OVER_HTTP, "fleet.drain", "all")
    assert by_command[1:] == ("fleet.resume", "all")
    assert "@" in by_command[0]


async def test_a_fleet_without_postgres_can_be_driven_and_says_what_is_missing(deps: Deps) -> None:
    away = "postgresql://ainfera_app@/ainfera?host=/nowhere/at/all"
    told = {"DATABASE_URL": away, "REDIS_URL": deps.settings.redis_url}
    drained = await asyncio.to_thread(fleet, "drain", "all", "--yes", **told)
    resumed = await asyncio.to_thread(fleet, "resume", "all", **told)
    for done in (drained, resumed):
        assert done.exit_code == 0, done.output
        assert "not written down" in done.stderr


async def test_a_drain_is_written_down_before_it_is_ordered(
    client: httpx.AsyncClient, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it cannot be, the answer says so."""
    headers = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
    seen: list[int] = []

    async def written() -> int:
        return len([act for act in await acts(deps) if act[1:] == ("fleet.drain", "all")])

    async def drain(*_: object, **__: object) -> list[object]:
        seen.append(await written() - before)
        return []

    before = await written()

    monkeypatch.setattr("ingress.operations.drain", drain)
    told = await client.post("/internal/drain", json={"worker": "all"}, headers=headers)
    assert (told.json(), seen) == ({"draining": []}, [1])

    @asynccontextmanager
    async def nowhere(*_: object, **__: object) -> AsyncIterator[None]:
        raise Overloaded("Postgres is away.")
        yield

    monkeypatch.setattr("ingress.operations.everyone", nowhere)
    told = await client.post("/internal/drain", json={"worker": "all"}, headers=headers)
    assert (told.json(), seen) == ({"draining": [], "recorded": False}, [1, 1])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE operator_events SET act = ''",
        "DELETE FROM operator_events",
        "TRUNCATE operator_events",
    ],
)
async def test_nobody_changes_what_was_written(owner_url: str, deps: Deps, change: str) -> None:
    for url, role, refusal in (
        (owner_url, None, asyncpg.RestrictViolationError),
        (deps.settings.database_url, APP_ROLE, asyncpg.InsufficientPrivilegeError),
    ):
        connection = await connect(url, role, "test")
        try:
            with pytest.raises(refusal):
                await connection.execute(change)
        finally:
            await connection.close()
