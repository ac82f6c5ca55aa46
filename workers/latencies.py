"""The books worker's round that measures how long models take, of their latest answers."""

import logging
from collections.abc import Mapping
from typing import Any

from workers.rounds import put_off
from workers.sweep import BooksDeps

log = logging.getLogger(__name__)

# of one model, so that a round reads as much whatever the traffic is
MOST_SAMPLES = 1000

# A simulated answer says nothing of a real provider, nor a real one of a simulation: what counts is
# what the model's latest answer was.
_MEASURE = """
WITH answers AS (
  SELECT m.slug, o.ms, r.simulated,
         first_value(r.simulated) OVER (PARTITION BY m.slug ORDER BY o.created_at DESC) AS latest
    FROM models m
    CROSS JOIN LATERAL (
      SELECT inference_id, created_at, observed_latency_ms AS ms FROM routing_outcomes
       WHERE chosen_model_slug = m.slug AND outcome_status = 'succeeded' AND fallback_chain = '[]'
         AND created_at > now() - make_interval(secs => :window_s)
       ORDER BY created_at DESC LIMIT :most) o
    JOIN receipts r ON r.inference_id = o.inference_id
   WHERE o.ms IS NOT NULL
)
INSERT INTO model_latencies (slug, p95_ms, samples, measured_at)
SELECT slug, percentile_disc(0.95) WITHIN GROUP (ORDER BY ms), count(*), now()
  FROM answers WHERE simulated = latest
 GROUP BY slug HAVING count(*) >= :least
ON CONFLICT (slug) DO UPDATE
  SET p95_ms = excluded.p95_ms, samples = excluded.samples, measured_at = excluded.measured_at
RETURNING slug
"""


@put_off
async def measure_latencies(ctx: Mapping[str, Any]) -> int:
    """Measure every model that answered often enough of late. Returns how many those are."""
    deps: BooksDeps = ctx["deps"]
    measured = await deps.db.run(
        _MEASURE,
        window_s=deps.settings.latency_window_s,
        least=deps.settings.latency_min_samples,
        most=MOST_SAMPLES,
    )
    return len(measured)
