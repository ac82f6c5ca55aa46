"""`python -m tests.bench.deciding`: decisions a second, and from a request to its decision.

No store and no network: only what a worker's processor does for every routed call. The bodies are
parsed from their bytes, as a worker gets them; the catalogue of a hundred is the shipped one, over
and over, under other names and prices. Nothing is cached between two decisions.

    a second   how many one processor makes, as fast as half of them are made
    p50, p99   from the first byte looked at to the decision made, in microseconds

What is counted is the time of this thread's own work, so that others on the machine do not count;
they still cost it its caches, so compare runs of the same hour, and the lowest of several.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import orjson

from shared.catalog import load_catalog
from shared.domain.candidate import Catalog
from shared.domain.dialects import DIALECTS
from shared.domain.inference import Dialect
from shared.domain.routing import decide
from shared.domain.routing_policy import CallerPolicy, RequestFeatures, features
from shared.fleet import quantile
from tests.bench.report import aligned

HEADINGS = ["", "a second", "p50 us", "p99 us"]
FLAT = CallerPolicy()
TENANT = "019a2b3c-0000-7000-8000-00000000000a"
SEED = "019a2b3c-0000-7000-8000-000000000000"
SENTENCE = (
    "What did the auditors find in the ledger of the second quarter, and why does it matter? "
)


def catalog_of(size: int) -> Catalog:
    """So many candidates: the shipped ones, and the same again a little dearer."""
    shipped = load_catalog().candidates
    return Catalog.of(
        replace(
            shipped[n % len(shipped)],
            slug=f"{shipped[n % len(shipped)].slug}-{n:03d}",
            provider_model_id=f"{shipped[n % len(shipped)].provider_model_id}-{n:03d}",
            price_in=(shipped[n % len(shipped)].price_in or 0) + Decimal(n) / 1000,
            price_out=(shipped[n % len(shipped)].price_out or 0) + Decimal(n) / 1000,
        )
        for n in range(size)
    )


def body_of(characters: int, **other: object) -> bytes:
    """A chat body whose question has so many characters."""
    text = (SENTENCE * (characters // len(SENTENCE) + 1))[:characters]
    messages = [{"role": "user", "content": text}]
    return orjson.dumps({"model": "ainfera-inference", "messages": messages, **other})


def decision_of(
    asked: RequestFeatures, catalog: Catalog, active: frozenset[str]
) -> Callable[[], object]:
    return lambda: decide(asked, catalog, FLAT, active, False, SEED)


def whole_of(body: bytes, catalog: Catalog, active: frozenset[str]) -> Callable[[], object]:
    """From the body's bytes to the decision, as a worker goes."""

    def whole() -> object:
        request = DIALECTS[Dialect.OPENAI].parse_request(orjson.loads(body))
        return decide(features(request, FLAT, TENANT), catalog, FLAT, active, False, SEED)

    return whole


def measured(name: str, work: Callable[[], object], seconds: float) -> list[str]:
    """One row of the table."""
    waits: list[float] = []
    ends_at = time.perf_counter() + seconds
    for _ in range(20):
        work()
    while time.perf_counter() < ends_at:
        begun = time.thread_time()
        work()
        waits.append(time.thread_time() - begun)
    waits.sort()
    p50, p99 = (quantile(waits, share) or 0.0 for share in (0.5, 0.99))
    return [name, f"{1 / p50:,.0f}", f"{p50 * 1e6:.1f}", f"{p99 * 1e6:.1f}"]


def rows(seconds: float, size: int) -> list[list[str]]:
    """The table, its headings first; `seconds` is for each row of it."""
    large, shipped = catalog_of(size), load_catalog()
    active = frozenset(c.provider for c in shipped.candidates)
    asked = RequestFeatures("general", 1000, 1000)
    hint = {"routing_hint": {"min_quality": "strong", "budget_cap_usd": "0.50"}}
    works = {
        f"decide, {size} candidates": decision_of(asked, large, active),
        f"decide, the {len(shipped.candidates)} shipped": decision_of(asked, shipped, active),
        f"a short body, {size} candidates": whole_of(body_of(80, **hint), large, active),
        f"a body of 10 kB, {size} candidates": whole_of(body_of(10_000, **hint), large, active),
        "a short body, the shipped": whole_of(body_of(80, **hint), shipped, active),
    }
    return [[*HEADINGS], *(measured(name, work, seconds) for name, work in works.items())]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.deciding", description="Decisions a second."
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--candidates", type=int, default=100, help="of the large catalogue")
    options = parser.parse_args()
    sys.stdout.write(f"{aligned(rows(options.seconds, options.candidates))}\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
