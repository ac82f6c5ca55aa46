"""The tables as SQLModel classes, for reads and for the few writes that are not SQL functions.

The schema itself is `migrations/sql`; a test compares it with these classes. A `…Row` is what
Postgres stores; the nouns of `shared/domain` are the values that the rules speak of. Money is
`Decimal` US dollars with nine places. Rows of append-only tables can be inserted and read only.
"""

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    Date,
    DateTime,
    Index,
    Numeric,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB
from sqlmodel import Field, SQLModel

from shared.domain.keys import Scope

METADATA = SQLModel.metadata
EMPTY: Any = text("'{}'")
NEW_ID: Any = text("new_id()")
ALL_SCOPES = "'{call,read,admin}'::text[]"
HANDLE_KEY = "agents_canonical_uri_key"
BY_TIME = ("tenant_id", "created_at")
BY_RANGE: Any = {"postgresql_using": "brin"}
ENDED: Any = text("settled_at IS NOT NULL")
EXCEPTIONAL: Any = text("outcome_status <> 'succeeded' OR fallback_chain <> '[]'")
OF_MODEL = ("chosen_model_slug", "created_at")
UNBROKEN: Any = text("outcome_status = 'succeeded' AND fallback_chain = '[]'")
FAILURES: Any = text("event_type IN ('provider.failed', 'inference.rejected_cap_violation')")


def money(*, optional: bool = False, default: int | None = None) -> Any:
    server_default = None if default is None else text(str(default))
    column = Column(Numeric(20, 9), nullable=optional, server_default=server_default)
    if default is not None:
        return Field(default=Decimal(default), sa_column=column)
    return Field(default=None, sa_column=column) if optional else Field(sa_column=column)


def number() -> Any:
    """A decimal without a fixed scale: a quality between 0 and 1."""
    return Field(default=None, sa_column=Column(Numeric, nullable=True))


def moment(*, optional: bool = False, now: Any = func.now()) -> Any:  # noqa: B008
    """A point in time, always with its zone; the database's clock fills it in if not optional."""
    default = None if optional else now
    return Field(
        default=None,
        sa_column=Column(DateTime(timezone=True), nullable=optional, server_default=default),
    )


def document(*, default: bool = False) -> Any:
    column = Column(JSONB, nullable=False, server_default=EMPTY if default else None)
    return Field(default_factory=dict, sa_column=column) if default else Field(sa_column=column)


class TenantRow(SQLModel, table=True):
    """The paying party; `policy` is its routing policy, the cap is for all its agents together."""

    __tablename__ = "tenants"

    id: UUID = Field(primary_key=True)
    name: str = Field(sa_type=Text)
    owner_handle: str | None = Field(default=None, sa_type=Text)
    owner_source: str | None = Field(default=None, sa_type=Text)
    owner_contact: str | None = Field(default=None, sa_type=Text)
    policy: dict[str, Any] = document(default=True)
    created_at: datetime = moment()
    daily_cap_usd: Decimal | None = money(optional=True)


