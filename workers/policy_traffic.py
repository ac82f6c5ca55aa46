"""Recorded decisions, run again under two policy versions: page by page, the newest calls first.

Qualities that were observed are those that a decision recorded. Where it recorded none, and a
version counts on them, they are those of the newest snapshot: what it would have if it were
published now.
"""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.catalog import catalog_snapshot
from shared.db import Database
from shared.domain.candidate import Candidate, Catalog
from shared.domain.policy_change import Change, Comparison, decide_under
from shared.domain.policy_version import PolicyVersion
from shared.domain.routing import RULESET_HASH
from shared.learning import EmpiricalQuality

PAGE = 500
_LAST_ID = UUID(int=(1 << 128) - 1)
# an inference's id begins with the moment it was minted, so the key finds the calls of a time
_PAGE = text(
    """
SELECT o.inference_id, o.ruleset_hash, o.decision -> 'terms' AS terms,
       o.decision ->> 'catalog_hash' AS catalog_hash, t.policy AS tenant_policy
  FROM routing_outcomes o JOIN tenants t ON t.id = o.tenant_id
 WHERE o.inference_id < :before AND o.inference_id >= :since
   AND (cast(:tenant AS uuid) IS NULL OR o.tenant_id = :tenant)
 ORDER BY o.inference_id DESC LIMIT :page
"""
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which calls: those begun since, the newest `limit`, of one tenant or of all.

    `following`: only of tenants that follow the active version, as a publication changes it for
    them; it holds the names of the versions that a tenant may name instead.
    """

    since: datetime
    limit: int
    tenant: UUID | None = None
    following: frozenset[str] | None = None


@dataclass(slots=True)
class Compared:
    """A comparison, and what was left out of it or came from another rule.

    `snapshot` is the newest one of observed qualities: None where no version counts on them, 0
    where there is none yet. `filled` calls got theirs from it.
    """

    comparison: Comparison = field(default_factory=Comparison)
    own_version: int = 0
    undocumented: int = 0
    other_ruleset: int = 0
    snapshot: int | None = None
    filled: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            **self.comparison.to_json(),
            "left_out": {"own_version": self.own_version, "undocumented": self.undocumented},
            "decided_by_another_ruleset": self.other_ruleset,
            "quality_snapshot": None
            if self.snapshot is None
            else {"version": self.snapshot, "calls": self.filled},
        }


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a comparison has at hand; `catalogs` fills as decisions name them."""

    db: Database
    before: PolicyVersion
    after: PolicyVersion
    traffic: Traffic
    quality: EmpiricalQuality
    catalogs: dict[str, Catalog] = field(default_factory=dict)

    @property
    def empirical(self) -> bool:
        return "empirical" in (self.before.q_source, self.after.q_source)


async def compare(
    db: Database,
    before: PolicyVersion,
    after: PolicyVersion,
    traffic: Traffic,
    each: Callable[[Change], None] = lambda change: None,
) -> Compared:
    """Run both versions on the traffic; `each` is told of every call that would change."""
    found = Compared()
    trial = _Trial(db, before, after, traffic, EmpiricalQuality(db, refresh_s=0))
    if trial.empirical:
        await trial.quality.refresh()
        found.snapshot = trial.quality.version
    async for page in _pages(db, traffic):
        for row in page:
            change = await _compare_call(trial, row, found)
            if change is not None:
                each(change)
        _say_progress(found)
    return found


async def _compare_call(trial: _Trial, row: Any, found: Compared) -> Change | None:
    traffic, named = trial.traffic, row.tenant_policy.get("policy_version")
    if traffic.following is not None and named in traffic.following:
        found.own_version += 1
        return None
    catalog = await _catalog(trial.db, row.catalog_hash, trial.catalogs)
    if catalog is None:
        found.undocumented += 1
        return None
    found.other_ruleset += row.ruleset_hash != RULESET_HASH
    terms = _with_qualities(row.terms, trial, found)
    tokens = row.tenant_policy.get("default_output_tokens")
    first = decide_under(trial.before, terms, catalog, tokens)
    second = decide_under(trial.after, terms, catalog, tokens)
    return found.comparison.add(str(row.inference_id), first, second)


def _with_qualities(terms: Mapping[str, Any], trial: _Trial, found: Compared) -> Mapping[str, Any]:
    """A decision's inputs, with the newest qualities of its task where it recorded none."""
    newest = trial.quality.get(terms["features"]["task_type"])
    if not newest or terms.get("empirical"):
        return terms
    found.filled += 1
    return {**terms, "empirical": {slug: newest[slug].to_json() for slug in newest}}


async def _catalog(
    db: Database, catalog_hash: str | None, catalogs: dict[str, Catalog]
) -> Catalog | None:
    """The catalogue of a decision; None where neither it nor the decision was kept."""
    if catalog_hash is None:
        return None
    if catalog_hash not in catalogs:
        async with db.everyone() as session:
            models = await catalog_snapshot(session, catalog_hash)
        catalogs[catalog_hash] = Catalog.of(Candidate.from_json(model) for model in models)
    catalog = catalogs[catalog_hash]
    return catalog if catalog.candidates else None


async def _pages(db: Database, traffic: Traffic) -> AsyncIterator[list[Any]]:
    """Each page in a session of its own, so that a long comparison holds nothing."""
    since = UUID(int=int(traffic.since.timestamp() * 1000) << 80)
    before, left = _LAST_ID, traffic.limit
    while left > 0:
        bound = {"before": before, "since": since, "tenant": traffic.tenant}
        async with db.everyone() as session:
            rows = (await session.execute(_PAGE, {**bound, "page": min(PAGE, left)})).all()
        if not rows:
            return
        yield list(rows)
        before, left = rows[-1].inference_id, left - len(rows)


def _say_progress(found: Compared) -> None:
    total = found.comparison.total
    sys.stderr.write(f"{total.calls} calls compared, {total.changed} would change\n")
