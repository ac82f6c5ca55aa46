"""What operators do is written down, whichever way they do it, and cannot be changed."""

import asyncio

import asyncpg
import httpx
import pytest

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
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
