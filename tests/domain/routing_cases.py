"""Catalogues and requests for the tests of the rule: the anchors, and any that could be."""

from dataclasses import replace
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st

from shared.domain.candidate import Candidate, Catalog
from shared.domain.conditions import DATA_CLASSES
from shared.domain.evidence import NO_EVIDENCE, Empirical, Evidence
from shared.domain.routing import Decision, decide
from shared.domain.routing_policy import PREFERENCES, TIERS, CallerPolicy, RequestFeatures
from shared.domain.task_type import TASK_TYPES

PROVIDERS = ("anthropic", "openai", "google", "mistral", "xai")
ALL_ACTIVE = frozenset(PROVIDERS)
CAPABILITIES = ("tools", "vision", "thinking")
FLAT = CallerPolicy()

T = TypeVar("T")

# how long an example takes says nothing on a machine that others use too
steady = settings(max_examples=60, deadline=None)


def model(
    slug: str, price_in: str | None, price_out: str | None, q: str | None, **other: object
) -> Candidate:
    """A candidate that passes unless it is told otherwise."""
    fields: dict[str, object] = {
        "slug": slug,
        "brand": "openai",
        "provider": "openai",
        "provider_model_id": f"{slug}-id",
        "display_name": slug,
        "created": "2026-01-01",
        "context_window": 100_000,
        "max_output_tokens": 10_000,
        "price_in": price_in,
        "price_out": price_out,
        "q_prior": q,
        "verdict": "PASS",
        "capabilities": CAPABILITIES,
    }
    return Candidate.from_json(fields | other)


ANCHORS = Catalog.of(
    [
        model("mistral-large-3", "2.00", "6.00", "0.74", brand="mistral", provider="mistral"),
        model("gemini-3-1-pro", "1.25", "10.00", "0.87", brand="google", provider="google"),
        model("grok-4", "5.00", "15.00", "0.86", brand="xai", provider="xai"),
        model("gpt-5-5", "5.00", "15.00", "0.90"),
        model("claude-opus-4-7", "15.00", "75.00", "0.95", brand="anthropic", provider="anthropic"),
    ]
)


def asked(input_tokens: int = 1000, output_tokens: int = 1000, **other: object) -> RequestFeatures:
    """A request of a general kind: by default a thousand tokens in and a thousand out."""
    fields: dict[str, object] = {
        "task_type": "general",
        "input_tokens": input_tokens,
        "reserved_output_tokens": output_tokens,
    }
    return RequestFeatures(**(fields | other))  # type: ignore[arg-type]


def decided(
    features: RequestFeatures,
    catalog: Catalog = ANCHORS,
    policy: CallerPolicy = FLAT,
    active: frozenset[str] = ALL_ACTIVE,
    preference_live: bool = False,
    evidence: Evidence = NO_EVIDENCE,
) -> Decision:
    return decide(features, catalog, policy, active, preference_live, "seed", evidence)


def mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """The rare one about every seventh time."""
    return st.integers(0, 6).flatmap(lambda roll: rare if roll == 3 else usual)


qualities = st.decimals("0", "1", places=2)
prices = st.decimals("0.01", "100", places=3)

TENANTS = ("00000000-0000-7000-8000-00000000000a", "00000000-0000-7000-8000-00000000000b")
REGIONS = ("eu", "us-east-1")

# verdicts with their conditions, drawn as they stand: building them each time is what takes long
VERDICTS: list[tuple[str | None, dict[str, object] | None]] = [
    *[("PASS", None)] * 8,
    ("VETO", None),
    (None, None),
    ("CONDITIONAL", None),
    ("CONDITIONAL", {"opt_in": True}),
    ("CONDITIONAL", {"data_class": ["public", "internal"]}),
    ("CONDITIONAL", {"region": ["eu"]}),
    ("CONDITIONAL", {"tenant": [TENANTS[0]]}),
    ("CONDITIONAL", {"tenant": ["4bd319b7c774d94a"]}),  # the seal of the same
    ("CONDITIONAL", {"data_class": ["restricted"], "region": list(REGIONS), "opt_in": True}),
]

candidates = st.builds(
    lambda slug, brand, price_in, price_out, q, verdict, window, limit, capabilities, latency: (
        Candidate.from_json(
            {
                "slug": slug,
                "brand": brand,
                "provider": brand,
                "provider_model_id": f"{slug}-id",
                "display_name": slug,
                "created": "2026-01-01",
                "context_window": window,
                "max_output_tokens": limit,
                "price_in": price_in,
                "price_out": price_out,
                "q_prior": q,
                "verdict": verdict[0],
                "conditions": verdict[1],
                "capabilities": capabilities,
                "expected_latency_ms": latency,
            }
        )
    ),
    slug=st.integers(0, 99).map("m{:02d}".format),
    brand=st.sampled_from(PROVIDERS),
    price_in=mostly(prices, st.none()),
    price_out=prices,
    q=mostly(qualities, st.none()),
    verdict=st.sampled_from(VERDICTS),
    window=st.integers(8_000, 100_000),
    limit=st.integers(100, 10_000),
    capabilities=mostly(st.just(set(CAPABILITIES)), st.sets(st.sampled_from(CAPABILITIES))),
    latency=st.none() | st.integers(10, 10_000),
)
catalogs = st.lists(candidates, min_size=2, max_size=8, unique_by=lambda c: c.slug).map(Catalog.of)
listed = st.sampled_from(["m01", "m02-id", "openai", "google"])
nobody: frozenset[str] = frozenset()
names = mostly(st.just(nobody), st.frozensets(listed, max_size=2))
requests = st.builds(
    RequestFeatures,
    task_type=st.sampled_from(TASK_TYPES),
    input_tokens=st.integers(1, 5_000),
    reserved_output_tokens=st.integers(1, 5_000),
    capabilities=st.frozensets(st.sampled_from(CAPABILITIES), max_size=1),
    min_quality=st.none() | qualities,
    routing_preference=st.sampled_from(PREFERENCES),
    budget_cap_usd=mostly(st.none(), st.decimals("0", "1", places=4)),
    latency_cap_ms=mostly(st.none(), st.integers(1, 10_000)),
    allow=names,
    deny=names,
    tenant_id=st.sampled_from(TENANTS),
    data_class=st.none() | st.sampled_from(DATA_CLASSES),
    region=st.none() | st.sampled_from(REGIONS),
)
policies = st.builds(
    CallerPolicy,
    agent_min_quality=st.none() | qualities,
    tenant_min_quality=st.none() | st.sampled_from(list(TIERS.values())),
    version=st.sampled_from(["flat-1", "task-floors-1"]),
    q_source=st.sampled_from(["prior", "empirical"]),
)
exploring = st.builds(
    lambda policy, share: replace(policy, exploration_share=share),
    policies,
    st.decimals("0.05", "1", places=2),
)
slugs = st.integers(0, 99).map("m{:02d}".format)
evidence = st.builds(
    Evidence,
    latencies=st.dictionaries(slugs, st.integers(1, 10_000), max_size=12),
    empirical=st.dictionaries(
        slugs, st.builds(Empirical, qualities, qualities, st.integers(1, 1000)), max_size=12
    ),
)
active_sets: st.SearchStrategy[frozenset[str]] = mostly(
    st.just(ALL_ACTIVE), st.frozensets(st.sampled_from(PROVIDERS))
)
