"""Receipts of random decisions, made as the system makes them: decided, stored, bound, signed."""

import json
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from shared.domain import capture
from shared.domain.audit import draft, event_hash, seal
from shared.domain.checkpoint import encode, entry
from shared.domain.merkle import Growing, Place, assemble, grow, inclusion_ranges, leaf_hash
from shared.domain.routing import Decision, replay
from shared.keys import public_jwk
from shared.log_key import LogKey, public_pem
from shared.receipt_verifier import canonical

Json = dict[str, Any]

KEY = LogKey("gateway.test/v1/audit", bytes(range(32)))
JWKS: Json = {"keys": [public_jwk(public_pem(KEY.verifier))]}
AGENT = "01890000-0000-7000-8000-00000000000a"
TENANT = "01890000-0000-7000-8000-00000000000b"
# printf 'ainfera tenant 01890000-0000-7000-8000-00000000000b' | sha256sum | head -c 16
SEAL = "774667940ac221c3"
PROVIDERS = ("anthropic", "openai", "google", "mistral", "xai")
CAPABILITIES = ("tools", "vision", "thinking")
TASKS = ("reasoning", "code", "extraction", "chat", "tool_use", "embed", "general")
REGIONS, DATA_CLASSES = ("eu", "us"), ("public", "internal")


class Dice(random.Random):
    """Seeded throws."""

    def maybe(self, value: Any, share: float = 0.5, otherwise: Any = None) -> Any:
        return value if self.random() < share else otherwise

    def some(self, values: tuple[str, ...], share: float = 0.5) -> list[str]:
        return sorted(value for value in values if self.random() < share)

    def decimal(self, low: int, high: int, places: int) -> str:
        return f"{Decimal(self.randint(low, high)).scaleb(-places):f}"


def model(dice: Dice, slug: str) -> Json:
    """One candidate, now and then without a price, a quality or a verdict."""
    brand = dice.choice(PROVIDERS)
    told: Json = {
        "slug": slug,
        "brand": brand,
        "provider": brand,
        "provider_model_id": f"{slug}-id",
        "display_name": f"Modèle {slug}",
        "created": "2026-01-01",
        "context_window": dice.randint(6_000, 100_000),
        "max_output_tokens": dice.randint(100, 10_000),
        "price_in": dice.maybe(dice.decimal(1, 3000, 2), 0.95),
        "price_out": dice.decimal(1, 900_000, 4),
        "price_cache_read": None,
        "price_cache_write": dice.maybe(dice.decimal(1, 3000, 3)),
        "q_prior": dice.maybe(dice.decimal(0, 100, 2), 0.95),
        "verdict": dice.choice(["PASS"] * 6 + ["CONDITIONAL", "CONDITIONAL", "VETO", None]),
        "capabilities": dice.maybe(list(CAPABILITIES), 0.8, dice.some(CAPABILITIES)),
        "expected_latency_ms": dice.maybe(dice.randint(10, 10_000)),
        "aa_index_source": dice.maybe("measured"),
    }
    if told["q_prior"] is not None and dice.random() < 0.8:  # the others are as older ones are
        told |= {
            "q_prior_source": dice.choice(["anchor", "estimate"]),
            "q_prior_date": "2026-11-21",
        }
    if told["verdict"] == "CONDITIONAL" and dice.random() < 0.8:
        given = {
            "opt_in": dice.maybe(True),
            "data_class": dice.maybe(dice.some(DATA_CLASSES)),
            "region": dice.maybe(dice.some(REGIONS, 0.7)),
            "tenant": dice.maybe([dice.choice([TENANT, AGENT, SEAL])], 0.3),
        }
        told["conditions"] = {name: value for name, value in given.items() if value is not None}
    return told


def features(dice: Dice, slugs: list[str]) -> Json:
    names = [*slugs, f"{slugs[0]}-id", *PROVIDERS]
    asked: Json = {
        "task_type": dice.choice(TASKS),
        "input_tokens": dice.randint(0, 5_000),
        "reserved_output_tokens": dice.randint(1, 5_000),
        "capabilities": dice.some(CAPABILITIES, 0.15),
        "min_quality": dice.maybe(dice.decimal(0, 100, 2), 0.3),
        "routing_preference": dice.choice(["balanced", "quality", "cost"]),
        "budget_cap_usd": dice.maybe(dice.decimal(0, 3_000, 4), 0.2),
        "latency_cap_ms": dice.maybe(dice.randint(1, 10_000), 0.3),
        "allow": dice.maybe(sorted({dice.choice(names) for _ in range(4)}), 0.2, []),
        "deny": dice.maybe([dice.choice(names)], 0.2, []),
    }
    return asked | {
        "tenant_id": TENANT,
        "data_class": dice.maybe(dice.choice(DATA_CLASSES)),
        "region": dice.maybe(dice.choice(REGIONS)),
    }


