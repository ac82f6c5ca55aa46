"""How a queue lies in the store, and the scripts that move jobs about in it.

Every key begins with the queue's name, which is a hash tag, so that a queue lies in one slot
of a cluster. For a queue named `q`:

    q                  sorted set: jobs not due yet, by when they are (ms); arq's enqueue adds here
    q:job:<id>         hash: `job` in arq's format, `lane`, `try` (claims so far), `at` (us)
    q:payload:<id>     the bytes enqueued beside the job
    q:lane:<c>:<t>     list: the waiting jobs of tenant `t` in priority class `c`, in their order
    q:waiting:<c>      sorted set: all waiting jobs of a class, by since when they wait (us)
    q:turns:<c>        sorted set: the lanes of a class that have jobs, by when they had a turn (us)
    q:turn             the last turn given: the store's clock, but never backwards
    q:lease, q:owner   sorted set, hash: jobs in work, by when their lease ends (us), and whose
    q:claims           hash: how many jobs were claimed lately
    q:bell, q:passed   lists of one ring at most, for workers that wait

Which lanes and jobs a script touches is known only inside it, so it makes their names from the
queue's. That is sound on a cluster because all of them are in the slot of the queue's own key.

All times are the store's own. Lanes of a class take turns; a tenant that has as many jobs as it
may in one worker gives its turn away there, and its lane rings `passed`, which only workers
listen to that have room for everybody.
"""

WINDOW_S = 5

_NOW = """
local q = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function job_key(id) return q .. ':job:' .. id end
local function payload_key(id) return q .. ':payload:' .. id end
local function lane_key(lane) return q .. ':lane:' .. lane end
local function waiting_key(lane) return q .. ':waiting:' .. lane:sub(1, 1) end
local function turns_key(lane) return q .. ':turns:' .. lane:sub(1, 1) end
"""

_WAIT = """
local last
local function turn()
  last = math.max(now, (last or tonumber(redis.call('GET', q .. ':turn') or 0)) + 1)
  redis.call('SET', q .. ':turn', last)
  return last
end
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, 1) end
end
local function wait_in(lane, id, push)
  redis.call(push, lane_key(lane), id)
  redis.call('ZADD', waiting_key(lane), now, id)
  if not redis.call('ZSCORE', turns_key(lane), lane) then
    redis.call('ZADD', turns_key(lane), turn(), lane)
  end
end
"""

# Claims a second, from a count over this window and the one before it; counts `n` more.
_RATE = f"""
local WINDOW = {WINDOW_S} * 1000000
local function claims(n)
  local kept = redis.call('HMGET', q .. ':claims', 'start', 'count', 'before')
  local start, count = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
  local before = tonumber(kept[3] or 0)
  if now < start or now - start >= 2 * WINDOW then
    start, count, before = now, 0, 0
  elseif now - start >= WINDOW then
    start, count, before = start + WINDOW, 0, count
  end
  if n > 0 then
    count = count + n
    redis.call('HSET', q .. ':claims', 'start', start, 'count', count, 'before', before)
  end
  return (before * (1 - (now - start) / WINDOW) + count) / {WINDOW_S}
end
"""

