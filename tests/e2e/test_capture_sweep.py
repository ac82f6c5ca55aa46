"""Every way out of a call, for every target and form: one capture if it was routed, else none.

docs/capture.md has the table; it is this sweep's, and a test holds it to that.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import ainfera
import httpx
import orjson
import pytest

from shared.config import Settings
from shared.control import CONTROL_CHANNEL, KILLSWITCH
from shared.db import Database
from shared.domain.audit import draft
from shared.domain.inference import ROUTING_ALIASES, ROUTING_TARGET
from shared.ids import mint_id
from shared.kept import KeptCalls
from shared.queue import InferenceQueue
from shared.valkey import open_valkey
from tests.e2e.calls import PATHS, call
from tests.e2e.conftest import Signup
from tests.e2e.stack import ROOT, Stack
from tests.e2e.test_leaving import ENDLESS, last_call
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually
from workers.ledger import Ledger
from workers.sweep import BooksDeps, release_expired_holds

PINNED = ("gpt-5-mini", "claude-haiku-4-5")
ROUTED = (ROUTING_TARGET, *sorted(ROUTING_ALIASES))
TARGETS = (*ROUTED, *PINNED)
FORMS = (False, True)
DOCUMENT = Path(ROOT) / "docs" / "capture.md"


@dataclass
class Sweep:
    """The stack and its witnesses; `agent` is fresh for each exit."""

    stack: Stack
    signup: Signup
    upstream: Upstream
    witness: Witness
    agent: ainfera.SignupResult

    def ask(self, model: str, word: str, *, stream: bool, **more: Any) -> str:
        """One call in each form that it is asked for; its inference."""
        dialect = more.pop("dialect", "native")
        key = more.pop("key", self.agent.api_key)
        answer = call(self.stack, key, dialect, word, model=model, stream=stream, **more)
        if answer.status != 202 and "x-ainfera-router" in answer.headers:
            expected = ROUTING_TARGET if model in ROUTED else "direct"
            assert answer.headers["x-ainfera-router"] == expected
        return answer.inference_id

    def each(self, targets: tuple[str, ...], say: Say, **more: Any) -> dict[str, str]:
        """Each target, streamed and not: the inferences, and what was asked for."""
        found: dict[str, str] = {}
        for model in targets:
            for stream in FORMS:
                found[self.ask(model, self.upstream.will(say), stream=stream, **more)] = model
        return found

    def post(self, path: str, key: str, body: Any = None) -> httpx.Response:
        return self.stack.request(
            "POST", path, json=body, headers={"authorization": f"Bearer {key}"}
        )


Way = Callable[[Sweep], dict[str, str]]


def succeeds(sweep: Sweep) -> dict[str, str]:
    found: dict[str, str] = {}
    for dialect in PATHS:
        found |= sweep.each(TARGETS, Say(), dialect=dialect)
    return found


def below_the_floor(sweep: Sweep) -> dict[str, str]:
    return sweep.each(ROUTED, Say(), routing_hint={"min_quality": 0.99})


def not_enrolled(sweep: Sweep) -> dict[str, str]:
    found = sweep.each(ROUTED, Say(), routing_hint={"allow": ["mistral"]})
    return found | sweep.each(("grok-4", "no-such-model"), Say())


def over_a_cap(sweep: Sweep) -> dict[str, str]:
    capped = sweep.signup("capped", per_call_cap_usd="0.001")
    return sweep.each(TARGETS, Say(), key=capped.api_key, max_tokens=60_000)


def out_of_funds(sweep: Sweep) -> dict[str, str]:
    dear: Any = {"max_tokens": 120_000, "routing_hint": {"allow": ["claude-opus-4-7"]}}
    return sweep.each((*ROUTED, "claude-opus-4-7"), Say(), **dear)


def killswitch(sweep: Sweep) -> dict[str, str]:
    """Engaged for the one tenant."""
    scope = sweep.agent.tenant_id
    engage = "INSERT INTO killswitches (scope, engaged_by) VALUES ($1, 'sweep')"
    sweep.witness.rows(engage, scope)
    order = {"type": KILLSWITCH, "scope": scope, "engaged": True}
    sweep.witness.redis.publish(CONTROL_CHANNEL, orjson.dumps(order))
    heard = str(eventually(lambda: stopped(sweep), "the killswitch heard"))
    return {heard: ROUTING_TARGET} | sweep.each(TARGETS, Say())


def stopped(sweep: Sweep) -> str | None:
    answer = call(sweep.stack, sweep.signup("probe").api_key, "native", "Hi.", model="gpt-5-mini")
    assert answer.status == 200, "only the tenant that is meant is stopped"
    answer = call(sweep.stack, sweep.agent.api_key, "native", "Hi.", model=ROUTING_TARGET)
    return answer.inference_id if answer.status == 503 else None


def falls_back(sweep: Sweep) -> dict[str, str]:
    found: dict[str, str] = {}
    for model in ROUTED:
        for stream in FORMS:
            word = sweep.upstream.will(Say(status=500), on_anthropic=Say())
            found[sweep.ask(model, word, stream=stream)] = model
    return found


def provider_fails(sweep: Sweep) -> dict[str, str]:
    return sweep.each((ROUTING_TARGET, *PINNED), Say(status=500))


def breaks_off(sweep: Sweep) -> dict[str, str]:
    broken = Say(texts=("One ", "two "), broken_after=1)
    found: dict[str, str] = {}
    for model in TARGETS:
        found[sweep.ask(model, sweep.upstream.will(broken), stream=True)] = model
    return found


def is_cancelled(sweep: Sweep) -> dict[str, str]:
    return {each: m for m in TARGETS for each in (left_behind(sweep, m, cancel=True),)}


def client_leaves(sweep: Sweep) -> dict[str, str]:
    return {each: m for m in TARGETS for each in (left_behind(sweep, m, cancel=False),)}


def left_behind(sweep: Sweep, model: str, *, cancel: bool) -> str:
    """A stream that is stopped after its first word, by an order or because nobody listens."""
    body = {"model": model, "max_tokens": 99, "stream": True}
    asked = {"messages": [{"role": "user", "content": sweep.upstream.will(ENDLESS)}], **body}
    headers = {"authorization": f"Bearer {sweep.agent.api_key}"}
    url = sweep.stack.url + PATHS["native"]
    with httpx.stream("POST", url, json=asked, headers=headers, verify=False) as response:
        inference_id: str = response.headers["x-ainfera-inference-id"]
        pieces = response.iter_bytes()
        while b"word0" not in next(pieces):
            pass
        if cancel:
            sweep.post(f"/v1/inferences/{inference_id}/cancel", sweep.agent.api_key)
            for _ in pieces:
                pass
    return inference_id


def leaves_early(sweep: Sweep) -> dict[str, str]:
    """Before the first word, when not even the inference's id is known to the client."""
    found: dict[str, str] = {}
    for model in (ROUTING_TARGET, PINNED[0]):
        agent = sweep.signup("early")
        word = sweep.upstream.will(Say(in_lockstep=True, first_waits=True))
        body = {"model": model, "messages": [{"role": "user", "content": word}]}
        headers = {"authorization": f"Bearer {agent.api_key}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                sweep.stack.url + PATHS["native"],
                json=body,
                headers=headers,
                verify=False,
                timeout=httpx.Timeout(10, read=0.3),
            )
        found[str(last_call(sweep.witness, agent.agent_id)["id"])] = model
    return found


