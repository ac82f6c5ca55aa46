"""Checks decision receipts of an Ainfera gateway. One file, Python 3.9 or newer, nothing else.

    python ainfera-receipt-verifier.py receipt.json --jwks jwks.json

A receipt is what GET /v1/inferences/{id}/decision answers; the keys are those of the gateway's
/.well-known/jwks.json: fetch them once and keep them. A FILE holds one receipt, or one a line
(JSONL), or is `-`, standard input. Nothing is sent anywhere. What is checked:

  signature  who has the gateway's key said exactly this: a detached JWS (RFC 7515 appendix F,
             EdDSA) over the canonical JSON (RFC 8785) of the receipt without its `signature` and
             `audit_proof`
  catalog    `inputs.candidates` are the models whose hash the decision names
  ruleset    the rule is one that this program knows; of an unknown one it says nothing more
  rule       the rule, run again on `inputs`, gives these candidates, this choice, these costs
  event      the audit event's hash is right and its payload binds these inputs and this outcome
  log        the event is in the audit log, under a checkpoint that the gateway's key signed

Each is proved, or it is a MISMATCH, or it was not shown, and why. A receipt with a mismatch is
wrong. One whose rule cannot be run again (a lost worker left no inputs, or the ruleset is unknown)
is "not replayable". Without --jwks a receipt is "consistent" at best: anybody can write one that
is. Exit code: 0 all are valid, 1 one or more mismatches, 2 something that is no decision receipt
or cannot be read, 3 no mismatch, but not all are valid.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import IO, Any, NamedTuple

# Ruleset hash -> its version. Version 2 has conditions, observed latencies, measured qualities and
# exploration as inputs; where none is used, it decides as version 1.
RULESETS = {"4894b766843b505c": 1, "eb2a84051199eb23": 2}
TARGET, TYPE = "ainfera-inference", "ainfera-receipt"
UNSIGNED = ("signature", "audit_proof")
NANO, MILLION, CEILING = 10**9, 10**6, Decimal(10**9)

# What old receipts mean, which name a policy version and do not tell its floors.
TASK_FLOORS = {"reasoning": "0.88", "code": "0.78", "tool_use": "0.78", "general": "0.68"}
TASK_FLOORS.update({"chat": "0.58", "extraction": "0.58", "embed": "0.52"})
OLD_FLOORS = {"task-floors-1": TASK_FLOORS}
# What receipts of version 1 leave out, as it could not happen.
OLD_SILENCE = {"explored": False}

NOT_ENROLLED = ("not_enrolled_no_provider", "not_enrolled_no_price", "not_enrolled_no_q_prior")
VETO, MISSING, DENIED = "m_allowed_veto", "missing_capability", "denied_by_request"
GATED = ("below_quality_floor", "exceeds_budget_cap", "exceeds_latency_cap")

Json = Any
Verify = Callable[[bytes, bytes, bytes], bool]


class Check(NamedTuple):
    """`proved` is None where it could not be shown, False for a mismatch."""

    name: str
    proved: bool | None
    what: str


# -- canonical JSON (RFC 8785) -----------------------------------------------------------------


def canonical(value: Json) -> str:
    """The one text of a JSON value. Raises ValueError where it has none."""
    if isinstance(value, float):
        return number_text(value)
    text = FAST.encode(value)
    paired = not text.isascii() and max(text) > "\uffff"
    return by_hand(value) if paired or WHOLE.search(text) or POWER.search(text) else text


# What the fast way would write in another form: numbers as 1.0 or 1e-05, and, for the order of
# names, characters that are two code units in UTF-16.
FAST = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
WHOLE, POWER = re.compile(r"\.0[,}\]]"), re.compile(r"[:,\[]-?\d[\d.]*e")


def by_hand(value: Json) -> str:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{by_hand(n)}:{by_hand(value[n])}" for n in names) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(by_hand, value)) + "]"
    return number_text(value) if isinstance(value, float) else FAST.encode(value)


def number_text(value: float) -> str:
    """As ECMAScript writes a number."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text, minus = "".join(map(str, digits)), "-" if sign and value else ""
    point = len(text) + int(exponent)
    if 0 < point <= 21:
        whole, places = text[:point].ljust(point, "0"), text[point:]
        return minus + whole + ("." + places if places else "")
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    return f"{minus}{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1:+d}"


