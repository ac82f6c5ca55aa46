"""What decisions are made from besides the request, as one process has it now.

An ingress that quotes and a worker that answers have the same: else a quote would not say what its
call does.
"""

from collections.abc import Mapping
from typing import Any

from shared.config import Settings
from shared.db import Database
from shared.domain.planning import Situation
from shared.domain.routing_policy import CallerPolicy
from shared.latencies import Latencies
from shared.learning import EmpiricalQuality
from shared.live_catalog import LiveCatalog
from shared.policy_book import PolicyBook


class LiveRouting:
    """The catalogue, the policies, and what was seen of models; each keeps itself up to date."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._most_fallbacks = settings.max_fallbacks
        self.catalog = LiveCatalog(db)
        self.policies = PolicyBook(db, settings.routing_preference_live)
        self.latencies = Latencies(db, settings.latency_refresh_s)
        self.empirical = EmpiricalQuality(db, settings.empirical_refresh_s)

    def situation(self, policy: CallerPolicy, active: frozenset[str], tenant_id: str) -> Situation:
        """What a tenant's call is decided from now; `active` are the providers to be asked."""
        return Situation(
            self.catalog.current,
            policy,
            active,
            self.policies.preference_live,
            self._most_fallbacks,
            tenant_id,
            self.latencies.by_model,
            self.empirical,
        )

    async def start(self) -> None:
        """Read all of it; raises if Postgres does not answer."""
        await self.catalog.start()
        await self.policies.start()
        await self.latencies.start()
        self.empirical.start()

    async def aclose(self) -> None:
        await self.empirical.aclose()
        await self.latencies.aclose()
        await self.policies.aclose()
        await self.catalog.aclose()

    def obey(self, order: Mapping[str, Any]) -> None:
        """An order over the control channel."""
        self.catalog.obey(order)
        self.policies.obey(order)

    def missed(self) -> None:
        """Orders may have been missed."""
        self.catalog.missed()
        self.policies.missed()
