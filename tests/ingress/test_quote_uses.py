"""Who has a quote: one call, whatever becomes of its idempotency key; what a tenant holds."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.deps import Deps
from shared.domain.inference import Dialect
from shared.errors import QuoteExpired, QuoteUsed
from shared.ids import mint_id
from shared.kept import hash_quote_key
from shared.queue import Envelope
from shared.quotes import Asker
from tests.ingress.conftest import OpenApp, SignUp
from tests.ingress.test_quotes import SAY, ask, asker_of

WAITING = """
SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""


def the_call(agent: dict[str, Any], quote_id: str) -> Envelope:
    """One that names the quote and that nobody runs."""
    caller = {"tenant_id": agent["tenant_id"], "agent_id": agent["agent_id"], "policy": {}}
    ids = mint_id(), mint_id()
    call = Envelope(*ids, Dialect.NATIVE, "reply", caller, 1.0, "trace", orjson.dumps(SAY))
    return replace(call, kept=True, quote={"id": quote_id})


@dataclass(frozen=True)
class Keyed:
    """Calls with one idempotency key that name one quote, step by step as they are accepted."""

    deps: Deps
    agent: dict[str, Any]
    quote_id: UUID
    asker: Asker

    async def take(self, key: str | None = "k") -> Envelope:
        call = the_call(self.agent, str(self.quote_id))
        hashed = None if key is None else hash_quote_key(Dialect.NATIVE, key)
        await self.deps.quotes.take(self.quote_id, self.asker, call.inference_id, hashed)
        return call

    async def keep(self, call: Envelope) -> UUID:
        """The call that it is, or that it joins."""
        path = "/v1/inference"
        known = await self.deps.kept.keep(call, path, "k", stream=False, background=False)
        return known.inference_id

    async def give_back(self, call: Envelope) -> None:
        tenant_id = self.asker.tenant_id
        await self.deps.quotes.give_back(self.quote_id, tenant_id, call.inference_id)

    async def end(self, call: Envelope, state: str, *, frees_key: bool = False) -> None:
        await self.deps.db.run(
            "INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, attempt,"
            " state) VALUES (:id, :tenant_id, :agent_id, true, 'native', 'm', 1, :state)",
            id=call.inference_id,
            tenant_id=self.asker.tenant_id,
            agent_id=self.asker.agent_id,
            state=state,
        )
        await self.deps.db.run(
            "UPDATE kept_calls SET state = 'done', accepted_at = accepted_at - interval '1 minute',"
            " idempotency_key_hash = CASE WHEN :freed THEN NULL ELSE idempotency_key_hash END"
            " WHERE inference_id = :id",
            id=call.inference_id,
            freed=frees_key,
        )


async def keyed_calls(client: httpx.AsyncClient, deps: Deps, agent: dict[str, Any]) -> Keyed:
    quote = (await ask(client, agent, hold_for_s=60)).json()
    return Keyed(deps, agent, UUID(quote["quote_id"]), await asker_of(deps, quote))


@pytest_asyncio.fixture(loop_scope="session")
async def keyed(client: httpx.AsyncClient, sign_up: SignUp, deps: Deps) -> Keyed:
    return await keyed_calls(client, deps, await sign_up())


async def test_a_key_that_is_over_brings_no_second_use(keyed: Keyed) -> None:
    first = await keyed.take()
    assert await keyed.keep(first) == first.inference_id
    await keyed.end(first, "settled")
    again = await keyed.take()
    assert await keyed.keep(again) == first.inference_id  # as long as the key is kept
    await keyed.give_back(again)
    a_day = "UPDATE kept_calls SET accepted_at = accepted_at - interval '24 hours'"
    await keyed.deps.db.run(f"{a_day} WHERE inference_id = :id", id=first.inference_id)
    late = await keyed.take()
    with pytest.raises(QuoteUsed):
        await keyed.keep(late)
    found = await keyed.deps.db.run(
        "SELECT 1 FROM kept_calls WHERE inference_id = :id", id=late.inference_id
    )
    assert found == []
    await keyed.give_back(late)
    for key in ("k", None):
        with pytest.raises(QuoteUsed):
            await keyed.take(key)


async def test_a_key_that_was_given_back_takes_the_quote_anew(keyed: Keyed) -> None:
    """Of a call that was refused and may be tried again; then the quote is its next call's."""
    first = await keyed.take()
    await keyed.keep(first)
    await keyed.end(first, "refused", frees_key=True)
    second = await keyed.take()
    assert await keyed.keep(second) == second.inference_id
    with pytest.raises(QuoteUsed):
        await keyed.take(None)


async def test_a_key_that_was_given_back_does_not_outlive_the_quote(keyed: Keyed) -> None:
    first = await keyed.take()
    await keyed.keep(first)
    await keyed.end(first, "refused", frees_key=True)
    over = "UPDATE quotes SET expires_at = now() WHERE id = :id"
    await keyed.deps.db.run(over, id=keyed.quote_id)
    with pytest.raises(QuoteExpired):
        await keyed.take()


@pytest.mark.parametrize("winner", [0, 1])
async def test_of_two_at_once_with_one_key_one_has_the_quote(keyed: Keyed, winner: int) -> None:
    both = [await keyed.take(), await keyed.take()]
    won, joins = both[winner], both[1 - winner]
    assert await keyed.keep(won) == won.inference_id
    assert await keyed.keep(joins) == won.inference_id
    await keyed.give_back(joins)
    with pytest.raises(QuoteUsed):
        await keyed.take(None)
    assert await keyed.keep(await keyed.take()) == won.inference_id


@pytest.mark.parametrize(("state", "status"), [("settled", 200), ("refused", 429)])
async def test_who_has_used_a_quote_may_hold_another(
    open_app: OpenApp, sign_up: SignUp, state: str, status: int
) -> None:
    """Not who was refused with it: that one is still to be used."""
    agent = await sign_up()
    async with open_app(quotes_per_tenant=1) as (client, deps):
        keyed = await keyed_calls(client, deps, agent)
        call = await keyed.take()
        await keyed.end(call, state)
        assert (await ask(client, agent, hold_for_s=60)).status_code == status


class Uncommitted:
    """What runs a statement for a tenant, and does not commit yet."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def run_for(self, _: UUID, statement: str, **bound: Any) -> Any:
        return (await self.session.execute(text(statement), bound)).all()


async def test_of_two_quotes_at_once_the_second_counts_the_first(
    open_app: OpenApp, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await sign_up()
    async with open_app(quotes_per_tenant=1) as (client, deps):
        async with deps.db.session(UUID(agent["tenant_id"])) as session:
            with monkeypatch.context() as patched:
                patched.setattr(deps.quotes, "_db", Uncommitted(session))
                assert (await ask(client, agent, hold_for_s=60)).status_code == 200
            second = asyncio.create_task(ask(client, agent, hold_for_s=60))
            while not (second.done() or await deps.db.run(WAITING)):
                await asyncio.sleep(0.01)
            await session.commit()
        assert (await second).status_code == 429