def in_the_background(sweep: Sweep) -> dict[str, str]:
    found = sweep.each(TARGETS, Say(), background=True)
    for each in found:
        sweep.witness.inference(each)
    return found


def comes_again(sweep: Sweep) -> dict[str, str]:
    found: dict[str, str] = {}
    for model in TARGETS:
        word = sweep.upstream.will(Say())
        again: Any = {"headers": {"idempotency-key": word}}
        twice = {sweep.ask(model, word, stream=False, **again) for _ in range(2)}
        assert len(twice) == 1
        found[twice.pop()] = model
    return found


def held(sweep: Sweep, model: str, ttl_s: int) -> str:
    """A call whose worker is gone: it has its hold and nobody who settles it."""
    inference_id, agent = str(mint_id()), sweep.agent
    data = {"inference_id": inference_id, "model": "m", "task_type": "chat"}
    data["router"] = model if model in ROUTED else "direct"
    data |= {"decision_rule": "r", "policy_version": "p", "ruleset_hash": "h", "cell": "c"}
    routed = draft("inference.routed", agent.agent_id, {**data, "min_quality": "0.50"})
    item = identity(sweep, inference_id, model) | {"amount": "0.1", "ttl_s": ttl_s}
    batch = [{**item, "event": routed.wire()}]
    (row,) = sweep.witness.rows("SELECT result FROM open_inferences($1::jsonb)", batch)
    assert row["result"] == "OPENED"
    return inference_id


def identity(sweep: Sweep, inference_id: str, model: str) -> dict[str, Any]:
    whose = {"tenant_id": sweep.agent.tenant_id, "agent_id": sweep.agent.agent_id}
    what = {"routed": model == ROUTING_TARGET, "dialect": "native", "model": model}
    return {"inference_id": inference_id, "attempt": 1, **whose, **what}