class AgentRow(SQLModel, table=True):
    """`status` other than `active` makes no calls; `private_key_sealed` is encrypted."""

    __tablename__ = "agents"
    __table_args__ = (
        Index("agents_tenant_id_idx", "tenant_id", "created_at"),
        UniqueConstraint("canonical_uri", name=HANDLE_KEY),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID = Field(foreign_key="tenants.id")
    name: str = Field(sa_type=Text)
    canonical_uri: str = Field(sa_type=Text)
    did_web: str = Field(sa_type=Text)
    status: str = Field(
        default="active", sa_type=Text, sa_column_kwargs={"server_default": "active"}
    )
    public_key_pem: str = Field(sa_type=Text)
    private_key_sealed: bytes = Field(sa_type=BYTEA)
    min_quality: Decimal | None = number()
    per_call_cap_usd: Decimal | None = money(optional=True)
    daily_cap_usd: Decimal | None = money(optional=True)
    # `metadata` is SQLAlchemy's own name on a model, so the attribute has another
    labels: dict[str, Any] = Field(
        default_factory=dict,
        sa_column=Column("metadata", JSONB, nullable=False, server_default=EMPTY),
    )
    wallet_address: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = moment()


class ApiKeyRow(SQLModel, table=True):
    """One secret of a key: `key_id` is the key, whose secrets take each other's place.

    `agent_id` binds the key to one agent; `default_agent_id` is only what is meant if none is
    named. A limit that is None is the settings', 0 is none. The secret itself is never stored.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("api_keys_key_id_idx", "key_id"),
        Index("api_keys_tenant_id_idx", "tenant_id", "created_at"),
        UniqueConstraint("key_hash", name="api_keys_key_hash_key"),
    )
    # what the database computes comes back with the write itself
    __mapper_args__ = {"eager_defaults": True}

    id: UUID = Field(primary_key=True)
    tenant_id: UUID = Field(foreign_key="tenants.id")
    agent_id: UUID | None = Field(default=None, foreign_key="agents.id")
    default_agent_id: UUID | None = Field(default=None, foreign_key="agents.id")
    key_hash: bytes = Field(sa_type=BYTEA)
    label: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = moment()
    revoked_at: datetime | None = moment(optional=True)
    expires_at: datetime | None = moment(optional=True)
    last_used_at: datetime | None = moment(optional=True)
    version_of: UUID | None = Field(default=None, foreign_key="api_keys.id")
    key_id: UUID = Field(
        default=None,
        sa_column=Column(
            Uuid, Computed("COALESCE(version_of, id)", persisted=True), nullable=False
        ),
    )
    scopes: list[str] = Field(
        default_factory=lambda: [scope.value for scope in Scope],
        sa_column=Column(ARRAY(Text), nullable=False, server_default=text(ALL_SCOPES)),
    )
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None


class AccountRow(SQLModel, table=True):
    """A wallet, or an account of the system, whose balance is not kept here but folded."""

    __tablename__ = "accounts"
    __table_args__ = (
        UniqueConstraint("agent_id", name="accounts_agent_id_key"),
        Index("accounts_tenant_id_idx", "tenant_id"),
        Index(
            "accounts_grant_expires_at_idx",
            "grant_expires_at",
            postgresql_where=text("grant_expires_at IS NOT NULL"),
        ),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = Field(default=None, foreign_key="tenants.id")
    agent_id: UUID | None = Field(default=None, foreign_key="agents.id")
    kind: str = Field(default="wallet", sa_type=Text, sa_column_kwargs={"server_default": "wallet"})
    balance: Decimal = money(default=0)
    held: Decimal = money(default=0)
    spent_day: date | None = Field(default=None, sa_column=Column(Date, nullable=True))
    spent_today: Decimal = money(default=0)
    grant_inferences_left: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    grant_expires_at: datetime | None = moment(optional=True)


class TransferRow(SQLModel, table=True):
    """Append-only. `amount` left `debit_account` and entered `credit_account`.

    `corrects` is the transfer that a correction takes back, wholly or in part.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        Index(
            "transfers_inference_id_kind_key",
            "inference_id",
            text("(NULLIF(kind, 'correction'))"),
            unique=True,
        ),
        Index("transfers_corrects_idx", "corrects", postgresql_where=text("corrects IS NOT NULL")),
        Index("transfers_debit_account_idx", "debit_account", "created_at"),
        Index("transfers_credit_account_idx", "credit_account", "created_at"),
    )

    id: UUID = Field(primary_key=True, sa_column_kwargs={"server_default": NEW_ID})
    tenant_id: UUID
    debit_account: UUID
    credit_account: UUID
    amount: Decimal = money()
    kind: str = Field(sa_type=Text)
    inference_id: UUID | None = None
    pending_id: UUID | None = None
    debit_balance_after: Decimal | None = money(optional=True)
    credit_balance_after: Decimal | None = money(optional=True)
    memo: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = moment(now=func.clock_timestamp())
    corrects: UUID | None = None


class LedgerEntryRow(SQLModel, table=True):
    """A view: each transfer twice, once as each of its accounts sees it."""

    __tablename__ = "ledger_entries"
    __table_args__ = {"info": {"view": True}}

    transfer_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    account_id: UUID = Field(primary_key=True)
    amount: Decimal = money()
    balance_after: Decimal | None = money(optional=True)
    kind: str = Field(sa_type=Text)
    memo: str | None = Field(default=None, sa_type=Text)
    inference_id: UUID | None = None
    created_at: datetime = moment()