# KEYS: queue, bell. ARGV: id, job, payload, ttl (ms), lane, attempts, limited (0 or 1), most
# jobs, longest wait (us), most jobs in a lane.
# A lane is too old by its first job. The queue is too old when the lane whose turn comes next
# has waited too long for it, for so long would a newcomer wait: a tenant with a long queue of
# its own refuses nobody else.
ENQUEUE = (
    _NOW
    + _WAIT
    + _RATE
    + """
local id, lane, longest = ARGV[1], ARGV[5], tonumber(ARGV[9])
local depth = 0
for class = 0, 2 do depth = depth + redis.call('ZCARD', q .. ':waiting:' .. class) end
local function since(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return first[2] and math.max(0, now - tonumber(first[2])) or 0
end
local oldest = since(q .. ':waiting:0')
local function refuse(result, in_lane)
  local lanes = redis.call('ZCARD', turns_key(lane))
  return {result, depth, oldest, in_lane, lanes, math.floor(claims(0) * 1000)}
end
if redis.call('EXISTS', job_key(id)) == 1 then return {'EXISTS', depth, oldest} end
if ARGV[7] == '1' then
  local in_lane = redis.call('LLEN', lane_key(lane))
  if in_lane >= tonumber(ARGV[10]) then return refuse('TENANT_BUSY', in_lane) end
  if depth >= tonumber(ARGV[8]) or since(q .. ':turns:0') > longest then
    return refuse('BUSY', in_lane)
  end
  local first = lane:sub(1, 1) == '0' and redis.call('LINDEX', lane_key(lane), 0)
  if first and now - tonumber(redis.call('ZSCORE', waiting_key(lane), first) or now) > longest then
    return refuse('TENANT_BUSY', in_lane)
  end
end
redis.call('HSET', job_key(id), 'job', ARGV[2], 'lane', lane, 'try', ARGV[6], 'at', now)
redis.call('PEXPIRE', job_key(id), ARGV[4])
redis.call('SET', payload_key(id), ARGV[3], 'PX', ARGV[4])
wait_in(lane, id, 'RPUSH')
ring(KEYS[2])
return {'QUEUED', depth + 1, oldest}
"""
)

# KEYS: queue, leases, owners, bell, passed. ARGV: how many, lease (us), worker, prefix of jobs
# that arq itself enqueued or '', slots of a tenant, ttl (ms), then tenants and the slots left
# to them in this worker. Returns the claims, and 1 if a lane gave its turn away.
CLAIM = (
    _NOW
    + _WAIT
    + _RATE
    + """
local limit, foreign = tonumber(ARGV[1]), ARGV[4]
local free = {}
for i = 7, #ARGV, 2 do free[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- what a dead worker had goes to the front of its lane; the oldest last, so it is first there
local lost = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  local job = redis.call('HMGET', job_key(id), 'lane', 'at')
  if job[1] then lost[#lost + 1] = {id = id, lane = job[1], at = tonumber(job[2])} end
end
table.sort(lost, function(one, other) return one.at > other.at end)
for _, job in ipairs(lost) do wait_in(job.lane, job.id, 'LPUSH') end

-- what is due by now: retries to the front, what arq enqueued to the end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', q, '-inf', now / 1000, 'LIMIT', 0, limit)) do
  redis.call('ZREM', q, id)
  local lane = redis.call('HGET', job_key(id), 'lane')
  if lane then
    wait_in(lane, id, 'LPUSH')
  elseif foreign ~= '' and redis.call('EXISTS', foreign .. id) == 1 then
    redis.call('HSET', job_key(id), 'lane', '1:', 'try', 0, 'at', now)
    redis.call('PEXPIRE', job_key(id), ARGV[6])
    wait_in('1:', id, 'RPUSH')
  end
end

local claimed = {}
local function take(lane)
  local id = redis.call('LPOP', lane_key(lane))
  if redis.call('EXISTS', lane_key(lane)) == 1 then
    redis.call('ZADD', turns_key(lane), turn(), lane)
  else
    redis.call('ZREM', turns_key(lane), lane)
  end
  if not id then return 0 end
  local waited = now - tonumber(redis.call('ZSCORE', waiting_key(lane), id) or now)
  redis.call('ZREM', waiting_key(lane), id)
  local job = redis.call('HGET', job_key(id), 'job')
  if not job and foreign ~= '' then job = redis.call('GET', foreign .. id) end
  if not job then
    redis.call('DEL', job_key(id), payload_key(id))
    return 0
  end
  local try = redis.call('HINCRBY', job_key(id), 'try', 1)
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), id)
  redis.call('HSET', KEYS[3], id, ARGV[3] .. ':' .. try)
  claimed[#claimed + 1] = {id, job, try, redis.call('GET', payload_key(id)), lane:sub(3), waited}
  return 1
end

local others, passed = 0, 0
for class = 0, 2 do
  local turns, skipped = q .. ':turns:' .. class, {}
  while #claimed < limit do
    -- those skipped keep their place until the end, so they are all that stands before the next
    local lane = redis.call('ZRANGE', turns, #skipped, #skipped)[1]
    if not lane then break end
    local tenant = lane:sub(3)
    local slots = free[tenant] or tonumber(ARGV[5])
    if slots > 0 then
      free[tenant] = slots - take(lane)
    else
      skipped[#skipped + 1] = lane
    end
  end
  for _, lane in ipairs(skipped) do redis.call('ZADD', turns, turn(), lane) end
  passed = passed + #skipped
  others = others + redis.call('ZCARD', turns) - #skipped
end
if others > 0 then ring(KEYS[4]) elseif passed > 0 then ring(KEYS[5]) end
claims(#claimed)
return {claimed, passed > 0 and 1 or 0}
"""
)

