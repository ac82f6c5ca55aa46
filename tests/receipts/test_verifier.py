"""The verifier that clients keep: what it finds, what it says it cannot know, what it needs."""

import ast
import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import KeySet

from shared import receipt_verifier as verifier
from shared.domain import capture
from shared.domain.routing import RULESET_HASH
from shared.log_key import check_signature
from tests.domain.routing_cases import ALL_ACTIVE, ANCHORS, asked, steady
from tests.receipts.altering import altered, field, leaves, other_bytes
from tests.receipts.cases import JWKS, Json, decisions, outcome, receipts, signed, written
from tests.receipts.verifying import VERIFIER, run_alone, verify_alone

KEYS = verifier.read_keys(JWKS)
MANY = 500
MADE = receipts(60, 7)
CHOSEN = next(r for r in MADE if r["outcome_status"] == "succeeded" and r["fallback_chain"] == [])


def found(receipt: Json, keys: Any = KEYS) -> dict[str, bool | None]:
    """What each check says; signatures by the fast implementation."""
    checks = verifier.check(receipt, keys, check_signature)
    return {each.name: each.proved for each in checks}


def word(receipt: Json, keys: Any = KEYS) -> str:
    return verifier.verdict(verifier.check(receipt, keys, check_signature))


def test_random_receipts_verify_where_nothing_else_is(tmp_path: Path) -> None:
    """As many as take three seconds; `python -m tests.receipts` does ten thousand."""
    answer = verify_alone(tmp_path, receipts(MANY, 7))
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{MANY} receipts: {MANY} valid. Proved: ")
    proved = ("signature", "catalog", "ruleset", "rule", "event", "log")
    assert ", ".join(f"{name} {MANY}" for name in proved) in answer.out


def test_every_altered_value_is_found() -> None:
    few = [r for r in MADE if len(r["candidates"]) < 7]
    kinds = {(r["decision_rule"], r["explored"], r["outcome_status"]): r for r in few}
    assert len(kinds) > 2
    missed = {
        field(path)
        for receipt in kinds.values()
        for path in leaves(receipt)
        if word(altered(receipt, path)) != "mismatch"
    }
    assert missed == set()


