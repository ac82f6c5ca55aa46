"""Quotes at the door: what is refused, what counts against a key, who gets a quote back."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import httpx
import pytest

from ingress import inference
from ingress.deps import Deps
from shared.errors import NotFound, Overloaded, QuoteUsed
from shared.ids import mint_id
from shared.quotes import Asker, forget_quotes
from shared.receipt_verifier import check, read_keys
from tests.ingress.conftest import OpenApp, SignUp

SAY = {
    "model": "ainfera-inference",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "How many are seven and five?"}],
}


async def ask(
    client: httpx.AsyncClient, agent: dict[str, Any], params: Any = None, **changes: Any
) -> httpx.Response:
    body = {**SAY, **changes}
    return await client.post("/v1/quote", json=body, headers=agent["auth"], params=params)


async def uses(deps: Deps, quote_id: str) -> list[Any]:
    query = "SELECT * FROM quote_uses WHERE quote_id = :id"
    return list(await deps.db.run(query, id=UUID(quote_id)))


async def test_a_quote_is_held_only_if_asked_for_and_never_for_too_long(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    agent = await sign_up()
    for asked in (None, 0):
        assert (await ask(client, agent, hold_for_s=asked)).json()["quote_id"] is None
    in_query = (await ask(client, agent, {"hold_for_s": "30"})).json()
    assert in_query["quote_id"] is not None
    assert in_query["expires_at"].endswith("Z")
    left = await deps.db.run(
        "SELECT extract(epoch FROM expires_at - created_at) AS s FROM quotes WHERE id = :id",
        id=UUID(in_query["quote_id"]),
    )
    assert left[0].s == 30
    for wrong in (601, -1, 2.5, "soon", True, 10**12):
        answer = await ask(client, agent, hold_for_s=wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), wrong
        assert "hold_for_s" in answer.json()["message"]
        assert "600" in answer.json()["message"]


async def test_nothing_of_the_prompt_is_kept(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    agent = await sign_up()
    said = [{"role": "user", "content": "a-word-of-nobody-else"}]
    quote = (await ask(client, agent, hold_for_s=30, messages=said)).json()
    found = await deps.db.run(
        "SELECT q::text AS words FROM quotes q WHERE id = :id", id=UUID(quote["quote_id"])
    )
    assert "a-word-of-nobody-else" not in found[0].words


async def proved(client: httpx.AsyncClient, answer: httpx.Response) -> str:
    """The rule that a refusal's decision receipt names, whose signature and replay hold."""
    decision: dict[str, Any] = answer.json()["decision"]
    keys = read_keys((await client.get("/.well-known/jwks.json")).json())
    told = {each.name: each.proved for each in check(decision, keys)}
    assert (told.pop("event"), told.pop("log")) == (None, None)
    assert set(told.values()) == {True}
    return str(decision["decision_rule"])