# KEYS: queue, leases, owners. ARGV: lease (us), worker, then jobs and their tries. Renews what
# the caller still owns; returns what it has lost, as <id>:<try>.
RENEW = (
    _NOW
    + """
local lost = {}
for i = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[3], ARGV[i]) == ARGV[2] .. ':' .. ARGV[i + 1] then
    redis.call('ZADD', KEYS[2], 'XX', now + tonumber(ARGV[1]), ARGV[i])
  else
    lost[#lost + 1] = ARGV[i] .. ':' .. ARGV[i + 1]
  end
end
return lost
"""
)

DONE, DONE_KEEP = -1, -2

# KEYS: queue, leases, owners, bell. ARGV: worker, prefix of arq's jobs or '', how long such a
# job is kept if it is (ms), then jobs, their tries and their waits (ms). Ends what the caller
# still owns: wait -1 deletes all of a job; -2 too, but keeps arq's, so that it is not enqueued
# again; 0 puts it to the front of its lane; more is when it is due again.
FINISH = (
    _NOW
    + _WAIT
    + """
local ended, foreign = 0, ARGV[2]
local function finish(id, wait)
  local lane = redis.call('HGET', job_key(id), 'lane')
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
  if wait < 0 or not lane then
    redis.call('DEL', job_key(id), payload_key(id))
    if foreign == '' then return end
    if wait == -2 then
      redis.call('PEXPIRE', foreign .. id, ARGV[3])
    else
      redis.call('DEL', foreign .. id)
    end
  elseif wait == 0 then
    wait_in(lane, id, 'LPUSH')
    ring(KEYS[4])
  else
    redis.call('ZADD', q, now / 1000 + wait, id)
  end
end
for i = 4, #ARGV, 3 do
  if redis.call('HGET', KEYS[3], ARGV[i]) == ARGV[1] .. ':' .. ARGV[i + 1] then
    finish(ARGV[i], tonumber(ARGV[i + 2]))
    ended = ended + 1
  end
end
return ended
"""
)


class QueueKeys:
    """The names of a queue's keys; see above for what each holds."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.lease = f"{queue}:lease"
        self.owner = f"{queue}:owner"
        self.bell = f"{queue}:bell"
        self.passed = f"{queue}:passed"
        self.claims = f"{queue}:claims"

    def job(self, job_id: str) -> str:
        return f"{self.queue}:job:{job_id}"

    def payload(self, job_id: str) -> str:
        return f"{self.queue}:payload:{job_id}"

    def lane(self, lane: str) -> str:
        return f"{self.queue}:lane:{lane}"

    def waiting(self, priority: int) -> str:
        return f"{self.queue}:waiting:{int(priority)}"

    def turns(self, priority: int) -> str:
        return f"{self.queue}:turns:{int(priority)}"