def test_every_altered_byte_is_found() -> None:
    text = written([CHOSEN]).rstrip("\n").encode()
    missed = []
    for place, other in list(other_bytes(text))[:: max(len(text) // 400, 1)]:
        (read,) = verifier.read_receipts([other.decode("utf-8", "surrogateescape")])
        results = verifier.check_all([read], lambda r: verifier.check(r, KEYS, check_signature))
        if next(results)[1] not in ("mismatch", "unreadable"):
            missed.append(place)
    assert missed == []


@pytest.mark.parametrize("name", [name for name in CHOSEN if name != "audit_proof"])
def test_what_is_left_out_is_found(name: str) -> None:
    assert word({other: CHOSEN[other] for other in CHOSEN if other != name}) != "valid"


def test_the_ruleset_of_this_version_is_known() -> None:
    """Who changes the rule teaches the verifier the new one, or clients' receipts do not verify."""
    assert RULESET_HASH in verifier.RULESETS


def test_an_unknown_ruleset_is_said_to_be_unknown(tmp_path: Path) -> None:
    inputs = {**CHOSEN["inputs"], "ruleset_hash": "f" * 16}
    unknown = {**CHOSEN, "ruleset_hash": "f" * 16, "inputs": inputs, "audit_event": None}
    answer = verify_alone(tmp_path, [unknown], jwks=None)
    assert answer.code == 3
    assert "not replayable" in answer.out
    assert "does not know the ruleset ffffffffffffffff" in answer.out


def test_a_receipt_from_before_calls_explored_says_nothing_of_it() -> None:
    made = next(r for r in MADE if r["inputs"]["policy"]["exploration_share"] == "0")
    (first,) = [told for told, version in verifier.RULESETS.items() if version == 1]
    inputs = {**made["inputs"], "ruleset_hash": first, "empirical": {}}
    old = {**made, **verifier.decide(inputs), "ruleset_hash": first, "inputs": inputs}
    del old["explored"]
    assert found(old)["rule"] is True
    assert found({**old, "explored": True})["rule"] is False


def test_that_a_call_explored_is_part_of_what_replays() -> None:
    decision = next(each for each in decisions(400, 3) if each.explored)
    drawn = capture.receipt(outcome(decision, 1), decision.catalog.to_json())
    assert drawn["explored"]
    assert found(drawn)["rule"] is True
    for other in ({**drawn, "explored": False}, {k: drawn[k] for k in drawn if k != "explored"}):
        assert found(other)["rule"] is False


def test_a_receipt_without_inputs_is_never_valid(tmp_path: Path) -> None:
    row = {**outcome(next(decisions(1, 3)), 1), "decision": {}, "outcome_status": "expired"}
    lost = signed(capture.receipt(row, (), None))
    answer = verify_alone(tmp_path, [lost])
    assert answer.code == 3
    assert capture.LOST_REASONS in answer.out
    assert found(lost)["signature"] is True


def test_without_a_key_it_says_what_was_not_shown(tmp_path: Path) -> None:
    answer = verify_alone(tmp_path, [CHOSEN], jwks=None)
    assert answer.code == 3
    assert answer.out.startswith(f"receipt {CHOSEN['inference_id']}: consistent\n")
    assert re.search(r"not shown +signature +no key was given", answer.out)
    assert re.search(r"not shown +log .*signature was not checked", answer.out)
    assert re.search(r"proved +event", answer.out)


def test_with_a_key_a_receipt_must_be_signed_by_it() -> None:
    assert word({**CHOSEN, "signature": None}) == "mismatch"
    assert word(CHOSEN, {}) == "mismatch"
    other = next(r for r in MADE if r is not CHOSEN)
    assert word({**CHOSEN, "signature": other["signature"]}) == "mismatch"


def test_another_event_of_the_same_agent_does_not_bind_the_decision() -> None:
    for part in ("audit_event", "audit_proof"):
        assert word({**CHOSEN, part: MADE[2][part]}, None) == "mismatch"


def test_an_older_receipt_still_replays() -> None:
    old = {n: v for n, v in CHOSEN.items() if n not in ("audit_event", "audit_proof", "signature")}
    assert found(old, None) == {
        "signature": None,
        "catalog": True,
        "ruleset": True,
        "rule": True,
        "event": None,
        "log": None,
    }
    assert word(old, None) == "consistent"


def test_what_anybody_can_write_is_not_called_valid() -> None:
    """The rule replays, and nothing binds what the call cost."""
    forged = {**CHOSEN, "cost_actual": "9.99", "outcome_status": "failed_provider"}
    for name in ("audit_event", "audit_proof", "signature"):
        del forged[name]
    assert (word(forged, None), word(forged)) == ("consistent", "mismatch")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"receipt_id": "r", "cost_usd": "1"}, "/v1/inferences/{id}/decision answers one"),
        ({"quote_id": None, "decision": CHOSEN}, "a quote: its `decision` is one"),
        ({"keys": []}, "that is for --jwks"),
    ],
)
def test_what_else_it_may_be_is_said(tmp_path: Path, what: dict[str, Any], words: str) -> None:
    answer = verify_alone(tmp_path, [what])
    assert answer.code == 2
    assert words in answer.out


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"inputs":1', '{"inference_id":"a","inputs":NaN}', "\x00", "1\n2\n"],
)
def test_what_is_no_receipt_is_refused(tmp_path: Path, text: str) -> None:
    assert run_alone(tmp_path, text).code in (1, 2)


def test_a_name_that_comes_twice_is_refused() -> None:
    text = written([CHOSEN]).replace('"seed":', '"seed":"other","seed":', 1)
    (read,) = verifier.read_receipts([text])
    assert isinstance(read, ValueError)


def test_one_receipt_over_many_lines_and_from_standard_input(tmp_path: Path) -> None:
    assert run_alone(tmp_path, json.dumps(CHOSEN, indent=2)).out.startswith("receipt 0189")


