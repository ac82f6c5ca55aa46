"""Decision receipts over HTTP: signed, bound by the audit chain, and proved to be in the log."""

from typing import Any

import asyncpg
import httpx
import pytest
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet

from ingress.deps import Deps
from shared.receipt_verifier import canonical, check, parse, read_keys, verdict
from tests.ingress.conftest import Left, SignUp, leave_call
from workers.checkpoints import Checkpointer


async def decision_of(client: httpx.AsyncClient, new: dict[str, Any], left: Left) -> str:
    path = f"/v1/inferences/{left.inference_id}/decision"
    answer = await client.get(path, headers=new["auth"])
    assert answer.status_code == 200
    return answer.text


async def key_set(client: httpx.AsyncClient) -> Any:
    return (await client.get("/.well-known/jwks.json")).json()


async def test_what_a_client_reads_is_proved_by_what_it_can_keep(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    receipt = parse(await decision_of(client, new, left))
    checks = check(receipt, read_keys(await key_set(client)))
    assert [(each.name, each.proved) for each in checks] == [
        ("signature", True),
        ("catalog", True),
        ("ruleset", True),
        ("rule", True),
        ("event", True),
        ("log", None),
    ]
    assert verdict(checks) == "valid"
    event = receipt["audit_event"]
    chain = await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])
    (found,) = [one for one in chain.json()["events"] if one["seq"] == event["seq"]]
    assert {name: found[name] for name in event} == event
    assert event["event_type"] == "provider.responded"


async def test_the_log_has_the_event_once_it_is_under_a_checkpoint(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    before = parse(await decision_of(client, new, left))
    await Checkpointer(deps.settings, deps.db, []).round()
    after = parse(await decision_of(client, new, left))
    assert before.pop("audit_proof") is None
    told = {each.name: each.proved for each in check(after, read_keys(await key_set(client)))}
    assert told["log"] is True
    after.pop("audit_proof")
    assert after == before  # signature and all: what is signed never changes


async def test_a_stock_library_verifies_it(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    receipt = parse(await decision_of(client, new, left))
    signature, _ = receipt.pop("signature"), receipt.pop("audit_proof")
    keys = KeySet.import_key_set(await key_set(client))
    jws.deserialize_compact(signature, keys, algorithms=["EdDSA"], payload=canonical(receipt))
    receipt["cost_actual"] = "0.000000001"
    with pytest.raises(BadSignatureError):
        jws.deserialize_compact(signature, keys, algorithms=["EdDSA"], payload=canonical(receipt))


async def test_a_decision_nobody_recorded_is_signed_and_not_replayable(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new, documented=False)
    receipt = parse(await decision_of(client, new, left))
    checks = check(receipt, read_keys(await key_set(client)))
    assert verdict(checks) == "not replayable"
    assert {each.name: each.proved for each in checks}["signature"] is True
    assert receipt["undocumented"].startswith("The worker that decided was lost")


async def test_a_receipt_changed_in_the_database_is_not_what_the_chain_binds(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str, owner_url: str
) -> None:
    """Even the gateway's own signature does not make another decision of it."""
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    owner = await asyncpg.connect(owner_url)
    async with owner.transaction():
        await owner.execute("ALTER TABLE routing_outcomes DISABLE TRIGGER USER")
        await owner.execute(
            """UPDATE routing_outcomes
                  SET decision = jsonb_set(decision, '{terms,features,input_tokens}', '7')
                WHERE inference_id = $1::uuid""",
            left.inference_id,
        )
        await owner.execute("ALTER TABLE routing_outcomes ENABLE TRIGGER USER")
    await owner.close()
    receipt = parse(await decision_of(client, new, left))
    told = {each.name: each.proved for each in check(receipt, read_keys(await key_set(client)))}
    assert (told["signature"], told["rule"], told["event"]) == (True, False, False)


async def test_the_verifier_is_served_as_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.get("/.well-known/ainfera-receipt-verifier.py")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/x-python")
    compile(answer.text, "verifier", "exec")
    card = (await client.get("/.well-known/agent-card.json")).json()
    assert "ainfera-receipt-verifier.py" in str(card)
