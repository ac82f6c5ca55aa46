"""Where a CONDITIONAL brand may serve: what its catalogue entry asks of a request.

All conditions that are given must hold. What a request does not say holds nowhere: a brand that
takes public data only does not get data of which nobody said that it is public.

Every tenant's receipts show the conditions of all brands. A tenant therefore stands there as its
seal, which it can compute of itself, and nobody can trace to it. Older receipts have the id.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

DataClass = Literal["public", "internal", "confidential", "restricted"]
DATA_CLASSES: tuple[str, ...] = get_args(DataClass)
# a word of lowercase letters, digits and hyphens, at most 64 characters
REGION = r"[a-z0-9](?:-?[a-z0-9]){0,31}"

_SEAL = re.compile(r"[0-9a-f]{16}")


def tenant_seal(tenant_id: str) -> str:
    """16 hex digits that stand for a tenant. Ids are random, so they cannot be found by trying."""
    return hashlib.sha256(f"ainfera tenant {tenant_id}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Conditions:
    """`opt_in`: the request's allow list, or its pin, names the model or its brand. The others
    list the values that a request may have; None: any, and a request without one too. `tenant`
    has seals, or ids."""

    opt_in: bool = False
    data_class: frozenset[str] | None = None
    region: frozenset[str] | None = None
    tenant: frozenset[str] | None = None

    def failing(
        self, opted_in: bool, data_class: str | None, region: str | None, tenant_id: str | None
    ) -> str | None:
        """The name of the first condition that a request does not meet; None: it meets them all."""
        if self.opt_in and not opted_in:
            return "opt_in"
        if self.data_class is not None and data_class not in self.data_class:
            return "data_class"
        if self.region is not None and region not in self.region:
            return "region"
        if self.tenant is not None and not _open_to(self.tenant, tenant_id):
            return "tenant"
        return None

    def sealed(self) -> "Conditions":
        """The same without any tenant's id."""
        if self.tenant is None:
            return self
        seals = (each if _SEAL.fullmatch(each) else tenant_seal(each) for each in self.tenant)
        return replace(self, tenant=frozenset(seals))

    def to_json(self) -> dict[str, Any]:
        """Only the conditions that are given."""
        given: dict[str, Any] = {"opt_in": True} if self.opt_in else {}
        for name in ("data_class", "region", "tenant"):
            values: frozenset[str] | None = getattr(self, name)
            if values is not None:
                given[name] = sorted(values)
        return given

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> "Conditions | None":
        """The inverse; None where there are none. Raises `ValueError` for one that is unknown."""
        if not data:
            return None
        unknown = data.keys() - {"opt_in", "data_class", "region", "tenant"}
        if unknown:
            raise ValueError(f"no condition is called {', '.join(sorted(unknown))}")
        return cls(
            opt_in=data.get("opt_in") is True,
            data_class=_listed(data.get("data_class")),
            region=_listed(data.get("region")),
            tenant=_listed(data.get("tenant")),
        )


def _open_to(tenants: frozenset[str], tenant_id: str | None) -> bool:
    if tenant_id is None:
        return False
    return tenant_id in tenants or tenant_seal(tenant_id) in tenants


# a CONDITIONAL brand of which nothing else is said
OPT_IN = Conditions(opt_in=True)


def _listed(values: Any) -> frozenset[str] | None:
    return None if values is None else frozenset(str(value) for value in values)