def test_a_third_party_verifies_the_signature_with_a_stock_library() -> None:
    receipt = json.loads(json.dumps(CHOSEN))
    signature = receipt.pop("signature")
    receipt.pop("audit_proof")
    text = json.dumps(receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    keys = KeySet.import_key_set(JWKS)  # type: ignore[arg-type]
    jws.deserialize_compact(signature, keys, algorithms=["EdDSA"], payload=text)


def test_the_file_needs_nothing_and_an_old_python() -> None:
    tree = ast.parse(VERIFIER.read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert imported <= sys.stdlib_module_names | {"__future__"}


# -- its own Ed25519 and canonical JSON ---------------------------------------------------------


@pytest.mark.parametrize(
    ("public", "signature", "message"),
    [  # RFC 8032 section 7.1, tests 1 and 3
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            "",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
            "af82",
        ),
    ],
)
def test_signatures_of_the_standard(public: str, signature: str, message: str) -> None:
    key, signed_, text = map(bytes.fromhex, (public, signature, message))
    assert verifier.verify_ed25519(key, signed_, text)
    assert not verifier.verify_ed25519(key, signed_, text + b"x")
    # the same point with another number for its scalar: not in its one form
    scalar = int.from_bytes(signed_[32:], "little") + verifier.L
    assert not verifier.verify_ed25519(key, signed_[:32] + scalar.to_bytes(32, "little"), text)


@steady
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=50), st.integers(0, 511))
def test_it_agrees_with_another_implementation(seed: bytes, text: bytes, bit: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), private.sign(text)
    assert verifier.verify_ed25519(public, signature, text)
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    assert not verifier.verify_ed25519(public, bytes(flipped), text)


@pytest.mark.parametrize(
    ("value", "text"),
    [  # RFC 8785 section 3.2.2.3 and its appendix B
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.74, "0.74"),
        (1e-5, "0.00001"),
        (0.000001, "0.000001"),
        (1e-7, "1e-7"),
        (1e21, "1e+21"),
        (333333333.33333329, "333333333.3333333"),
        (9007199254740992.0, "9007199254740992"),
        (-1.5e-9, "-1.5e-9"),
        (
            {"b": [1.0, True, None], "a": '\u00e9\u2028\n\x1f"'},
            '{"a":"é\u2028\\n\\u001f\\"","b":[1,true,null]}',
        ),
        ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'),
    ],
)
def test_the_one_text_of_a_value(value: Any, text: str) -> None:
    assert verifier.canonical(value) == text
    assert verifier.by_hand(value) == text


# -- what the newer ruleset has as inputs, worked out by hand --------------------------------------

V2 = next(told for told, version in verifier.RULESETS.items() if version == 2)


def decided(models: dict[str, Json] | None = None, **changes: Any) -> Json:
    """The verifier's decision on the anchors: in order of cost mistral, gemini, gpt-5-5 and grok
    (gpt has the higher quality), claude."""
    listed = [{**c, **(models or {}).get(c["slug"], {})} for c in ANCHORS.to_json()]
    features = {**asked().to_json(), "tenant_id": "t", "data_class": None, "region": None}
    policy: Json = {"version": "flat-1", **changes.pop("policy", {})}
    inputs = {
        "features": {**features, **changes.pop("features", {})},
        "policy": policy,
        "active_providers": sorted(ALL_ACTIVE),
        "preference_live": False,
        "seed": "s",
        "ruleset_hash": V2,
        "candidates": listed,
        "latencies": {},
        "empirical": {},
    }
    told: Json = verifier.decide({**inputs, **changes})
    return told


@pytest.mark.parametrize(
    ("conditions", "features", "chosen"),
    [
        (None, {}, "gemini-3-1-pro"),
        ({}, {"allow": ["mistral", "google"]}, "mistral-large-3"),
        ({"opt_in": True}, {"allow": ["mistral", "google"]}, "mistral-large-3"),
        ({"data_class": ["public"]}, {}, "gemini-3-1-pro"),
        ({"data_class": ["public"]}, {"data_class": "public"}, "mistral-large-3"),
        ({"data_class": ["public"], "region": ["eu"]}, {"data_class": "public"}, "gemini-3-1-pro"),
        ({"region": ["eu"]}, {"region": "eu"}, "mistral-large-3"),
        ({"tenant": ["t"]}, {}, "mistral-large-3"),
        ({"tenant": ["u"]}, {}, "gemini-3-1-pro"),
        # printf 'ainfera tenant t' | sha256sum | head -c 16
        ({"tenant": ["b3265f6c5fc715f2", "0123456789abcdef"]}, {}, "mistral-large-3"),
        ({"tenant": ["0123456789abcdef"]}, {}, "gemini-3-1-pro"),
        ({"tenant": ["b3265f6c5fc715f2"]}, {"tenant_id": None}, "gemini-3-1-pro"),
    ],
)
def test_conditions(conditions: Any, features: Json, chosen: str) -> None:
    limited = {"mistral-large-3": {"verdict": "CONDITIONAL", "conditions": conditions}}
    assert decided(limited, features=features)["chosen_model_slug"] == chosen