async def test_it_is_the_error_of_the_call(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    agent = await sign_up()
    floor = await ask(client, agent, routing_hint={"min_quality": 1})
    assert (floor.status_code, floor.json()["code"]) == (422, "no_candidate_clears_floor")
    assert floor.json()["model"] == "ainfera-inference"
    assert await proved(client, floor) == "no_candidate_clears_floor"
    none = await ask(client, agent, routing_hint={"allow": ["nobody"]})
    assert (none.status_code, none.json()["code"]) == (422, "no_candidate_enrolled")
    assert await proved(client, none) == "no_candidate_enrolled"
    unknown = await ask(client, agent, model="gpt-2")
    assert (unknown.status_code, unknown.json()["code"]) == (422, "model_unavailable")
    assert "decision" not in unknown.json()
    malformed = await ask(client, agent, max_tokens="many")
    assert (malformed.status_code, malformed.json()["code"]) == (400, "invalid_request")
    in_openai = await ask(client, agent, {"dialect": "openai"}, routing_hint={"min_quality": 1})
    assert in_openai.json()["error"]["code"] == "no_candidate_clears_floor"
    assert await proved(client, in_openai) == "no_candidate_clears_floor"
    no_dialect = await ask(client, agent, {"dialect": "latin"})
    assert (no_dialect.status_code, no_dialect.json()["param"]) == (400, "dialect")
    deps.killswitch.obey({"type": "killswitch", "scope": agent["tenant_id"], "engaged": True})
    stopped = await ask(client, agent)
    assert (stopped.status_code, stopped.json()["code"]) == (503, "cost_killswitch_engaged")


async def test_what_caps_leave_is_told_and_their_refusal(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    agent = await sign_up(per_call_cap_usd="0.001", daily_cap_usd="2")
    funds = (await ask(client, agent, max_tokens=60_000)).json()["funds"]
    assert [each["cap"] for each in funds["caps"]] == ["per_call_cap", "daily_cap"]
    assert funds["caps"][1]["available_usd"] == "2.00"
    assert not funds["allowed"]
    refusal = funds["refusal"]
    assert (refusal["status"], refusal["code"]) == (403, "spend_policy_exceeded")
    assert refusal["detail"]["cap"] == "per_call_cap"
    small = (await ask(client, agent, max_tokens=5)).json()["funds"]
    assert (small["allowed"], small["refusal"]) == (True, None)
    assert (small["settled_usd"], small["held_usd"], small["available_usd"]) == (
        "5.00",
        "0.00",
        "5.00",
    )


async def test_quotes_count_as_requests_of_their_key(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    agent = await sign_up()
    limits = {"requests_per_minute": 2, "tokens_per_minute": 1000}
    asked = {"scopes": ["call"], "limits": limits}
    made = await client.post("/v1/keys", json=asked, headers=agent["auth"])
    assert made.status_code == 201, made.text
    limited = {"auth": {"authorization": f"Bearer {made.json()['api_key']}"}}
    limited["agent_id"] = agent["agent_id"]
    answers = [await ask(client, limited, agent_id=agent["agent_id"]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:2]] == [
        "1",
        "0",
    ]
    assert answers[0].headers["x-ratelimit-remaining-tokens"] == "1000"
    assert answers[2].json()["code"] == "rate_limited"


async def test_a_tenant_holds_no_more_than_so_many(open_app: OpenApp, sign_up: SignUp) -> None:
    agent, other = await sign_up(), await sign_up()
    async with open_app(quotes_per_tenant=2) as (client, _):
        told = [(await ask(client, agent, hold_for_s=60)).status_code for _ in range(3)]
        assert told == [200, 200, 429]
        assert (await ask(client, agent)).status_code == 200
        assert (await ask(client, other, hold_for_s=60)).status_code == 200


async def test_of_many_calls_at_once_one_has_the_quote(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    agent = await sign_up()
    quote = (await ask(client, agent, hold_for_s=60)).json()
    asker = await asker_of(deps, quote)

    async def take() -> str:
        try:
            await deps.quotes.take(UUID(quote["quote_id"]), asker, mint_id(), None)
        except QuoteUsed:
            return "used"
        return "taken"

    assert Counter(await asyncio.gather(*(take() for _ in range(8)))) == {"taken": 1, "used": 7}


async def asker_of(deps: Deps, quote: dict[str, Any]) -> Asker:
    (row,) = await deps.db.run("SELECT * FROM quotes WHERE id = :id", id=UUID(quote["quote_id"]))
    return Asker(row.tenant_id, row.agent_id, row.request_hash)


async def test_only_the_same_agent_of_the_same_tenant_finds_it(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    """Also where the request is the same, and one of the two walls is asked at a time."""
    agent, other = await sign_up(), await sign_up()
    quote = (await ask(client, agent, hold_for_s=60)).json()
    mine = await asker_of(deps, quote)
    sibling = Asker(mine.tenant_id, UUID(other["agent_id"]), mine.request_hash)
    stranger = Asker(UUID(other["tenant_id"]), mine.agent_id, mine.request_hash)
    for asker in (sibling, stranger):
        with pytest.raises(NotFound):
            await deps.quotes.take(UUID(quote["quote_id"]), asker, mint_id(), None)
    seen = "SELECT 1 FROM quotes UNION ALL SELECT 1 FROM quote_uses"
    assert await deps.db.run_for(UUID(other["tenant_id"]), seen) == []
    assert len(await deps.db.run_for(mine.tenant_id, seen)) == 1


async def test_a_call_that_the_queue_refuses_gives_its_quote_back(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await sign_up()
    quote = (await ask(client, agent, hold_for_s=60)).json()
    seen = []

    async def busy(*_: Any) -> None:
        seen.append(await uses(deps, quote["quote_id"]))
        raise Overloaded("Too much to do.")

    monkeypatch.setattr(inference, "enqueue", busy)
    headers = {**agent["auth"], "x-ainfera-quote": quote["quote_id"]}
    answer = await client.post("/v1/inference", json=SAY, headers=headers)
    assert (answer.status_code, len(seen[0])) == (503, 1)
    assert await uses(deps, quote["quote_id"]) == []


async def test_two_names_for_two_quotes_are_one_too_many(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    agent = await sign_up()
    body = {**SAY, "routing_hint": {"quote_id": str(mint_id())}}
    headers = {**agent["auth"], "x-ainfera-quote": str(mint_id())}
    answer = await client.post("/v1/inference", json=body, headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (400, "routing_hint.quote_id")


async def test_what_is_over_is_forgotten_and_what_is_not_stays(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    agent = await sign_up()
    old, young = [(await ask(client, agent, hold_for_s=60)).json() for _ in range(2)]
    await deps.quotes.take(UUID(old["quote_id"]), await asker_of(deps, old), mint_id(), None)
    await deps.db.run(
        "UPDATE quotes SET expires_at = now() - interval '2 hours' WHERE id = :id",
        id=UUID(old["quote_id"]),
    )
    assert await forget_quotes(deps.db, 3 * 3600) == 0
    assert await forget_quotes(deps.db, 3600) == 1
    assert await uses(deps, old["quote_id"]) == []
    left = await deps.db.run("SELECT 1 FROM quotes WHERE id = :id", id=UUID(young["quote_id"]))
    assert len(left) == 1
