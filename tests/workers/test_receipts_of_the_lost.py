"""A call that nobody will finish has the receipt of its decision too, wherever it is known."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Connection, Database
from shared.dead_letters import close_letter
from shared.domain import capture
from shared.domain.attempts import LetterState
from shared.domain.audit import draft
from shared.domain.candidate import Catalog
from shared.domain.routing import Decision
from shared.kept import KeptCalls
from shared.keys import request_sealer
from shared.queue import InferenceQueue
from shared.receipt_verifier import check
from tests.domain.routing_cases import ANCHORS, asked, decided
from tests.workers.ledger_cases import Agent, call, hold, new_agent, results
from tests.workers.letter_cases import burial
from workers.ledger import Ledger
from workers.sweep import BooksDeps, release_expired_holds


@pytest_asyncio.fixture(loop_scope="session")
async def deps(settings: Settings) -> AsyncIterator[BooksDeps]:
    db = Database(settings)
    ledger = Ledger(db)
    await ledger.start()
    async with Redis.from_url(settings.redis_url) as redis:
        yield BooksDeps(settings, db, ledger, KeptCalls(db, settings), InferenceQueue(redis), redis)
    await ledger.aclose()
    await db.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Database(settings).connect_raw()
    await connection.execute(
        "INSERT INTO catalog_snapshots (hash, models) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        ANCHORS.hash,
        json.dumps(ANCHORS.to_json()),
    )
    yield connection
    await connection.close()


def routed(agent: Agent, inference: str, **told: Any) -> list[str]:
    """The routing event, with what the worker that was lost decided from."""
    data = {"inference_id": inference, "router": "ainfera-inference", "model": "a-model", **told}
    return draft("inference.routed", agent.agent_id, data).wire()


async def receipt_of(db: Connection, inference: str) -> dict[str, Any]:
    """As the ingress puts it together, but for the signature."""
    row = await db.fetchrow(
        "SELECT * FROM routing_outcomes WHERE inference_id = $1", UUID(inference)
    )
    event = await db.fetchrow(
        """SELECT * FROM audit_events WHERE event_type = 'provider.failed'
             AND payload::jsonb ->> 'inference_id' = $1""",
        inference,
    )
    assert row is not None
    assert event is not None
    stored = {
        n: json.loads(v) if n in ("decision", "fallback_chain") else v for n, v in row.items()
    }
    told = {n: event[n] for n in ("seq", "event_type", "previous_hash", "event_hash")}
    told |= {"agent_id": str(event["agent_id"]), "payload": json.loads(event["payload"])}
    return capture.receipt(stored, ANCHORS.to_json(), told)


def found(receipt: dict[str, Any]) -> dict[str, bool | None]:
    told = {each.name: each.proved for each in check(receipt)}
    return {name: told[name] for name in ("catalog", "ruleset", "rule", "event")}


PROVED = {"catalog": True, "ruleset": True, "rule": True, "event": True}


async def expired(db: Connection, deps: BooksDeps, **told: Any) -> dict[str, Any]:
    """The receipt of a call whose hold ran out, by what its routing event told."""
    agent, inference = await new_agent(db), str(uuid4())
    item = hold(agent, "0.5", inference, ttl_s=0, event=routed(agent, inference, **told))
    assert await results(db, "open_inferences", item) == ["OPENED"]
    await release_expired_holds({"deps": deps})
    return await receipt_of(db, inference)


async def test_a_swept_call_has_a_receipt_that_replays(db: Connection, deps: BooksDeps) -> None:
    decision = decided(asked(allow=frozenset({"openai", "xai"})))
    receipt = await expired(db, deps, decision=capture.record(decision).told)
    assert receipt["outcome_status"] == "expired"
    assert receipt["chosen_model_slug"] == "gpt-5-5"
    assert found(receipt) == PROVED


@pytest.mark.parametrize("documented", [True, False])
async def test_a_lost_call_names_the_quote_that_it_had(
    db: Connection, deps: BooksDeps, documented: bool
) -> None:
    record = capture.record(decided(asked()))
    receipt = await expired(db, deps, quote_id="a-quote", decision=documented and record.told)
    assert receipt["quote_id"] == "a-quote"
    assert ("undocumented" in receipt) is not documented


async def test_a_call_given_up_has_a_receipt_that_replays(db: Connection, deps: BooksDeps) -> None:
    agent, inference = await new_agent(db), str(uuid4())
    told = capture.record(decided(asked())).told
    event = routed(agent, inference, decision=told)
    await call(db, "open_inferences", hold(agent, "1", inference, event=event))
    sealer = request_sealer(deps.settings.master_key.get_secret_value())
    assert await results(db, "bury_inferences", burial(agent, inference, 4, sealer)) == ["BURIED"]
    async with deps.db.everyone() as session:
        discarded = LetterState.DISCARDED
        assert await close_letter(session, deps.kept, UUID(inference), discarded, "tester")
        await session.commit()
    receipt = await receipt_of(db, inference)
    assert receipt["outcome_status"] == "failed_provider"
    assert receipt["chosen_model_slug"] == "mistral-large-3"
    assert found(receipt) == PROVED


async def test_what_was_recorded_nowhere_is_not_made_up(db: Connection, deps: BooksDeps) -> None:
    receipt = await expired(db, deps)
    assert receipt["inputs"] is None
    assert "recorded nowhere" in receipt["undocumented"]
    assert found(receipt) == {"catalog": None, "ruleset": None, "rule": None, "event": None}


@pytest.mark.parametrize("change", ["ruleset_hash", "catalog_hash"])
async def test_of_another_rule_or_an_unknown_catalogue_nothing_is_claimed(
    db: Connection, deps: BooksDeps, change: str
) -> None:
    told = capture.record(decided(asked())).inputs
    receipt = await expired(db, deps, decision={**told, change: "0123456789abcdef"})
    assert receipt["inputs"] is None


def test_long_lists_are_bound_but_not_told() -> None:
    """A chain is kept for ever; a client's list of models may be long."""
    names = frozenset(f"a-model-that-nobody-has-{n}" for n in range(1000))
    long: Decision = decided(asked(deny=names), Catalog.of(ANCHORS.candidates))
    record = capture.record(long)
    assert record.told is None
    assert len(record.digest) == 64
    assert capture.recorded_decision(record.inputs, ANCHORS.to_json()) == long
