"""Settings: read once from the environment, frozen, and passed to whoever needs them."""

import os
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.limits import LARGEST_RATE

VERSION = "0.1.0"
# how many times the longest silence of a provider a hold is leased for
LEASES_IDLE = 3

# provider slug -> (environment name of its key, of its base URL, the vendor's own base URL)
PROVIDER_SETTINGS: dict[str, tuple[str, str, str]] = {
    "anthropic": (
        "ANTHROPIC_API_KEY",
        "AINFERA_ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
    ),
    "openai": ("OPENAI_API_KEY", "AINFERA_OPENAI_BASE_URL", "https://api.openai.com/v1"),
    "google": (
        "GEMINI_API_KEY",
        "AINFERA_GOOGLE_BASE_URL",
        "https://generativelanguage.googleapis.com/v1beta/openai",
    ),
    "mistral": ("MISTRAL_API_KEY", "AINFERA_MISTRAL_BASE_URL", "https://api.mistral.ai/v1"),
    "xai": ("XAI_API_KEY", "AINFERA_XAI_BASE_URL", "https://api.x.ai/v1"),
    "deepseek": ("DEEPSEEK_API_KEY", "AINFERA_DEEPSEEK_BASE_URL", "https://api.deepseek.com/v1"),
}


class ProviderConfig(BaseSettings):
    """Where one provider is and the key it is asked with; active once either was set."""

    model_config = SettingsConfigDict(frozen=True)

    slug: str
    base_url: str
    api_key: SecretStr | None = None
    configured: bool = False


def provider_configs() -> dict[str, ProviderConfig]:
    """Every provider we can speak to, by slug, from the environment."""
    found = {}
    for slug, (key_name, url_name, vendor_url) in PROVIDER_SETTINGS.items():
        key, url = os.environ.get(key_name), os.environ.get(url_name)
        found[slug] = ProviderConfig(
            slug=slug,
            base_url=(url or vendor_url).rstrip("/"),
            api_key=SecretStr(key) if key else None,
            configured=bool(key or url),
        )
    return found


