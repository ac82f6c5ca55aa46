"""From a call's acceptance to its decision, in the running gateway, by what it wrote down itself.

An inference id is minted when the ingress has accepted the call and bears that millisecond
(UUIDv7); its `inference.routed` event bears the moment at which the database wrote it, with the
hold. Both clocks are this machine's. A millisecond begun counts as whole, so half of one must be
thought away on average. What lies between: the queue, the doorbell, the claim, the decision and the
wait for the transaction that holds the money.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.db import connect
from tests.bench.load import percentiles
from tests.bench.report import aligned
from tests.bench.targets import AINFERA

_WAITS = """
SELECT extract(epoch FROM created_at) * 1000
       - ('x' || translate(left(payload::json ->> 'inference_id', 13), '-', ''))::bit(48)::bigint
  FROM audit_events
 WHERE event_type = 'inference.routed'
   AND created_at BETWEEN to_timestamp($1) AND to_timestamp($2)
"""


@dataclass(slots=True)
class Windows:
    """When each scenario ran over Ainfera, in seconds since the epoch."""

    of_scenario: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def noted(self, target: str, title: str) -> Iterator[None]:
        began = time.time()
        yield
        if target == AINFERA:
            self.of_scenario[title] = began, time.time()


async def routed_ms(url: str, windows: Windows) -> dict[str, list[float]]:
    """For each scenario, the milliseconds that its calls waited; `url` is the owner's."""
    connection = await connect(url, None, "bench")
    try:
        return {
            title: [float(row[0]) for row in await connection.fetch(_WAITS, *window)]
            for title, window in windows.of_scenario.items()
        }
    finally:
        await connection.close()


def routed_table(waits: Mapping[str, list[float]]) -> str:
    """One line for each scenario that had routed calls."""
    rows = [["from acceptance to inference.routed", "calls", "p50 ms", "p99 ms"]]
    for title, of_calls in waits.items():
        found = percentiles(of_calls)
        if found:
            times = (f"{found[name]:.1f}" for name in ("p50", "p99"))
            rows.append([f"  {title}", f"{len(of_calls):,}", *times])
    return aligned(rows)
