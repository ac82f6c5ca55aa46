"""Limits at the door: what a call asks of its key's, and how often a stranger may come.

A key's limits are looked at inside the one call to the store that enqueues (shared/limiting.py);
here is what goes in and which headers come out. What needs no key is limited by the address it
comes from, in this process's memory.
"""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import Request

from ingress.auth import Caller
from ingress.deps import get_deps
from ingress.scopes import Open, access_of
from shared.config import Settings
from shared.domain.counting import counted
from shared.domain.estimate import estimate_input_tokens
from shared.domain.inference import Dialect, InferenceRequest
from shared.domain.limits import (
    LARGEST_RATE,
    Bucket,
    KeyLimits,
    expected_tokens,
    remaining,
    reset_us,
    take,
)
from shared.errors import RateLimited
from shared.limiting import Admission, Standing

MOST_ADDRESSES = 20_000
# one subscriber's share of the IPv6 Internet, who has every address in it
IPV6_SUBSCRIBER_BITS = 64


def default_limits(settings: Settings) -> KeyLimits:
    """The limits of keys that have none of their own."""
    return KeyLimits(
        settings.requests_per_minute, settings.tokens_per_minute, settings.streams_per_key
    )


@dataclass(slots=True)
class Turnstile:
    """One call and its key's limits: what it asks, and `standing`, once the store has said it."""

    admission: Admission
    standing: Standing | None = None


def turnstile(caller: Caller, call: InferenceRequest) -> Turnstile | None:
    """None for a key without limits, whose calls pay nothing for those of others."""
    limits = caller.limits
    if limits is None:
        return None
    tokens = 0
    if limits.tokens_per_minute:
        tokens = min(expected_tokens(estimate_input_tokens(call), call.max_tokens), LARGEST_RATE)
    return Turnstile(Admission(caller.key_id, limits, tokens))


def limit_headers(standing: Standing, dialect: Dialect) -> dict[str, str]:
    """What is left, as the clients of each vendor read it: Anthropic's, else OpenAI's names."""
    limits = standing.limits
    headers: dict[str, str] = {}
    told = (
        ("requests", limits.requests_per_minute, standing.requests_level),
        ("tokens", limits.tokens_per_minute, standing.tokens_level),
    )
    for what, rate, level in told:
        if not rate:
            continue
        left, full_in = remaining(level, rate), reset_us(level, rate)
        if dialect is Dialect.ANTHROPIC:
            names = [
                f"anthropic-ratelimit-{what}-{part}" for part in ("limit", "remaining", "reset")
            ]
            reset = moment_in(full_in)
        else:
            names = [f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset")]
            reset = as_duration(full_in)
        headers |= dict(zip(names, (str(rate), str(left), reset), strict=True))
    if most := limits.concurrent_calls:
        headers["x-ainfera-concurrent-limit"] = str(most)
        headers["x-ainfera-concurrent-remaining"] = str(max(0, most - standing.calls))
    return headers


def moment_in(us: int) -> str:
    """When that is, RFC 3339 in UTC, never too early."""
    at = datetime.now(UTC) + timedelta(microseconds=us + 999_999)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def as_duration(us: int) -> str:
    """`1m30s`, `1.5s`, `12ms`: as Go writes it, in whole milliseconds, never too short."""
    ms = math.ceil(us / 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


class AddressLimit:
    """So many requests a minute from one address; of those least recently seen it knows nothing.

    `clock` gives seconds that only ever grow. A `rate` of 0 is no limit.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, most: int = MOST_ADDRESSES
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str) -> None:
        """Raises `RateLimited` for one too many."""
        if not self._rate:
            return
        whose = subscriber(address)
        now = int(self._clock() * 1_000_000)
        bucket, wait = take(self._buckets.get(whose, Bucket(0, now)), self._rate, 1, now)
        self._buckets[whose] = bucket
        self._buckets.move_to_end(whose)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        if wait:
            raise RateLimited(
                f"No more than {counted(self._rate, 'such request')} a minute from one address.",
                retry_after=wait / 1_000_000,
            )


def subscriber(address: str) -> str:
    """Whose an address is: itself, or the IPv6 network that one subscriber is given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_SUBSCRIBER_BITS), strict=False))
    return address


async def limit_strangers(request: Request) -> None:
    """FastAPI dependency of every route. Raises `RateLimited` where no key says who asks."""
    access = access_of(request.scope)
    if access is Open.METERED or access is Open.SIGNUP:
        deps = get_deps(request)
        address = request.client.host if request.client is not None else ""
        if access is Open.METERED:
            deps.public_limit.take(address)
        elif deps.settings.signup_mode == "open":
            deps.signup_limit.take(address)