class InferenceRow(SQLModel, table=True):
    """One call: its hold, and how it ended."""

    __tablename__ = "inferences"
    __table_args__ = (
        Index("inferences_agent_id_idx", "agent_id", "settled_at", postgresql_where=ENDED),
        Index("inferences_tenant_id_idx", "tenant_id", "settled_at", postgresql_where=ENDED),
        Index("inferences_settled_at_idx", "settled_at", **BY_RANGE),
        Index(
            "inferences_hold_expires_at_idx",
            "hold_expires_at",
            postgresql_where=text("state = 'held'::text"),
        ),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID
    agent_id: UUID
    routed: bool
    dialect: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    attempt: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    state: str = Field(sa_type=Text)
    hold_usd: Decimal = money(default=0)
    hold_state: str | None = Field(default=None, sa_type=Text)
    hold_expires_at: datetime | None = moment(optional=True)
    settled_usd: Decimal | None = money(optional=True)
    created_at: datetime = moment()
    settled_at: datetime | None = moment(optional=True)


class RoutingOutcomeRow(SQLModel, table=True):
    """Append-only: the one capture of a routed call. `decision` is what its receipt shows."""

    __tablename__ = "routing_outcomes"
    __table_args__ = (
        Index("routing_outcomes_agent_id_idx", "agent_id", "created_at"),
        Index("routing_outcomes_tenant_id_idx", "tenant_id", "created_at"),
        Index("routing_outcomes_created_at_idx", "created_at", postgresql_using="brin"),
        Index("routing_outcomes_exceptions_idx", *BY_TIME, postgresql_where=EXCEPTIONAL),
        Index("routing_outcomes_latency_idx", *OF_MODEL, postgresql_where=UNBROKEN),
    )

    inference_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    agent_id: UUID
    task_type: str = Field(sa_type=Text)
    cell: str | None = Field(default=None, sa_type=Text)
    decision_rule: str = Field(sa_type=Text)
    policy_version: str = Field(sa_type=Text)
    ruleset_hash: str = Field(sa_type=Text)
    min_quality: Decimal = Field(sa_column=Column(Numeric, nullable=False))
    chosen_model_slug: str | None = Field(default=None, sa_type=Text)
    provider: str | None = Field(default=None, sa_type=Text)
    cost_projected: Decimal | None = money(optional=True)
    cost_actual: Decimal | None = money(optional=True)
    observed_latency_ms: int | None = None
    ttft_ms: int | None = None
    outcome_status: str = Field(sa_type=Text)
    fallback_chain: list[Any] = document()
    decision: dict[str, Any] = document()
    input_tokens: int | None = None
    output_tokens: int | None = None
    created_at: datetime = moment()


class ReceiptRow(SQLModel, table=True):
    """Append-only: what a call that reached a provider used and cost."""

    __tablename__ = "receipts"
    __table_args__ = (
        UniqueConstraint("inference_id", name="receipts_inference_id_key"),
        Index("receipts_agent_id_idx", "agent_id", "created_at"),
        Index("receipts_tenant_id_idx", "tenant_id", "created_at"),
    )

    receipt_id: UUID = Field(primary_key=True)
    inference_id: UUID
    tenant_id: UUID
    agent_id: UUID
    cost_usd: Decimal = money()
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    usage_estimated: bool
    model_used: str = Field(sa_type=Text)
    model_slug: str = Field(sa_type=Text)
    provider: str = Field(sa_type=Text)
    simulated: bool
    created_at: datetime = moment()
    billing_rule: str | None = Field(default=None, sa_type=Text)
    billing_basis: str | None = Field(default=None, sa_type=Text)
    outcome: str | None = Field(default=None, sa_type=Text)


class AuditHeadRow(SQLModel, table=True):
    """The last event of an agent's chain; locked by whoever appends."""

    __tablename__ = "audit_heads"

    agent_id: UUID = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    hash: str | None = Field(default=None, sa_type=Text)


class AuditEventRow(SQLModel, table=True):
    """Append-only. `payload` is the canonical JSON text that was hashed."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("audit_events_created_at_idx", "created_at"),
        Index("audit_events_failures_idx", *BY_TIME, postgresql_where=FAILURES),
    )

    id: UUID = Field(sa_column_kwargs={"server_default": NEW_ID})
    agent_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True))
    event_type: str = Field(sa_type=Text)
    payload: str = Field(sa_type=Text)
    previous_hash: str | None = Field(default=None, sa_type=Text)
    event_hash: str = Field(sa_type=Text)
    created_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
