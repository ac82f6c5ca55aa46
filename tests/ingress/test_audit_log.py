"""Checkpoints, proofs and the bundle for auditors, as everybody and as their owner see them."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from joserfc.jwk import OKPKey

from ingress.deps import Deps
from shared.domain.checkpoint import (
    Checkpoint,
    VerifierKey,
    decode,
    entry,
    open_note,
    parse_verifier_key,
)
from shared.domain.merkle import leaf_hash, verify_consistency, verify_inclusion
from shared.log_key import check_signature
from tests.ingress.conftest import BASE_URL, SignUp, leave_call
from workers.checkpoints import Checkpointer

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"
Sign = Callable[[], Awaitable[Checkpoint]]


@pytest.fixture
def sign(deps: Deps, client: httpx.AsyncClient) -> Sign:
    """Signs what there is; the checkpoint as it is told, verified with the key that is told."""

    async def sign() -> Checkpoint:
        await Checkpointer(deps.settings, deps.db, []).round()
        return open_note(await checkpoint(client), await key(client), check_signature)

    return sign


async def checkpoint(client: httpx.AsyncClient) -> str:
    answer = await client.get("/v1/audit/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text


async def key(client: httpx.AsyncClient) -> VerifierKey:
    return parse_verifier_key((await client.get("/v1/audit/log-key")).text)


async def proof(client: httpx.AsyncClient, new: dict[str, Any], seq: object) -> httpx.Response:
    path = f"/v1/audit/{new['agent_id']}/proof"
    return await client.get(path, params={"seq": str(seq)}, headers=new["auth"])


async def test_before_the_first_checkpoint_there_is_none(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    for path in ("/v1/audit/checkpoint", "/v1/audit/log-key", "/v1/audit/consistency?from=1"):
        assert (await client.get(path)).status_code == 404
    new = await sign_up()
    answer = (await proof(client, new, 1)).json()
    assert (answer["logged"], answer["proof"], answer["checkpoint"]) == (False, None, None)


async def test_an_event_is_proven_to_whoever_has_the_key_alone(
    client: httpx.AsyncClient, sign_up: SignUp, sign: Sign
) -> None:
    new = await sign_up()
    await sign_up()
    head = await sign()
    assert head.origin == "gateway.test/v1/audit"
    for seq in (1, 2):
        told = (await proof(client, new, seq)).json()
        bytes_of_leaf = entry(new["agent_id"], seq, told["event_hash"])
        assert told["entry"].encode() == bytes_of_leaf
        opened = open_note(told["checkpoint"], await key(client), check_signature)
        assert (opened, opened.size) == (head, told["tree_size"])
        path = [decode(each) for each in told["proof"]]
        where = (told["leaf_index"], opened.size)
        assert verify_inclusion(*where, leaf_hash(bytes_of_leaf), path, opened.root)
        assert not verify_inclusion(*where, leaf_hash(bytes_of_leaf + b"x"), path, opened.root)


async def test_proofs_are_for_the_agents_owner(
    client: httpx.AsyncClient, sign_up: SignUp, sign: Sign
) -> None:
    new, other = await sign_up(), await sign_up()
    await sign()
    strangers = [
        await proof(client, new | {"auth": other["auth"]}, 1),
        await proof(client, new | {"agent_id": UNKNOWN_ID}, 1),
        await proof(client, new | {"agent_id": "no-uuid"}, 1),
        await proof(client, new, 999),
        await client.get(f"/v1/audit/{new['agent_id']}/annex-iv", headers=other["auth"]),
    ]
    assert {answer.status_code for answer in strangers} == {404}
    assert len({answer.content for answer in strangers}) == 1
    assert (await proof(client, new | {"auth": {}}, 1)).status_code == 401
    for wrong in (0, -1, "x", 2**70):
        assert (await proof(client, new, wrong)).status_code == 400


async def test_the_log_only_grows(client: httpx.AsyncClient, sign_up: SignUp, sign: Sign) -> None:
    await sign_up()
    before = await sign()
    await sign_up()
    after = await sign()
    for params in ({"from": before.size}, {"from": before.size, "to": after.size}):
        told = (await client.get("/v1/audit/consistency", params=params)).json()
        assert (told["from_size"], told["to_size"]) == (before.size, after.size)
        assert (decode(told["from_root"]), decode(told["to_root"])) == (before.root, after.root)
        path = [decode(each) for each in told["proof"]]
        assert verify_consistency(before.size, after.size, path, before.root, after.root)
    for wrong in ({"from": after.size + 1}, {"from": 2, "to": 1}, {"from": 1, "to": 10**9}):
        answer = await client.get("/v1/audit/consistency", params=wrong)
        assert answer.status_code == 404
    assert (await client.get("/v1/audit/consistency", params={"from": 0})).status_code == 400


async def test_the_logs_key_is_among_the_published_ones(
    client: httpx.AsyncClient, sign_up: SignUp, sign: Sign
) -> None:
    new = await sign_up()
    await sign()
    keys = (await client.get("/.well-known/jwks.json")).json()["keys"]
    raw = [OKPKey.import_key(each).public_key.public_bytes_raw() for each in keys]
    assert raw[0] == (await key(client)).public
    of_agent = await client.get(f"/.well-known/jwks.json?agent_id={new['agent_id']}")
    assert len(of_agent.json()["keys"]) == 1


async def test_a_receipt_names_the_event_that_witnessed_it(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    await leave_call(database_url, deps, new)
    left = await leave_call(database_url, deps, new, witnessed=True)
    receipt = (await client.get(f"/v1/receipts/{left.receipt_id}", headers=new["auth"])).json()
    assert receipt["proof_url"].startswith(f"{BASE_URL}/v1/audit/{new['agent_id']}/proof?seq=")
    events = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    (event,) = [each for each in events["events"] if each["seq"] == receipt["audit_seq"]]
    assert event["event_type"] == "receipt.created"
    assert event["payload"]["receipt_id"] == left.receipt_id


async def test_a_receipt_without_a_witness_names_none(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    receipt = (await client.get(f"/v1/receipts/{left.receipt_id}", headers=new["auth"])).json()
    assert (receipt["audit_seq"], receipt["proof_url"]) == (None, None)


async def test_the_annex_says_what_is_known_and_what_is_not(
    client: httpx.AsyncClient, sign_up: SignUp, sign: Sign, deps: Deps, database_url: str
) -> None:
    new = await sign_up(daily_cap_usd="7")
    await leave_call(database_url, deps, new)
    await leave_call(database_url, deps, new, routed=False, charge="0.02")
    head = await sign()
    path = f"/v1/audit/{new['agent_id']}/annex-iv"
    told = (await client.get(path, headers=new["auth"])).json()
    assert told["agent"]["agent_id"] == new["agent_id"]
    assert told["policies"]["spend_policy"]["daily_cap_usd"] == "7.00"
    (used,) = told["models"]
    assert (used["model"], used["calls"], used["cost_usd"]) == ("gpt-5-5", 2, "0.0325")
    (outcome,) = told["outcomes"]["routed"]
    assert (outcome["outcome_status"], outcome["calls"]) == ("succeeded", 1)
    assert outcome["ruleset_hash"] == told["policies"]["ruleset_hash"]
    assert told["outcomes"]["events"]["provider.responded"] == 2
    trail = told["audit"]
    assert trail["proof"]["seq"] == trail["event_count"] == 4
    assert trail["proof"]["event_hash"] == trail["head_hash"]
    assert trail["proof"]["tree_size"] == head.size
    assert f"fleet audit export --agent {new['agent_id']} agent.jsonl" in trail["how_to_verify"]
    assert [point["point"] for point in told["annex_iv"]] == [str(n) for n in range(1, 10)]
    for point in told["annex_iv"]:
        assert (point["coverage"] == "none") is (point["sections"] == [])
        assert set(point["sections"]) <= set(told)
        assert point["provider_adds"]


async def test_the_annex_of_a_new_agent_is_honestly_empty(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    path = f"/v1/audit/{new['agent_id']}/annex-iv"
    told = (await client.get(path, params={"days": 1}, headers=new["auth"])).json()
    assert (told["models"], told["outcomes"]["routed"], told["audit"]["proof"]) == ([], [], None)
    for wrong in (0, 367):
        answer = await client.get(path, params={"days": wrong}, headers=new["auth"])
        assert answer.status_code == 400


async def test_the_age_and_the_size_of_the_log_are_metrics(
    client: httpx.AsyncClient, sign_up: SignUp, sign: Sign, deps: Deps
) -> None:
    await sign_up()
    head = await sign()
    secret = deps.settings.internal_key.get_secret_value()
    shown = (await client.get("/metrics", headers={"x-ainfera-internal-key": secret})).text
    lines = dict(line.rsplit(" ", 1) for line in shown.splitlines() if not line.startswith("#"))
    assert float(lines["ainfera_audit_log_size"]) == head.size
    assert float(lines["ainfera_audit_chain_height"]) == head.size
    assert float(lines["ainfera_audit_checkpoint_age_seconds"]) >= 0
