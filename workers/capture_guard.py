"""The guard of captures: every routed call that ended has its one outcome, a pinned one has none.

A settlement writes both in one transaction, so this finds what should be impossible. It walks
through the calls by the time they ended, each call once, and remembers how far it came; what it
costs follows from how many calls end in a minute, not from how many there are. What it found is
kept and shown by `/metrics`. `fleet ledger check` proves the same of all calls there ever were.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shared.db import Connection
from workers.rounds import put_off, round_connection
from workers.sweep import BooksDeps

log = logging.getLogger(__name__)

# A settlement has its time before it has its locks; by then it has been committed, or never will.
LAG = timedelta(seconds=60)
STEP = timedelta(minutes=1)
SILENCES = (timedelta(hours=1), timedelta(minutes=10))  # passed over in one step
MOST_STEPS = 60
MOST_CALLS = 200_000
MOST_NAMED = 20

_WHERE = """
SELECT checked_until AS since, now() - $1::interval AS until
  FROM capture_guard FOR UPDATE SKIP LOCKED
"""
_LOOK = f"""
SELECT count(*) AS calls,
       count(*) FILTER (WHERE i.routed AND o.inference_id IS NULL) AS uncaptured,
       count(*) FILTER (WHERE NOT i.routed AND o.inference_id IS NOT NULL) AS overcaptured,
       (array_agg(i.id) FILTER (WHERE i.routed <> (o.inference_id IS NOT NULL)))[:{MOST_NAMED}]
         AS wrong
  FROM inferences i LEFT JOIN routing_outcomes o ON o.inference_id = i.id
 WHERE i.settled_at > $1 AND i.settled_at <= $2
"""
_ANY = "SELECT EXISTS (SELECT FROM inferences i WHERE i.settled_at > $1 AND i.settled_at <= $2)"
_NOTE = """
UPDATE capture_guard
   SET checked_until = $1, checked = checked + $2, uncaptured = uncaptured + $3,
       overcaptured = overcaptured + $4
"""


@dataclass(frozen=True, slots=True)
class Looked:
    """What one round looked at: ended calls, and those whose capture is missing, or too many."""

    calls: int = 0
    uncaptured: int = 0
    overcaptured: int = 0

    def and_then(self, row: Mapping[str, Any]) -> "Looked":
        return Looked(
            self.calls + row["calls"],
            self.uncaptured + row["uncaptured"],
            self.overcaptured + row["overcaptured"],
        )


@put_off
async def guard_captures(ctx: Mapping[str, Any]) -> Looked:
    """One round of the books worker."""
    deps: BooksDeps = ctx["deps"]
    async with round_connection(deps.db) as connection:
        # not rolled back by a statement, for which a server that stands still would be waited for
        transaction = connection.transaction()
        await transaction.start()
        looked = await look_on(connection)
        await transaction.commit()
        return looked


async def look_on(connection: Connection, lag: timedelta = LAG) -> Looked:
    """Look from where the last round came to, in steps of a minute; nothing is looked at twice.

    Where none ended for long, that is one step. In a transaction of the caller's. If another
    worker is at it, it looks at nothing.
    """
    found = Looked()
    span = await connection.fetchrow(_WHERE, lag)
    if span is None or span["since"] >= span["until"]:
        return found
    since, steps = span["since"], 0
    while since < span["until"] and steps < MOST_STEPS and found.calls < MOST_CALLS:
        until = min(await _step_to(connection, since), span["until"])
        row = await connection.fetchrow(_LOOK, since, until)
        assert row is not None, "an aggregate has one row"
        if row["wrong"]:
            log.error("capture_violation", extra={"inference_ids": [*map(str, row["wrong"])]})
        found = found.and_then(dict(row))
        since, steps = until, steps + 1
    await connection.execute(_NOTE, since, found.calls, found.uncaptured, found.overcaptured)
    return found


async def _step_to(connection: Connection, since: datetime) -> datetime:
    for silence in SILENCES:
        if not await connection.fetchval(_ANY, since, since + silence):
            return since + silence
    return since + STEP
