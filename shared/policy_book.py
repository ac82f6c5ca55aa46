"""The routing policy as a process knows it: versions, the active one, the preference's gate.

They are kept in memory, so that a call asks nobody for them, and read again whenever an order came
or may have been missed. So what an operator publishes or flips is heard within a second.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from shared.control import POLICIES
from shared.db import Database
from shared.domain.policy_version import FLAT_POLICY, PolicyVersion
from shared.domain.routing_policy import KNOWN, CallerPolicy, caller_policy
from shared.metrics import PREFERENCE_LIVE
from shared.policies import active_version, known_versions, preference_gate
from shared.rereading import Rereading


class PolicyBook:
    """`edition` grows whenever something changed. Until it is started it has the built-in versions,
    and the gate as the environment has it (`preference_live`).
    """

    def __init__(self, db: Database, preference_live: bool = False) -> None:
        self._db = db
        self._first = preference_live
        self._rereading = Rereading("policies", self.read)
        self.edition = 1
        self.versions: Mapping[str, PolicyVersion] = KNOWN
        self.active = FLAT_POLICY
        self.preference_live = preference_live

    async def start(self) -> None:
        """Read what there is; raises if Postgres does not answer."""
        await self.read()
        self._rereading.start()

    async def aclose(self) -> None:
        await self._rereading.aclose()

    def policy_of(
        self, tenant_policy: Mapping[str, Any], agent_min_quality: Decimal | None
    ) -> CallerPolicy:
        """The policy of a caller from what its tenant and its agent say.

        A version that is not known here may be news: it is looked up, and holds from then on.
        """
        named = tenant_policy.get("policy_version")
        if named is not None and named not in self.versions:
            self._rereading.tell()
        return caller_policy(tenant_policy, agent_min_quality, self.versions, self.active)

    def obey(self, order: Mapping[str, Any]) -> None:
        """An order over the control channel; what it is about is looked up."""
        if order["type"] == POLICIES:
            self._rereading.tell()

    def missed(self) -> None:
        """Orders may have been missed."""
        self._rereading.tell()

    async def read(self) -> None:
        """Look all of it up. Raises if Postgres does not answer."""
        async with self._db.everyone() as session:
            # in this order: what is active by now is then among the versions
            active = await active_version(session)
            versions = await known_versions(session)
            gate = await preference_gate(session)
        self._keep(versions, active, self._first if gate is None else gate.live)

    def _keep(self, versions: Mapping[str, PolicyVersion], active: str, live: bool) -> None:
        PREFERENCE_LIVE.set(live)
        if (versions, active, live) != (self.versions, self.active, self.preference_live):
            self.versions, self.active, self.preference_live = versions, active, live
            self.edition += 1