def expires(sweep: Sweep) -> dict[str, str]:
    found = {held(sweep, model, 0): model for model in (ROUTING_TARGET, PINNED[0])}
    sweep.witness._backstage.run(release(Settings(**sweep.stack.told)))  # type: ignore[arg-type]
    return found


async def release(settings: Settings) -> None:
    db, redis = Database(settings), open_valkey(settings.redis_url)
    ledger = Ledger(db)
    await ledger.start()
    deps = BooksDeps(settings, db, ledger, KeptCalls(db, settings), InferenceQueue(redis), redis)
    await release_expired_holds({"deps": deps})
    await ledger.aclose()
    await redis.aclose()
    await db.aclose()


def dead_and_discarded(sweep: Sweep) -> dict[str, str]:
    found: dict[str, str] = {}
    for model in (ROUTING_TARGET, PINNED[0]):
        inference_id = held(sweep, model, 900)
        item = identity(sweep, inference_id, model) | {
            "envelope": base64.b64encode(b"sealed").decode(),
            "error_code": "worker_lost",
            "error_message": "lost",
            "failures": [],
            "ttl_s": 3600,
        }
        (row,) = sweep.witness.rows("SELECT result FROM bury_inferences($1::jsonb)", [item])
        assert row["result"] == "BURIED"
        assert sweep.witness.captures(inference_id) == [], "a dead call is not over"
        path = f"/internal/dead-letters/{inference_id}/discard"
        key = {"x-ainfera-internal-key": sweep.stack.internal_key}
        assert sweep.stack.request("POST", path, headers=key).status_code == 200
        found[inference_id] = model
    return found


@dataclass(frozen=True)
class Exit:
    """A way out, the outcome of its captures, how many calls take it, and the table's words."""

    way: Way
    outcome: str
    calls: int
    words: str


EXITS = (
    Exit(succeeds, "succeeded", 36, "answered, in each dialect"),
    Exit(below_the_floor, "rejected_floor", 8, "no model clears the floor"),
    Exit(not_enrolled, "rejected_not_enrolled", 12, "no model is enrolled"),
    Exit(over_a_cap, "rejected_cap", 12, "a cap is passed"),
    Exit(killswitch, "rejected_cap", 13, "the killswitch is engaged"),
    Exit(out_of_funds, "rejected_funds", 10, "too little money"),
    Exit(falls_back, "succeeded", 8, "a provider fails, the next model answers"),
    Exit(provider_fails, "failed_provider", 6, "every provider fails"),
    Exit(breaks_off, "failed_midstream", 6, "the answer breaks off"),
    Exit(is_cancelled, "cancelled", 6, "cancelled by an order"),
    Exit(client_leaves, "cancelled", 6, "the client leaves in the middle"),
    Exit(leaves_early, "cancelled", 2, "the client leaves before the first word"),
    Exit(in_the_background, "succeeded", 12, "in the background"),
    Exit(comes_again, "succeeded", 6, "sent twice with one idempotency key"),
    Exit(expires, "expired", 2, "its worker is lost and its hold runs out"),
    Exit(dead_and_discarded, "failed_provider", 2, "a dead letter that is discarded"),
)


@pytest.mark.parametrize("exit", EXITS, ids=lambda each: each.way.__name__)
def test_each_way_out_leaves_its_one_capture(
    stack: Stack,
    signup: Signup,
    upstream: Upstream,
    witness: Witness,
    agent: ainfera.SignupResult,
    exit: Exit,
) -> None:
    found = exit.way(Sweep(stack, signup, upstream, witness, agent))
    assert len(found) == exit.calls
    wrong = []
    for inference_id, model in found.items():
        inference = witness.inference(inference_id)
        captures = [each["outcome_status"] for each in witness.captures(inference_id)]
        routers = {event["router"] for event in witness.events(inference_id) if "router" in event}
        if model in ROUTED:
            right = captures == [exit.outcome] and inference["routed"]
        else:
            right = captures == [] and not inference["routed"] and routers == {"direct"}
        if not right:
            wrong.append((model, inference_id, captures, routers))
    assert wrong == []
    query = """SELECT count(*) FROM inferences i LEFT JOIN routing_outcomes o
      ON o.inference_id = i.id WHERE i.id = ANY ($1) AND i.routed <> (o.inference_id IS NOT NULL)"""
    assert witness.value(query, [UUID(each) for each in found]) == 0


def test_the_document_has_the_sweeps_table() -> None:
    table = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[2:]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (each.words, f"`{each.outcome}`", str(each.calls)) for each in EXITS
    ]
