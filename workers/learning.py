"""The books worker's rounds over rewards: estimates of quality, kept as versioned snapshots."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import orjson

from shared.config import Settings
from shared.db import Connection
from shared.domain.learning import Estimate, Tally, Terms, estimates, snapshot_hash
from workers.rounds import put_off, round_connection
from workers.sweep import BooksDeps

log = logging.getLogger(__name__)

# Days are counted back from now by 24 hours. Whoever was asked in vain failed, too.
_TALLIES = """
WITH lately AS (
  SELECT task_type, band, model, failed_models, reward, checked,
         greatest(0, floor(extract(epoch FROM now() - ended_at) / 86400))::int AS age_days
    FROM routing_rewards WHERE ended_at > now() - make_interval(days => $1)),
answers AS (
  SELECT task_type, band, model, reward, checked, age_days FROM lately
   WHERE reward IS NOT NULL
  UNION ALL
  SELECT task_type, band, unnest(failed_models), 0, false, age_days FROM lately
   WHERE failed_models <> '{}')
SELECT task_type, model, band, age_days, count(*) AS n, sum(reward) AS good,
       count(*) FILTER (WHERE checked) AS checked
  FROM answers GROUP BY task_type, model, band, age_days
"""
_WRITE = """
INSERT INTO quality_snapshots (terms, cells, hash)
SELECT $1::jsonb, $2::jsonb, $3
 WHERE $3 IS DISTINCT FROM (SELECT hash FROM quality_snapshots ORDER BY version DESC LIMIT 1)
RETURNING version
"""


def terms_of(settings: Settings) -> Terms:
    return Terms(
        half_life_days=settings.empirical_half_life_days,
        window_days=settings.empirical_half_life_days * 6,
        min_support=settings.empirical_min_support,
    )


async def tallies(connection: Connection, terms: Terms) -> list[Tally]:
    rows: Sequence[asyncpg.Record] = await connection.fetch(_TALLIES, terms.window_days)
    return [Tally(**dict(row)) for row in rows]


async def snapshot(connection: Connection, terms: Terms) -> tuple[int | None, list[Estimate]]:
    """Estimate anew; the version it was kept as, None where nothing has changed."""
    found = estimates(await tallies(connection, terms), terms)
    version = await connection.fetchval(
        _WRITE,
        orjson.dumps(terms.to_json()).decode(),
        orjson.dumps([each.to_json() for each in found]).decode(),
        snapshot_hash(terms, found),
    )
    return version, found


@put_off
async def estimate_qualities(ctx: Mapping[str, Any]) -> int | None:
    """Keep a new snapshot of the estimates if they have changed. Returns its version."""
    deps: BooksDeps = ctx["deps"]
    async with round_connection(deps.db) as connection:
        version, found = await snapshot(connection, terms_of(deps.settings))
    if version is not None:
        supported = sum(each.supported for each in found)
        log.info("qualities_estimated", extra={"version": version, "supported": supported})
    return version
