"""How much a key may do in a minute: the generic cell rate algorithm, as a leaky bucket.

A limit of `rate` per minute is a bucket that holds one minute's worth and leaks `rate` per minute:
a key that was idle may do a minute's worth at once, and after that as much as has leaked. This is
the continuous-state leaky bucket of ITU-T I.371, Annex A, which admits exactly what the rule of
theoretical arrival times does, but it stays sound when the rate changes.

All is counted in whole units of 1/60,000,000 of a request or token, so that a rate per minute
leaks a whole number of units per microsecond, and nothing is ever rounded in the bucket. Rates up
to `LARGEST_RATE` keep every number under 2**53: the store's scripts count in doubles.
"""

from dataclasses import dataclass

MINUTE_US = 60_000_000
LARGEST_RATE = 50_000_000
# When more was used than was reserved the bucket overflows; the debt is forgiven beyond one
# bucket's worth, so that nobody ever waits longer than two minutes.
DEEPEST = 2
# What an answer is expected to take where a client allows more, or says nothing.
EXPECTED_OUTPUT_TOKENS = 1_024


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may do; 0 is no limit. `concurrent_calls` counts calls, streamed or not, that
    wait or run."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_calls: int = 0

    @property
    def any(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.concurrent_calls)


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was used and has not leaked yet (units), as of `at` (microseconds)."""

    level: int = 0
    at: int = 0


def leaked(bucket: Bucket, rate: int, now: int) -> Bucket:
    """The bucket at `now`. A clock that went back neither fills nor drains it."""
    passed = min(max(0, now - bucket.at), DEEPEST * MINUTE_US)
    level = max(0, bucket.level - rate * passed)
    return Bucket(min(level, DEEPEST * rate * MINUTE_US), max(bucket.at, now))


def wait_us(level: int, rate: int, amount: int) -> int:
    """Microseconds until `amount` fits into a bucket that holds `level`; 0: it fits.

    What is larger than the bucket fits into an empty one.
    """
    over = level + min(amount, rate) * MINUTE_US - rate * MINUTE_US
    return max(0, -(-over // rate))


def take(bucket: Bucket, rate: int, amount: int, now: int) -> tuple[Bucket, int]:
    """The bucket afterwards, and 0 or how long to wait (us); who has to wait changes nothing."""
    current = leaked(bucket, rate, now)
    wait = wait_us(current.level, rate, amount)
    if wait:
        return bucket, wait
    return Bucket(current.level + min(amount, rate) * MINUTE_US, current.at), 0


def correct(bucket: Bucket, rate: int, reserved: int, used: int, now: int) -> Bucket:
    """The bucket once it is known what a call used for which `reserved` was taken."""
    current = leaked(bucket, rate, now)
    most = DEEPEST * rate
    level = current.level + (min(used, most) - min(reserved, rate)) * MINUTE_US
    return Bucket(min(max(0, level), most * MINUTE_US), current.at)


def remaining(level: int, rate: int) -> int:
    """How many whole requests or tokens fit yet."""
    return max(0, (rate * MINUTE_US - level) // MINUTE_US)


def reset_us(level: int, rate: int) -> int:
    """Microseconds until the bucket is empty."""
    return -(-level // rate)


def expected_tokens(input_tokens: int, max_tokens: int | None) -> int:
    """What is reserved for a call until it is known what it used.

    Its input as estimated, and its output as far as it is usual: clients allow far more output
    than they ever get, and to reserve all of that would keep them from calls that do fit.
    """
    if max_tokens is None:
        return input_tokens + EXPECTED_OUTPUT_TOKENS
    return input_tokens + min(max_tokens, EXPECTED_OUTPUT_TOKENS)