def test_floors_of_the_policy_come_before_those_of_its_name() -> None:
    told = decided(policy={"version": "task-floors-1", "floors": {"general": "0.88"}})
    assert (told["chosen_model_slug"], told["min_quality"]) == ("gpt-5-5", 0.88)
    assert decided(policy={"version": "task-floors-1"})["min_quality"] == 0.68


def test_observed_latency_and_measured_quality_count() -> None:
    slow = {"mistral-large-3": 900}
    told = decided(features={"latency_cap_ms": 800}, latencies=slow)
    assert told["chosen_model_slug"] == "gemini-3-1-pro"
    poor = {"mistral-large-3": {"q": "0.55", "lower": "0.49", "n": 400}}
    measured = decided(policy={"q_source": "empirical"}, empirical=poor)
    assert measured["chosen_model_slug"] == "gemini-3-1-pro"
    assert decided(empirical=poor)["chosen_model_slug"] == "mistral-large-3"


def test_exploring() -> None:
    """About a fifth of the seeds; never the cheapest, which stays the first by rank."""
    share = {"exploration_share": "0.2"}
    told = {seed: decided(policy=share, seed=seed) for seed in map(str, range(60))}
    explored = [one for one in told.values() if one["explored"]]
    assert 0 < len(explored) < 30
    assert {one["decision_rule"] for one in told.values()} == {"cheapest_clearing_floor"}
    assert "mistral-large-3" not in {one["chosen_model_slug"] for one in explored}
    assert len({one["chosen_model_slug"] for one in explored}) > 1
    assert {one["candidates"][0]["model_slug"] for one in told.values()} == {"mistral-large-3"}
    assert all(Decimal(one["cost_projected"]) > Decimal("0.008") for one in explored)


def with_candidate(**changes: Any) -> Json:
    """A receipt with another first model, under the hash that these models have."""
    first, *others = CHOSEN["inputs"]["candidates"]
    models = [{**first, **changes}, *others]
    named = verifier.digest(models)
    inputs = {**CHOSEN["inputs"], "candidates": models, "catalog_hash": named}
    return {**CHOSEN, "inputs": inputs, "catalog_hash": named}


@pytest.mark.parametrize("quality", ["1e999999999", "1e9999999", "Infinity", "NaN"])
def test_a_number_that_takes_for_ever_is_refused_at_once(quality: str) -> None:
    assert word(with_candidate(q_prior=quality), None) == "mismatch"


@pytest.mark.parametrize("tokens", ["aaaa", [0], 1.5, True])
def test_tokens_that_are_no_number_are_not_multiplied(tokens: Any) -> None:
    features = {**CHOSEN["inputs"]["features"], "input_tokens": tokens}
    odd = {**CHOSEN, "inputs": {**CHOSEN["inputs"], "features": features}}
    assert found(odd, None)["rule"] is False


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"inference_id":' + "[" * 100_000, '{"inference_id":"\\ud800"}']
)
def test_an_odd_line_hides_none_behind_it(tmp_path: Path, line: str) -> None:
    wrong = altered(CHOSEN, ("cell",))
    answer = run_alone(tmp_path, line + "\n" + written([wrong]))
    assert (answer.code, answer.err) == (1, "")
    assert "2 receipts: 1 mismatch, 1 unreadable." in answer.out


def test_what_nests_deeply_is_a_mismatch(tmp_path: Path) -> None:
    deep: Any = 1.0
    for _ in range(900):
        deep = [deep]
    answer = verify_alone(tmp_path, [{**CHOSEN, "seed": deep}])
    assert (answer.code, answer.err) == (1, "")


def test_a_receipt_does_not_speak_for_the_verifier(tmp_path: Path) -> None:
    odd = {**CHOSEN, "inference_id": "x: valid\n  proved     signature\x1b[8m \ud800"}
    text = written([odd]).encode("utf-8", "backslashreplace").decode()
    answer = run_alone(tmp_path, text)
    assert answer.out.startswith(r"receipt x: valid\n  proved     signature\x1b[8m ")
    assert answer.code == 1


def test_empty_lines_between_receipts_are_passed_over(tmp_path: Path) -> None:
    one = written([CHOSEN])
    answer = run_alone(tmp_path, "\ufeff\n" + one + "\n\n" + one)
    assert "2 receipts: 2 valid." in answer.out


def test_a_proof_has_no_members_that_prove_nothing() -> None:
    proof = {**CHOSEN["audit_proof"], "refund": "100 USD"}
    assert word({**CHOSEN, "audit_proof": proof}) == "mismatch"
