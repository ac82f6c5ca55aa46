"""The limits of a key, inside the calls to the store that enqueue and finish a job.

    q:limit:<key>      hash: `requests` and `tokens`, the levels of two buckets (see
                       domain/limits.py, whose rule this is) as of `at` (us)
    q:calls:<key>      sorted set: the key's jobs that wait or run, by when they were last looked at

Both lie in the queue's slot. A job of a key with limits says so in its field `limits`. A slot is
held by the job itself: the script that ends the job gives it back, and a slot whose job is gone,
for whatever reason, is given to the next who asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.domain.limits import DEEPEST, MINUTE_US, KeyLimits

# A bucket is empty after this time at the latest, and an empty one is no bucket.
FORGOTTEN_MS = (DEEPEST + 1) * MINUTE_US // 1000
# Nobody knows when a call ends.
CALL_WAIT_US = 1_000_000
# How many slots are looked at when all are taken; those next that were not looked at for longest.
SLOTS_LOOKED_AT = 16

# Needs `q`, `now` and `job_key`. `spec` is <key>:<requests>:<tokens>:<calls>:<reserved tokens>.
_BUCKETS = f"""
local MINUTE, DEEPEST = {MINUTE_US}, {DEEPEST}
local function limit_key(key) return q .. ':limit:' .. key end
local function calls_key(key) return q .. ':calls:' .. key end
local function read_spec(spec)
  local key, requests, tokens, calls, reserved = spec:match('^(.-):(%d+):(%d+):(%d+):(%d+)$')
  return key, tonumber(requests), tonumber(tokens), tonumber(calls), tonumber(reserved)
end
local function leak(level, rate, passed)
  if rate == 0 then return 0 end
  return math.min(math.max(0, tonumber(level or 0) - rate * passed), DEEPEST * rate * MINUTE)
end
local function read_levels(key, requests, tokens)
  local kept = redis.call('HMGET', limit_key(key), 'at', 'requests', 'tokens')
  local at = tonumber(kept[1] or now)
  local passed = math.min(math.max(0, now - at), DEEPEST * MINUTE)
  return math.max(at, now), leak(kept[2], requests, passed), leak(kept[3], tokens, passed)
end
local function write_levels(key, at, requests, tokens)
  redis.call('HSET', limit_key(key), 'at', at, 'requests', requests, 'tokens', tokens)
  redis.call('PEXPIRE', limit_key(key), {FORGOTTEN_MS})
end
"""

# admit(id, spec, ttl_ms) returns {refused by what or '', wait (us), levels of requests and tokens,
# calls that wait or run}.
ADMIT = (
    _BUCKETS
    + f"local CALL_WAIT, LOOK = {CALL_WAIT_US}, {SLOTS_LOOKED_AT - 1}\n"
    + """
local function wait_us(level, rate, amount)
  local over = level + (amount - rate) * MINUTE
  if over <= 0 then return 0 end
  local wait = math.ceil(over / rate)
  if wait * rate < over then wait = wait + 1 end
  return wait
end
local function count_calls(key, most)
  local calls = redis.call('ZCARD', calls_key(key))
  if calls < most then return calls end
  for _, id in ipairs(redis.call('ZRANGE', calls_key(key), 0, LOOK)) do
    if redis.call('EXISTS', job_key(id)) == 1 then
      redis.call('ZADD', calls_key(key), now, id)
    else
      redis.call('ZREM', calls_key(key), id)
    end
  end
  return redis.call('ZCARD', calls_key(key))
end
local function admit(id, spec, ttl)
  local key, requests, tokens, calls, reserved = read_spec(spec)
  local refused, wait, in_flight = '', 0, 0
  local function note(what, us)
    if us > wait then refused, wait = what, us end
  end
  local at, asked, used = read_levels(key, requests, tokens)
  if requests > 0 then note('requests', wait_us(asked, requests, 1)) end
  reserved = math.min(reserved, tokens)
  if tokens > 0 then note('tokens', wait_us(used, tokens, reserved)) end
  if calls > 0 then
    in_flight = count_calls(key, calls)
    if in_flight >= calls then note('calls', CALL_WAIT) end
  end
  if refused ~= '' then return {refused, wait, asked, used, in_flight} end
  if requests > 0 then asked = asked + MINUTE end
  if tokens > 0 then used = used + reserved * MINUTE end
  if requests > 0 or tokens > 0 then write_levels(key, at, asked, used) end
  if calls > 0 then
    redis.call('ZADD', calls_key(key), now, id)
    redis.call('PEXPIRE', calls_key(key), ttl)
    in_flight = in_flight + 1
  end
  redis.call('HSET', job_key(id), 'limits', spec)
  return {refused, wait, asked, used, in_flight}
end
"""
)

# settle_limits(id, spec, used): gives the job's slot back; `used` tokens correct what was reserved
# unless they are not known (-1).
RELEASE = (
    _BUCKETS
    + """
local function settle_limits(id, spec, spent)
  local key, requests, tokens, calls, reserved = read_spec(spec)
  if calls > 0 then redis.call('ZREM', calls_key(key), id) end
  if tokens == 0 or spent < 0 then return end
  local at, asked, used = read_levels(key, requests, tokens)
  local most = DEEPEST * tokens
  used = used + (math.min(spent, most) - math.min(reserved, tokens)) * MINUTE
  write_levels(key, at, asked, math.min(math.max(0, used), most * MINUTE))
end
"""
)

Refused = Literal["", "requests", "tokens", "calls"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What a call asks of its key's limits; `tokens` are reserved until its end is known."""

    key_id: str
    limits: KeyLimits
    tokens: int = 0

    def pack(self) -> str:
        limits = self.limits
        return (
            f"{self.key_id}:{limits.requests_per_minute}:{limits.tokens_per_minute}"
            f":{limits.concurrent_calls}:{self.tokens}"
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a key stands after a call was let in, or `refused` by one of its limits.

    Levels are those of the buckets in domain/limits.py; `wait_us` is how long the one who was
    refused has to wait.
    """

    limits: KeyLimits
    refused: Refused
    wait_us: int
    requests_level: int
    tokens_level: int
    calls: int

    @classmethod
    def read(cls, limits: KeyLimits, told: Sequence[Any]) -> "Standing":
        refused, *numbers = told
        return cls(limits, refused.decode(), *numbers)
