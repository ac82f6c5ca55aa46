"""Dead letters over HTTP: for who has the operators' key, without what they carry."""

import asyncio
import math
from typing import Any
from uuid import uuid4

import httpx
import pytest
from typer.testing import Result

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
from shared.keys import request_sealer
from tests.test_cli import fleet
from tests.workers.ledger_cases import Agent, call, new_agent
from tests.workers.letter_cases import SECRET_WORDS, burial

PATH = "/internal/dead-letters"


def operator(deps: Deps) -> dict[str, str]:
    return {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}


async def bury_one(deps: Deps, **changes: Any) -> tuple[Agent, str]:
    sealer = request_sealer(deps.settings.master_key.get_secret_value())
    connection = await connect(deps.settings.database_url, APP_ROLE, "test")
    try:
        agent, inference = await new_agent(connection), str(uuid4())
        await call(connection, "bury_inferences", burial(agent, inference, 4, sealer, **changes))
    finally:
        await connection.close()
    return agent, inference


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/{}"), ("POST", "/{}/replay"), ("POST", "/{}/discard")],
)
async def test_only_operators_may(
    client: httpx.AsyncClient, deps: Deps, method: str, path: str
) -> None:
    _, inference = await bury_one(deps)
    for headers in ({}, {"x-ainfera-internal-key": "no"}):
        refused = await client.request(method, PATH + path.format(inference), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_internal_key")
    assert PATH not in (await client.get("/openapi.json")).text


async def test_letters_are_listed_and_shown(client: httpx.AsyncClient, deps: Deps) -> None:
    agent, inference = await bury_one(deps, error_code="internal_error")
    await bury_one(deps)
    asked = {"tenant": agent.tenant_id, "code": "internal_error", "since": "2020-01-01T00:00:00Z"}
    listed = await client.get(PATH, params=asked, headers=operator(deps))
    assert [each["inference_id"] for each in listed.json()] == [inference]
    every = await client.get(PATH, params={"state": "any"}, headers=operator(deps))
    assert len(every.json()) >= 2
    shown = await client.get(f"{PATH}/{inference}", headers=operator(deps))
    assert shown.json() == listed.json()[0]
    assert "envelope" not in shown.json()
    assert SECRET_WORDS not in shown.text


async def test_what_is_not_there_or_not_dead(client: httpx.AsyncClient, deps: Deps) -> None:
    for act in ("replay", "discard"):
        path = f"{PATH}/{uuid4()}"
        assert (await client.post(f"{path}/{act}", headers=operator(deps))).status_code == 404
        assert (await client.get(path, headers=operator(deps))).status_code == 404
        _, inference = await bury_one(deps)
        once = await client.post(f"{PATH}/{inference}/{act}", headers=operator(deps))
        assert once.status_code == 200, once.text
        again = await client.post(f"{PATH}/{inference}/{act}", headers=operator(deps))
        assert (again.status_code, again.json()["code"]) == (409, "letter_not_dead")


async def test_a_command_says_in_a_line_what_is_no_dead_letter(deps: Deps) -> None:
    told = {
        "DATABASE_URL": deps.settings.database_url,
        "REDIS_URL": deps.settings.redis_url,
        "AINFERA_MASTER_KEY": deps.settings.master_key.get_secret_value(),
    }

    async def act(word: str, *ids: str) -> Result:
        return await asyncio.to_thread(fleet, "dead-letters", word, *ids, "--yes", **told)

    _, inference = await bury_one(deps)
    unknown, other = str(uuid4()), str(uuid4())
    for word, past in (("discard", "discarded"), ("replay", "replayed")):
        refused = await act(word, unknown)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == f"{unknown} was not {past}: there is no such dead letter.\n"
        both = await act(word, unknown, other)
        assert (both.exit_code, "not_dead" in both.output) == (1, False)
        assert f"{other} was not {past}: there is no such dead letter." in both.stdout
    assert (await act("discard", inference)).exit_code == 0
    again = await act("discard", inference)
    assert again.stderr == f"{inference} was not discarded: it does not wait any more.\n"


async def test_letters_are_counted(client: httpx.AsyncClient, deps: Deps) -> None:
    async def counted() -> dict[str, float]:
        deps.counted.at = -math.inf
        shown = await client.get("/metrics", headers=operator(deps))
        lines = [line.rsplit(" ", 1) for line in shown.text.splitlines()]
        return {name: float(value) for name, value in lines if "dead_letters" in name[:20]}

    before = await counted()
    _, inference = await bury_one(deps)
    after = await counted()
    assert after["ainfera_dead_letters"] == before["ainfera_dead_letters"] + 1
    await client.post(f"{PATH}/{inference}/discard", headers=operator(deps))
    ended = await counted()
    assert ended["ainfera_dead_letters"] == before["ainfera_dead_letters"]
    discarded = 'ainfera_dead_letters_total{outcome="discarded"}'
    assert ended[discarded] == before[discarded] + 1