class Settings(BaseSettings):
    """Everything that can be set. Names are environment names; see README.md, "Settings"."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, extra="ignore")

    # where things are
    database_url: str = Field("", validation_alias="DATABASE_URL")
    caller_database_url: str = Field("", validation_alias="CALLER_DATABASE_URL")
    migration_database_url: str = Field("", validation_alias="MIGRATION_DATABASE_URL")
    redis_url: str = Field("", validation_alias="REDIS_URL")
    host: str = Field("127.0.0.1", validation_alias="HOST")
    port: int = Field(8080, ge=0, le=65535, validation_alias="PORT")
    fleet_home: Path = Field(Path(".fleet"), validation_alias="FLEET_HOME")
    public_base_url: str = Field("", validation_alias="PUBLIC_BASE_URL")
    log_level: str = Field("INFO", validation_alias="LOG_LEVEL")

    # secrets; without a master key no process starts
    master_key: SecretStr = Field(SecretStr(""), validation_alias="AINFERA_MASTER_KEY")
    internal_key: SecretStr = Field(SecretStr(""), validation_alias="AINFERA_INTERNAL_KEY")

    # who may come in
    signup_mode: Literal["open", "internal", "closed"] = Field(
        "internal", validation_alias="SIGNUP_MODE"
    )
    self_topup: bool = Field(False, validation_alias="SELF_TOPUP")
    preview_grant_usd: str = Field(
        "5.00", pattern=r"^\d{1,11}(\.\d{1,9})?$", validation_alias="PREVIEW_GRANT_USD"
    )
    preview_grant_inferences: int = Field(100, validation_alias="PREVIEW_GRANT_INFERENCES")
    preview_grant_days: int = Field(90, validation_alias="PREVIEW_GRANT_DAYS")
    max_body_bytes: int = Field(32 * 1024 * 1024, validation_alias="MAX_BODY_BYTES")

    # how much they may do; 0 is no limit, and a key may have limits of its own
    requests_per_minute: int = Field(
        0, ge=0, le=LARGEST_RATE, validation_alias="REQUESTS_PER_MINUTE"
    )
    tokens_per_minute: int = Field(0, ge=0, le=LARGEST_RATE, validation_alias="TOKENS_PER_MINUTE")
    streams_per_key: int = Field(0, ge=0, le=100_000, validation_alias="STREAMS_PER_KEY")
    keys_per_tenant: int = Field(100, ge=1, validation_alias="KEYS_PER_TENANT")
    public_requests_per_minute: int = Field(
        120, ge=0, le=LARGEST_RATE, validation_alias="PUBLIC_REQUESTS_PER_MINUTE"
    )
    signups_per_minute: int = Field(
        10, ge=0, le=LARGEST_RATE, validation_alias="SIGNUPS_PER_MINUTE"
    )
    trusted_proxies: str = Field("127.0.0.1,::1", validation_alias="TRUSTED_PROXIES")

    # providers
    simulate: Literal["auto", "on", "off"] = Field("auto", validation_alias="SIMULATE")
    simulated_first_token_ms: int = Field(20, ge=0, validation_alias="SIMULATED_FIRST_TOKEN_MS")
    simulated_token_ms: int = Field(5, ge=0, validation_alias="SIMULATED_TOKEN_MS")
    simulated_failure_rate: float = Field(
        0.0, ge=0, le=1, validation_alias="SIMULATED_FAILURE_RATE"
    )
    call_deadline_s: float = Field(600.0, gt=0, validation_alias="CALL_DEADLINE_SECONDS")
    start_deadline_s: float = Field(60.0, gt=0, validation_alias="START_DEADLINE_SECONDS")
    idle_deadline_s: float = Field(120.0, gt=0, validation_alias="IDLE_DEADLINE_SECONDS")
    connect_timeout_s: float = Field(10.0, gt=0, validation_alias="CONNECT_TIMEOUT_SECONDS")
    provider_attempts: int = Field(2, ge=1, le=5, validation_alias="PROVIDER_ATTEMPTS")
    max_fallbacks: int = Field(2, ge=0, le=5, validation_alias="MAX_FALLBACKS")

    # the fleet
    inference_workers: int = Field(1, ge=1, validation_alias="INFERENCE_WORKERS")
    jobs_per_worker: int = Field(256, ge=1, validation_alias="JOBS_PER_WORKER")
    jobs_per_tenant: int = Field(0, ge=0, validation_alias="JOBS_PER_TENANT")
    max_queue_depth: int = Field(10_000, ge=1, validation_alias="MAX_QUEUE_DEPTH")
    max_queue_age_s: float = Field(30.0, gt=0, validation_alias="MAX_QUEUE_AGE_SECONDS")
    max_tenant_queue: int = Field(2_000, ge=1, validation_alias="MAX_TENANT_QUEUE")
    drain_grace_s: float = Field(60.0, ge=0, validation_alias="DRAIN_GRACE_SECONDS")
    drain_notice_s: float = Field(5.0, ge=0, validation_alias="DRAIN_NOTICE_SECONDS")
    lease_s: float = Field(5.0, gt=0, validation_alias="LEASE_SECONDS")
    coalesce_ms: float = Field(8.0, ge=0, le=10, validation_alias="COALESCE_MS")
    ping_interval_s: float = Field(10.0, gt=0, validation_alias="PING_INTERVAL_SECONDS")
    pulse_file: Path | None = Field(None, validation_alias="PULSE_FILE")
    hold_ttl_s: int = Field(900, gt=0, validate_default=True, validation_alias="HOLD_TTL_SECONDS")
    dead_letter_days: float = Field(7.0, gt=0, validation_alias="DEAD_LETTER_DAYS")
    replay_seconds: int = Field(300, ge=0, validation_alias="REPLAY_SECONDS")
    replay_step_ms: float = Field(100.0, ge=0, le=1000, validation_alias="REPLAY_STEP_MS")
    replay_max_bytes: int = Field(8 * 1024 * 1024, gt=0, validation_alias="REPLAY_MAX_BYTES")

    # calls that are kept, and clients that leave
    idempotency_hours: float = Field(24.0, gt=0, validation_alias="IDEMPOTENCY_HOURS")
    result_retention_hours: float = Field(24.0, gt=0, validation_alias="RESULT_RETENTION_HOURS")
    background_deadline_s: float = Field(
        86_400.0, gt=0, validation_alias="BACKGROUND_DEADLINE_SECONDS"
    )
    redrive_after_s: float = Field(10.0, gt=0, validation_alias="REDRIVE_AFTER_SECONDS")
    on_disconnect: Literal["cancel", "drain"] = Field("cancel", validation_alias="ON_DISCONNECT")

    # quotes that are held
    quote_hold_s: int = Field(600, ge=0, le=86_400, validation_alias="QUOTE_HOLD_SECONDS")
    quotes_per_tenant: int = Field(1_000, ge=0, validation_alias="QUOTES_PER_TENANT")

    # the audit log's checkpoints
    checkpoint_s: int = Field(5, ge=1, le=60, validation_alias="CHECKPOINT_SECONDS")
    audit_export_dir: Path | None = Field(None, validation_alias="AUDIT_EXPORT_DIR")
    audit_export_url: str = Field("", validation_alias="AUDIT_EXPORT_URL")
    audit_export_token: SecretStr = Field(SecretStr(""), validation_alias="AUDIT_EXPORT_TOKEN")
    audit_export_s3_region: str = Field("us-east-1", validation_alias="AUDIT_EXPORT_S3_REGION")
    audit_export_s3_key_id: str = Field("", validation_alias="AUDIT_EXPORT_S3_KEY_ID")
    audit_export_s3_secret: SecretStr = Field(
        SecretStr(""), validation_alias="AUDIT_EXPORT_S3_SECRET"
    )
    # the killswitch engages by itself where more is spent in the window; None: never
    killswitch_tenant_usd: Decimal | None = Field(
        None, gt=0, decimal_places=9, max_digits=20, validation_alias="KILLSWITCH_TENANT_USD"
    )
    killswitch_system_usd: Decimal | None = Field(
        None, gt=0, decimal_places=9, max_digits=20, validation_alias="KILLSWITCH_SYSTEM_USD"
    )
    killswitch_window_s: int = Field(
        3600, ge=1, le=7 * 86_400, validation_alias="KILLSWITCH_WINDOW_SECONDS"
    )

    # how long models take, as decisions with a latency cap see it
    latency_window_s: int = Field(
        3600, ge=60, le=7 * 86_400, validation_alias="LATENCY_WINDOW_SECONDS"
    )
    latency_min_samples: int = Field(50, ge=1, validation_alias="LATENCY_MIN_SAMPLES")
    latency_refresh_s: float = Field(30.0, gt=0, validation_alias="LATENCY_REFRESH_SECONDS")
    # what is learned from answers; nothing is served from it until a policy says so
    empirical_half_life_days: int = Field(
        14, ge=1, le=365, validation_alias="EMPIRICAL_HALF_LIFE_DAYS"
    )
    empirical_min_support: int = Field(50, ge=10, validation_alias="EMPIRICAL_MIN_SUPPORT")
    empirical_refresh_s: float = Field(60.0, gt=0, validation_alias="EMPIRICAL_REFRESH_SECONDS")

    # gates; their first value, where an operator can flip them later
    routing_preference_live: bool = Field(False, validation_alias="AINFERA_ROUTING_PREFERENCE_LIVE")
    payments_live: bool = Field(False, validation_alias="AINFERA_PAYMENTS_LIVE")

    @field_validator("hold_ttl_s")
    @classmethod
    def _outlives_silence(cls, hold_ttl_s: int, told: ValidationInfo) -> int:
        """A hold is renewed at half time, when a word comes; nobody's who is only silent ends."""
        least = LEASES_IDLE * told.data.get("idle_deadline_s", 0)
        if hold_ttl_s < least:
            raise ValueError(
                f"{hold_ttl_s} is too short: a hold has to outlive the silence of a provider, so "
                f"at least {LEASES_IDLE} times IDLE_DEADLINE_SECONDS are needed ({least:g})"
            )
        return hold_ttl_s

    @cached_property
    def base_url(self) -> str:
        """The absolute URL clients reach us at, without a trailing slash."""
        return (self.public_base_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def local_url(self) -> str:
        """Where the ingress is asked from this machine, whatever it listens on."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def tenant_slots(self) -> int:
        """How many calls of one tenant a worker has in flight at most."""
        most = self.jobs_per_tenant or self.jobs_per_worker * 3 // 4
        return max(1, min(most, self.jobs_per_worker))

    def audit_url(self, agent_id: str) -> str:
        return f"{self.base_url}/v1/audit/{agent_id}/verify"


class StartError(RuntimeError):
    """Why a process does not start; the message says what to do about it."""

    exit_code: ClassVar[int] = 1


class SettingsError(StartError):
    """What was set cannot be used; the message names each setting and what it may be."""

    exit_code = 2


def read_settings() -> Settings:
    """The settings of this process. Raises `SettingsError`."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [f"{_environment_name(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(["These settings cannot be used:", *wrong])) from None


def _environment_name(place: tuple[int | str, ...]) -> str:
    """What a setting is called outside; for a default that is wrong, pydantic names its field."""
    field = Settings.model_fields.get(str(place[0])) if place else None
    return str(field.validation_alias) if field is not None else ".".join(map(str, place))


def simulating(settings: Settings, providers: Mapping[str, ProviderConfig]) -> bool:
    """Whether the simulated provider stands in for providers that were not configured."""
    if settings.simulate == "auto":
        return not any(p.configured for p in providers.values())
    return settings.simulate == "on"


def active_providers(
    settings: Settings, providers: Mapping[str, ProviderConfig], catalogued: Iterable[str]
) -> frozenset[str]:
    """Slugs of the providers that a call can reach.

    Those configured; where the simulated one stands in, all that the catalogue names too, but for
    those whose wire we do not speak: what cannot be asked in earnest is not simulated.
    """
    configured = frozenset(slug for slug, config in providers.items() if config.configured)
    if not simulating(settings, providers):
        return configured
    return configured | (frozenset(catalogued) & PROVIDER_SETTINGS.keys())