def once(pairs: list[tuple[str, Json]]) -> Json:
    """An object of which no member comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def digest(value: Json) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


# -- Ed25519 (RFC 8032), verification only -----------------------------------------------------

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D, ROOT = -121665 * pow(121666, P - 2, P) % P, pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]


def point(raw: bytes) -> Point | None:
    """A point of the curve from its 32 bytes."""
    y = int.from_bytes(raw, "little") & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * ROOT % P
    if y >= P or x * x % P != square or (x == 0 and raw[31] >> 7):
        return None
    x = x if x & 1 == raw[31] >> 7 else P - x
    return x, y, 1, x * y % P


def add(a: Point, b: Point) -> Point:
    m, n = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2]
    e, f, g, h = (n - m) % P, (d - c) % P, (d + c) % P, (n + m) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


BASE = (4 * pow(5, P - 2, P) % P).to_bytes(32, "little")


@lru_cache(maxsize=8)
def multiples(raw: bytes, minus: bool = False) -> list[list[Point]] | None:
    """A point, or its negative, times 0 to 15, times 16 to the power of 0 to 63."""
    found = point(raw)
    if found is None:
        return None
    base = (P - found[0], found[1], 1, P - found[3]) if minus else found
    rows = []
    for _ in range(64):
        row = [(0, 1, 1, 0)]
        for _ in range(15):
            row.append(add(row[-1], base))
        rows.append(row)
        base = add(row[-1], base)
    return rows


def verify_ed25519(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature is the key's."""
    if len(public) != 32 or len(signature) != 64:
        return False
    keys, bases = multiples(public, True), multiples(BASE)
    scalar = int.from_bytes(signature[32:], "little")
    if keys is None or bases is None or scalar >= L:
        return False
    hashed = hashlib.sha512(signature[:32] + public + message).digest()
    times = int.from_bytes(hashed, "little") % L
    total = (0, 1, 1, 0)
    for digit in range(64):
        total = add(total, bases[digit][scalar >> 4 * digit & 15])
        total = add(total, keys[digit][times >> 4 * digit & 15])
    inverse = pow(total[2], P - 2, P)
    x, y = total[0] * inverse % P, total[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little") == signature[:32]


def read_keys(jwks: Json) -> dict[str, bytes]:
    """The Ed25519 keys of a key set, by their thumbprints (RFC 7638)."""
    keys = {}
    for jwk in jwks["keys"]:
        if (jwk.get("kty"), jwk.get("crv")) == ("OKP", "Ed25519"):
            named = canonical({"crv": "Ed25519", "kty": "OKP", "x": jwk["x"]})
            keys[encode(hashlib.sha256(named.encode()).digest())] = decode(jwk["x"])
    return keys


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Base64url without padding, in its one form."""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(raw) != text:
        raise ValueError("not base64url in its one form")
    return raw


def decode64(text: str) -> bytes:
    """Base64 with padding, in its one form."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("not base64 in its one form")
    return raw


# -- the rule ----------------------------------------------------------------------------------


def nano(text: Json, rounding: str = ROUND_HALF_UP) -> int:
    """A decimal in billionths."""
    amount = min(max(Decimal(str(text)), -CEILING), CEILING)
    return int(amount.scaleb(9).to_integral_value(rounding))


def money(billionths: int | None) -> str | None:
    return None if billionths is None else f"{billionths // NANO}.{billionths % NANO:09d}"


def number(value: Json) -> float | int | None:
    """Quality as receipts show it: a number."""
    if value is None:
        return None
    exact = Decimal(str(value))
    if not exact.is_finite() or exact.adjusted() > 20:
        raise ValueError(f"{str(value)[:30]} is no quality")
    return int(exact) if exact == exact.to_integral_value() else float(exact)


def whole(value: Json) -> int:
    if type(value) is not int:
        raise ValueError("a number of tokens is no whole number")
    return value


def price(text: str | None) -> str | None:
    whole, _, places = (text or "").partition(".")
    return None if text is None else f"{whole}.{places:0<2}"


def seal(tenant: str) -> str:
    """What a tenant stands as in conditions, which every tenant sees; older ones have its id."""
    return hashlib.sha256(f"ainfera tenant {tenant}".encode()).hexdigest()[:16]


def floor_of(asked: Json, policy: Json, live: bool) -> tuple[Decimal, str]:
    """The floor, and where it comes from."""
    if asked["min_quality"] is not None:
        return Decimal(str(asked["min_quality"])), "request"
    floors = policy.get("floors")
    if floors is None:
        floors = OLD_FLOORS.get(policy["version"], {})
    floor, source = Decimal("0.50"), "default"
    for value, name in (
        (policy.get("agent_min_quality"), "agent"),
        (policy.get("tenant_min_quality"), "tenant"),
        (floors.get(asked["task_type"]), "task_type"),
    ):
        if value is not None:
            floor, source = Decimal(str(value)), name
            break
    step, low, high = Decimal("0.10"), Decimal("0.50"), Decimal("0.85")
    if live and asked["routing_preference"] == "quality":
        floor = max(floor, min(floor + step, high))
    elif live and asked["routing_preference"] == "cost":
        floor = min(floor, max(floor - step, low))
    return floor, source


class Fate:
    """One candidate: whether it is allowed, what it would cost, why it is out."""

    def __init__(self, model: Json, inputs: Json, floor: Decimal) -> None:
        asked = inputs["features"]
        self.model, self.asked = model, asked
        self.rank: int | None = None
        self.names = {model["slug"], model["brand"], model["provider_model_id"]}
        self.reserved = min(
            whole(asked["reserved_output_tokens"]), whole(model["max_output_tokens"])
        )
        self.projected = None
        if model["price_in"] is not None and model["price_out"] is not None:
            used = whole(asked["input_tokens"]) * nano(model["price_in"])
            used += self.reserved * nano(model["price_out"])
            self.projected = (used + MILLION // 2) // MILLION
        measured = inputs["policy"].get("q_source") == "empirical"
        observed = (inputs["empirical"] or {}).get(model["slug"]) if measured else None
        quality = model["q_prior"] if observed is None else observed["lower"]
        self.quality = -1 if quality is None else nano(quality)
        latencies = inputs.get("latencies") or {}
        self.latency = latencies.get(model["slug"], model["expected_latency_ms"])
        self.allowed = self._allowed()
        self.gate = self._unfit() or self._gated(nano(floor, ROUND_CEILING))
        self.out = self._out(inputs["active_providers"])

    def _named(self, names: Json) -> bool:
        return not self.names.isdisjoint(names)

    def _allowed(self) -> bool:
        if self.model["verdict"] != "CONDITIONAL":
            return bool(self.model["verdict"] == "PASS")
        wanted = self.model.get("conditions") or {"opt_in": True}
        if wanted.keys() - {"opt_in", "data_class", "region", "tenant"}:
            raise ValueError("a condition that this program does not know")
        if wanted.get("opt_in") is True and not self._named(self.asked["allow"]):
            return False
        said = {name: [self.asked.get(name)] for name in ("data_class", "region")}
        tenant = self.asked.get("tenant_id")
        said["tenant"] = [tenant, None if tenant is None else seal(tenant)]
        return all(
            wanted.get(name) is None or any(value in wanted[name] for value in values)
            for name, values in said.items()
        )

    def _out(self, active: Json) -> str | None:
        if self.model["provider"] not in active:
            return NOT_ENROLLED[0]
        if self.projected is None:
            return NOT_ENROLLED[1]
        if self.model["q_prior"] is None:
            return NOT_ENROLLED[2]
        return self.gate if self.allowed else VETO

    def _unfit(self) -> str | None:
        if not set(self.asked["capabilities"]) <= set(self.model["capabilities"]):
            return MISSING
        if self.asked["input_tokens"] + self.reserved > self.model["context_window"]:
            return MISSING
        allow = self.asked["allow"]
        unasked = bool(allow) and not self._named(allow)
        return DENIED if unasked or self._named(self.asked["deny"]) else None

    def _gated(self, floor: int) -> str | None:
        budget, limit = self.asked["budget_cap_usd"], self.asked["latency_cap_ms"]
        if self.quality < floor:
            return GATED[0]
        if budget is not None and (self.projected or 0) > nano(budget, ROUND_FLOOR):
            return GATED[1]
        if limit is not None and self.latency is not None and self.latency > limit:
            return GATED[2]
        return None

    def order(self) -> tuple[int, int, str]:
        return self.projected or 0, -self.quality, self.model["slug"]

    def told(self) -> Json:
        model = self.model
        return {
            "model_slug": model["slug"],
            "brand_slug": model["brand"],
            "q_prior": number(model["q_prior"]),
            "price_in_per_mtok_usd": price(model["price_in"]),
            "price_out_per_mtok_usd": price(model["price_out"]),
            "m_allowed": self.allowed,
            "projected_cost_usd": money(self.projected),
            "drop_reason": self.out,
            "rank": self.rank,
        }


def explored(seed: str, share: Json, others: int) -> int | None:
    """Which of the others goes before the cheapest; None: none does."""
    drawn = hashlib.sha256(f"{seed}:explore".encode()).digest()
    if others < 1 or int.from_bytes(drawn[:8], "big") * NANO >= nano(share) << 64:
        return None
    return 1 + int.from_bytes(drawn[8:16], "big") % others


def decide(inputs: Json) -> Json:
    """All of a receipt that follows from its inputs."""
    if RULESETS[inputs["ruleset_hash"]] == 1:
        policy = {**inputs["policy"], "q_source": "prior", "exploration_share": "0"}
        inputs = {**inputs, "policy": policy, "latencies": {}}
    asked, policy, live = inputs["features"], inputs["policy"], inputs["preference_live"]
    floor, source = floor_of(asked, policy, live)
    fates = sorted(
        (Fate(model, inputs, floor) for model in inputs["candidates"]),
        key=lambda f: f.model["slug"],
    )
    ranked = sorted((fate for fate in fates if fate.out is None), key=Fate.order)
    for place, fate in enumerate(ranked, 1):
        fate.rank = place
    dropped = [fate for fate in fates if fate.out is not None]
    turn = explored(inputs["seed"], policy.get("exploration_share") or "0", len(ranked) - 1)
    chosen = ranked[turn or 0] if ranked else None
    slug = chosen.model["slug"] if chosen else None
    candidates = [fate.told() for fate in ranked + dropped]
    return {
        "task_type": asked["task_type"],
        "cell": f"{asked['task_type']}:{slug or 'none'}:"
        + (asked["routing_preference"] if live else "balanced"),
        "decision_rule": rule_fired(ranked, dropped),
        "explored": turn is not None,
        "policy_version": policy["version"],
        "ruleset_hash": inputs["ruleset_hash"],
        "min_quality": number(floor.normalize()),
        "floor_source": source,
        "candidates": candidates,
        "m_allowed_set": sorted(c["model_slug"] for c in candidates if c["m_allowed"]),
        "q_prior_used": number(chosen.model["q_prior"]) if chosen else None,
        "chosen_model_slug": slug,
        "cost_projected": money(chosen.projected) if chosen else None,
        "seed": inputs["seed"],
        "router": TARGET,
        "dashboard_candidates": [
            {
                **{name: each[name] for name in ("model_slug", "brand_slug", "q_prior")},
                "projected_cost_usd": each["projected_cost_usd"],
                "chosen": each["model_slug"] == slug,
                "excluded": each["drop_reason"],
            }
            for each in candidates
        ],
    }


def rule_fired(ranked: list[Fate], dropped: list[Fate]) -> str:
    if not ranked:
        gated = any(fate.out in GATED for fate in dropped)
        return "no_candidate_clears_floor" if gated else "no_candidate_enrolled"
    vetoed = (fate for fate in dropped if fate.out == VETO and fate.gate is None)
    better = any(fate.order() < ranked[0].order() for fate in vetoed)
    return "m_allowed_veto_applied" if better else "cheapest_clearing_floor"


# -- the checks --------------------------------------------------------------------------------


def check(
    receipt: Json, keys: dict[str, bytes] | None = None, verify: Verify = verify_ed25519
) -> list[Check]:
    """All checks of one receipt, in their order; `keys` is None where none were given."""
    return [
        attempt("signature", lambda: check_signature(receipt, keys, verify)),
        attempt("catalog", lambda: check_catalog(receipt)),
        attempt("ruleset", lambda: check_ruleset(receipt)),
        attempt("rule", lambda: check_rule(receipt)),
        attempt("event", lambda: check_event(receipt)),
        attempt("log", lambda: check_log(receipt, keys, verify)),
    ]


UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    IndexError,
    RecursionError,
    MemoryError,
)


def attempt(name: str, step: Callable[[], tuple[bool | None, str]]) -> Check:
    """One check. A receipt may be anything, so what cannot be read is a mismatch, not a crash."""
    try:
        return Check(name, *step())
    except UNREADABLE as bad:
        return Check(name, False, f"cannot be read: {type(bad).__name__}: {bad}")


def check_signature(
    receipt: Json, keys: dict[str, bytes] | None, verify: Verify
) -> tuple[bool | None, str]:
    jws = receipt.get("signature")
    if keys is None:
        return None, "no key was given (--jwks)" + ("" if jws else ", and it is not signed")
    if jws is None:
        return False, "the receipt is not signed"
    head, nothing, signature = jws.split(".")
    kid = json.loads(decode(head))["kid"]
    if kid not in keys:
        return False, f"signed with a key that is not in the key set: {kid}"
    named = encode(canonical({"alg": "EdDSA", "kid": kid, "typ": TYPE}).encode())
    told = {name: receipt[name] for name in receipt if name not in UNSIGNED}
    signed = f"{head}.{encode(canonical(told).encode())}".encode()
    if (head, nothing) != (named, "") or not verify(keys[kid], decode(signature), signed):
        return False, f"not the signature of key {kid} over this receipt"
    return True, f"key {kid} signed exactly this"


def check_catalog(receipt: Json) -> tuple[bool | None, str]:
    inputs = receipt["inputs"]
    if inputs is None:
        return None, "the receipt has no inputs"
    models = inputs["candidates"]
    slugs = [model["slug"] for model in models]
    if slugs != sorted(set(slugs)) or digest(models) != inputs["catalog_hash"]:
        return False, "the candidates are not those of the catalogue that was decided on"
    return True, f"{len(models)} candidates, catalogue {inputs['catalog_hash'][:16]}"


def check_ruleset(receipt: Json) -> tuple[bool | None, str]:
    told = receipt["ruleset_hash"]
    if receipt["inputs"] is not None and receipt["inputs"]["ruleset_hash"] != told:
        return False, "the receipt and its inputs name different rulesets"
    if told not in RULESETS:
        return None, f"this program does not know the ruleset {told}; a newer one may"
    return True, f"{told}, version {RULESETS[told]}"


def check_rule(receipt: Json) -> tuple[bool | None, str]:
    """What cannot be run again is not called right."""
    inputs = receipt["inputs"]
    if inputs is None:
        why = receipt.get("undocumented") or "the receipt has no inputs"
        return None, f"not replayable: {why}"
    if inputs["ruleset_hash"] not in RULESETS:
        return None, "not replayable: the ruleset is unknown"
    told = {**OLD_SILENCE, **receipt} if RULESETS[inputs["ruleset_hash"]] == 1 else receipt
    wrong = [
        name
        for name, value in decide(inputs).items()
        if name not in told or canonical(told[name]) != canonical(value)
    ]
    if wrong:
        return False, "run again, the rule gives another " + ", ".join(wrong)
    return True, f"{receipt['decision_rule']}: {receipt['chosen_model_slug'] or 'no model'}"


def check_event(receipt: Json) -> tuple[bool | None, str]:
    """That the chain's event is whole, and says what the receipt says."""
    event = receipt.get("audit_event")
    if event is None:
        return None, "it names no audit event: a quote has none, nor has a call that was lost early"
    payload = event["payload"]
    before = event["previous_hash"]
    text = ("" if before is None else before) + canonical(payload)
    if hashlib.sha256(text.encode()).hexdigest() != event["event_hash"]:
        return False, "the event's hash is not that of its payload"
    said = {
        **{name: event[name] for name in ("agent_id", "event_type", "seq")},
        "inference_id": receipt["inference_id"],
        "outcome": receipt["outcome_status"],
        "router": receipt["router"],
    }
    if "cost_usd" in payload:
        said["cost_usd"] = receipt["cost_actual"]
        said["latency_ms"] = receipt["observed_latency_ms"]
    for name, value in said.items():
        if canonical(payload.get(name)) != canonical(value):
            return False, f"the event says another {name} than the receipt"
    where = f"event {event['seq']} ({event['event_type']}) of agent {event['agent_id']}"
    bound = payload.get("decision_sha256")
    if receipt["inputs"] is None or bound is None:
        return None, f"{where} binds the outcome, and no inputs"
    inputs = {name: value for name, value in receipt["inputs"].items() if name != "candidates"}
    if bound != digest(inputs):
        return False, f"{where} binds other inputs"
    return True, f"{where} binds inputs and outcome"


# -- the audit log (C2SP tlog-checkpoint, RFC 9162) --------------------------------------------


def check_log(
    receipt: Json, keys: dict[str, bytes] | None, verify: Verify
) -> tuple[bool | None, str]:
    event, proof = receipt.get("audit_event"), receipt.get("audit_proof")
    if event is None or proof is None:
        return None, "no checkpoint is in it; read it again later, once its event is under one"
    if set(proof) != {"leaf_index", "proof", "checkpoint"}:
        return False, "the proof has members that prove nothing"
    told, _, signed = proof["checkpoint"].rpartition("\n\n")
    origin, size, root = told.split("\n")[:3]
    leaf = f"ainfera audit event v1\n{event['agent_id']}\n{event['seq']}\n{event['event_hash']}\n"
    path = [decode64(each) for each in proof["proof"]]
    climbed = climb(
        hashlib.sha256(b"\0" + leaf.encode()).digest(), proof["leaf_index"], int(size), path
    )
    if climbed is None or base64.b64encode(climbed).decode() != root:
        return False, "the event is not under the checkpoint"
    where = f"leaf {proof['leaf_index']} under the checkpoint of {size} leaves of {origin}"
    if keys is None:
        return None, f"{where}, whose signature was not checked: no key was given"
    if not any(signed_by(key, origin, told + "\n", signed, verify) for key in keys.values()):
        return False, "the checkpoint is not signed by a key of the key set"
    return True, where


def climb(hashed: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that a proof of inclusion leads to, RFC 9162 section 2.1.3.2."""
    if type(index) is not int or not 0 <= index < size:
        return None
    node, last = index, size - 1
    for other in path:
        if last == 0 or len(other) != 32:
            return None
        if node & 1 or node == last:
            hashed = hashlib.sha256(b"\1" + other + hashed).digest()
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            hashed = hashlib.sha256(b"\1" + hashed + other).digest()
        node, last = node >> 1, last >> 1
    return hashed if last == 0 else None


KNOWN_NOTES: set[tuple[bytes, str, str]] = set()


def signed_by(key: bytes, origin: str, told: str, signed: str, verify: Verify) -> bool:
    """Whether a note's one signature is the key's. Many receipts are under one checkpoint."""
    if (key, told, signed) in KNOWN_NOTES:
        return True
    named = hashlib.sha256(origin.encode() + b"\n\1" + key).digest()[:4]
    dash, name, text = signed.split(" ")
    raw = decode64(text[:-1])
    right = (dash, name, text[-1]) == ("\u2014", origin, "\n") and raw[:4] == named
    if not right or not verify(key, raw[4:], told.encode()):
        return False
    KNOWN_NOTES.add((key, told, signed))
    return True


# -- the command -------------------------------------------------------------------------------


def verdict(checks: list[Check]) -> str:
    """`valid`, `mismatch`, `not replayable`, or `consistent` where nothing shows who wrote it."""
    if any(each.proved is False for each in checks):
        return "mismatch"
    replayed = all(each.proved for each in checks if each.name in ("catalog", "ruleset", "rule"))
    if not replayed:
        return "not replayable"
    signed = any(each.name == "signature" and each.proved for each in checks)
    return "valid" if signed else "consistent"


def read_receipts(lines: Iterable[str]) -> Iterator[Json]:
    """The receipts of a file: one in all of it, or one a line. What is none comes as ValueError."""
    held = ""
    for line in lines:
        if held:
            held += line
            continue
        if not line.strip():
            continue
        try:
            yield parse(line)
        except ValueError as bad:
            if line.strip() == "{":  # one receipt over many lines
                held = line
            else:
                yield bad
    if held.strip():
        try:
            yield parse(held)
        except ValueError as bad:
            yield bad


def opened(name: str) -> IO[str]:
    """A file, or standard input; what is not UTF-8 spoils its own line only."""
    where: str | int = 0 if name == "-" else name
    return open(where, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def parse(text: str) -> Json:
    """One receipt. Raises ValueError."""

    def refuse(name: str) -> Json:
        raise ValueError(f"{name} is no number of JSON")

    try:
        receipt = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(receipt, dict) or "inputs" not in receipt or "inference_id" not in receipt:
        raise ValueError("this is no decision receipt" + likely(receipt))
    return receipt


def likely(found: Json) -> str:
    """What it is instead."""
    known = {
        "quote_id": ", but a quote: its `decision` is one",
        "receipt_id": ", but what a call cost: GET /v1/inferences/{id}/decision answers one",
        "keys": ", but a key set: that is for --jwks",
    }
    has = [known[name] for name in known if isinstance(found, dict) and name in found]
    return has[0] if has else ""


def check_all(
    receipts: Iterable[Json], checker: Callable[[Json], list[Check]]
) -> Iterator[tuple[str, str, list[Check]]]:
    """`(inference id, verdict, checks)` of each."""
    for receipt in receipts:
        if isinstance(receipt, ValueError):
            yield "?", "unreadable", [Check("receipt", False, f"cannot be read: {receipt}")]
            continue
        checks = checker(receipt)
        yield str(receipt["inference_id"]), verdict(checks), checks


VERDICTS = ("valid", "consistent", "not replayable", "mismatch", "unreadable")


def report(
    results: Iterable[tuple[str, str, list[Check]]],
    as_json: bool,
    write: Callable[[str], object],
    progress: Callable[[str], object],
) -> int:
    """Tell of each receipt, or of many only what is wrong and a summary. Returns the exit code."""
    counts = dict.fromkeys(VERDICTS, 0)
    shown: dict[str, int] = {}
    first = None
    for number_, (name, word, checks) in enumerate(results, 1):
        counts[word] += 1
        for each in checks:
            shown[each.name] = shown.get(each.name, 0) + (each.proved is True)
        if as_json:
            told = [each._asdict() for each in checks]
            write(json.dumps({"inference_id": name, "verdict": word, "checks": told}) + "\n")
        elif word != "valid":
            write(tell(name, word, checks))
        elif first is None:
            first = tell(name, word, checks)
        if number_ % 1000 == 0:
            progress(f"{number_} receipts checked, {counts['mismatch']} mismatches\n")
    total = sum(counts.values())
    if not as_json and total == 1 and first is not None:
        write(first)
    if not as_json and total != 1:
        proofs = ", ".join(f"{name} {count}" for name, count in shown.items())
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        write(f"{total} receipts: {said}. Proved: {proofs or 'nothing'}.\n")
    if not total:
        raise ValueError("there is no receipt in it")
    if counts["mismatch"]:
        return 1
    if counts["unreadable"]:
        return 2
    return 0 if counts["valid"] == total else 3


def tell(name: str, word: str, checks: list[Check]) -> str:
    words = {True: "proved", False: "MISMATCH", None: "not shown"}
    lines = (f"  {words[each.proved]:<9}  {each.name:<9}  {shown(each.what)}\n" for each in checks)
    return f"receipt {shown(name)}: {word}\n" + "".join(lines)


def shown(text: str) -> str:
    """What a receipt says, as a terminal may see it: it must not speak for us."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:500])


def key_set(name: str) -> dict[str, bytes]:
    """The keys of a file. Raises ValueError, OSError."""
    try:
        with open(name, encoding="utf-8") as file:
            return read_keys(json.load(file))
    except UNREADABLE:
        raise ValueError(f"{name} is no key set, as /.well-known/jwks.json answers it") from None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="receipts; - is standard input")
    parser.add_argument("--jwks", metavar="FILE", help="the gateway's key set, as you keep it")
    parser.add_argument("--json", action="store_true", help="one JSON object a receipt")
    asked = parser.parse_args()
    keys = None

    def receipts() -> Iterator[Json]:
        for name in asked.files:
            with opened(name) as lines:
                yield from read_receipts(lines)

    try:
        if asked.jwks:
            keys = key_set(asked.jwks)
        results = check_all(receipts(), lambda receipt: check(receipt, keys))
        return report(results, asked.json, sys.stdout.write, sys.stderr.write)
    except OSError as bad:
        sys.stderr.write(f"{bad.filename} cannot be read: {bad.strerror}\n")
        return 2
    except ValueError as bad:
        sys.stderr.write(f"cannot be read: {bad}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