def policy(dice: Dice) -> Json:
    floors = {task: dice.decimal(0, 95, 2) for task in dice.some(TASKS)}
    return {
        "agent_min_quality": dice.maybe(dice.decimal(0, 90, 2), 0.2),
        "tenant_min_quality": dice.maybe(dice.decimal(0, 90, 2), 0.2),
        "version": dice.choice(["flat-1", "task-floors-1", "task-floors-1"]),
        "default_output_tokens": 1024,
        **dice.maybe({"floors": floors}, 0.7, {}),
        "q_source": dice.choice(["prior", "empirical"]),
        "exploration_share": dice.maybe(dice.decimal(0, 20, 2), 0.5, "0"),
    }


def inputs(dice: Dice) -> Json:
    """Inputs of a decision, with all that a decision may be made from."""
    slugs = sorted({f"m{dice.randint(0, 99):02d}" for _ in range(dice.randint(1, 12))})
    seen = [slug for slug in slugs if dice.random() < 0.5]
    lower = {slug: dice.randint(0, 95) for slug in seen}
    return {
        "features": features(dice, slugs),
        "policy": policy(dice),
        "active_providers": dice.maybe(sorted(PROVIDERS), 0.7, dice.some(PROVIDERS)),
        "preference_live": dice.random() < 0.5,
        "seed": f"{dice.getrandbits(128):032x}",
        "candidates": [model(dice, slug) for slug in slugs],
        "latencies": {slug: dice.randint(10, 10_000) for slug in seen},
        "empirical": {
            slug: {"q": f"0.{lower[slug] + 4:02d}", "lower": f"0.{lower[slug]:02d}", "n": 412}
            for slug in seen
        },
    }


def decisions(count: int, seed: int) -> Iterator[Decision]:
    dice = Dice(seed)
    return (replay(inputs(dice)) for _ in range(count))


def outcome(decision: Decision, number: int) -> Json:
    """A row of `routing_outcomes` as the database gives it back, of a call that ended somehow."""
    row: Json = json.loads(json.dumps(capture.columns(decision)))
    for money in ("min_quality", "cost_projected"):
        row[money] = None if row[money] is None else Decimal(row[money])
    reached = decision.chosen is not None and number % 5 > 0
    refused = "rejected_funds" if decision.chosen is not None else "rejected_floor"
    return row | {
        "inference_id": f"01890000-0000-7000-8000-{number:012x}",
        "cost_actual": Decimal(number).scaleb(-9) if reached else None,
        "observed_latency_ms": number if reached else None,
        "ttft_ms": number // 2 if reached else None,
        "outcome_status": "succeeded" if reached else refused,
        "fallback_chain": [],
    }


def event_of(row: Json, decision: Decision, number: int) -> Json:
    """The audit event of its settlement, with a place in its agent's chain."""
    data: Json = {
        "inference_id": row["inference_id"],
        "router": "ainfera-inference",
        "outcome": row["outcome_status"],
        "decision_sha256": capture.record(decision).digest,
    }
    kind = "inference.rejected_floor"
    if row["cost_actual"] is not None:
        kind = "provider.responded"
        data |= {"cost_usd": f"{row['cost_actual']:f}", "latency_ms": row["observed_latency_ms"]}
    text = seal(draft(kind, AGENT, data), "2026-11-21T00:00:00.000000Z", number)
    before = f"{number:064x}" if number > 1 else None
    return {
        "agent_id": AGENT,
        "seq": number,
        "event_type": kind,
        "payload": json.loads(text),
        "previous_hash": before,
        "event_hash": event_hash(before, text),
    }


def signed(receipt: Json) -> Json:
    return {**receipt, "signature": KEY.sign_receipt(canonical(receipt).encode())}


def receipts(count: int, seed: int) -> list[Json]:
    """Signed receipts, all under one checkpoint."""
    made = []
    for number, decision in enumerate(decisions(count, seed), 1):
        row = outcome(decision, number)
        snapshot = json.loads(json.dumps(decision.catalog.to_json()))
        event = event_of(row, decision, number)
        made.append(signed(capture.receipt(row, snapshot, event)))
    return [
        {**receipt, "audit_proof": proof} for receipt, proof in zip(made, proofs(made), strict=True)
    ]


def proofs(made: list[Json]) -> Iterator[Json]:
    """That each event is in a log of these events."""
    events = [receipt["audit_event"] for receipt in made]
    leaves = [
        leaf_hash(entry(event["agent_id"], event["seq"], event["event_hash"])) for event in events
    ]
    tree, growing = dict[Place, bytes](), Growing()
    _, tree = grow(0, {}, leaves)
    for leaf in leaves:
        growing.append(leaf)
    note = KEY.sign(len(leaves), growing.root())
    for index in range(len(leaves)):
        path = assemble(inclusion_ranges(index, len(leaves)), tree)
        yield {"leaf_index": index, "proof": [encode(each) for each in path], "checkpoint": note}


def written(made: list[Json]) -> str:
    """A receipt a line."""
    return "".join(
        json.dumps(receipt, ensure_ascii=False, separators=(",", ":")) + "\n" for receipt in made
    )
