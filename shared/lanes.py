"""How a queue lies in the store, and the scripts that move jobs about in it.

Every key begins with the queue's name, which is a hash tag, so that a queue lies in one slot
of a cluster. For a queue named `q`:

    q                  sorted set: jobs not due yet, by when they are (ms); arq's enqueue adds here
    q:job:<id>         hash: `job` in arq's format, `lane`, `try` (claims so far), `at` (accepted,
                       us), `since` (waits since, us), `owner` (<worker>:<try> while in work),
                       `stop` (there if it shall stop, whoever claims it next: `1`, its client
                       left or cancelled it; `late`, its client was told that it will not start),
                       `back` (the tries that workers which were stopped handed back), `limits`
                       (there if its key has any, see limiting.py)
    q:payload:<id>     the bytes enqueued beside the job
    q:lane:<c>:<t>     list: the waiting jobs of tenant `t` in priority class `c`, in their order
    q:waiting          sorted set: all waiting jobs, by class and since when they wait
    q:turns            sorted set: the lanes that have jobs, by class and their last turn
    q:turn             the last turn that was given: the store's clock, but never backwards
    q:lease            sorted set: jobs in work, by when their lease ends (us)
    q:claims           hash: how many jobs were claimed in this window of time and the one before
    q:served           hash: when a worker that takes jobs was last there (`seen`, us), and one that
                       is drained (`drained`)
    q:bell, q:passed   lists of one ring at most, for workers that wait

Which lanes and jobs a script touches is known only inside it, so it makes their names from the
queue's. That is sound on a cluster because all of them are in the slot of the queue's own key.

All times are the store's own. Lanes of a class take turns; a tenant that has as many jobs as it
may in one worker gives its turn away there, and then `passed` is rung, which only workers listen
to that have room for everybody.

Scores by class and time are `class * CLASS_SPAN + us`: whole numbers that a double holds.
"""

from shared.limiting import ADMIT, RELEASE

WINDOW_S = 5
DRAINED_AFTER_S = 2  # a worker is heard from every second, drained or not
# First line of a script: a store that has reached `maxmemory` runs it all the same. What gives
# out, renews and ends jobs takes next to no room; what enqueues is refused there.
WHEN_FULL = "#!lua flags=allow-oom\n"
CLASS_SPAN = 3_000_000_000_000_000  # microseconds; a class's scores do not reach the next's

NOW = f"""
local SPAN = {CLASS_SPAN}
local q = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function job_key(id) return q .. ':job:' .. id end
local function payload_key(id) return q .. ':payload:' .. id end
local function lane_key(lane) return q .. ':lane:' .. lane end
local function in_class(lane, us) return lane:sub(1, 1) * SPAN + us end
"""

# A lane is among the turns exactly while it has jobs.
WAIT = """
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, 1) end
end
local function wait_in(lane, id, push)
  redis.call('ZADD', q .. ':waiting', in_class(lane, now), id)
  if redis.call(push, lane_key(lane), id) == 1 then
    redis.call('ZADD', q .. ':turns', in_class(lane, now), lane)
  end
end
local function back_to(lane, id)
  redis.call('HSET', job_key(id), 'since', now, 'owner', '')
  wait_in(lane, id, 'LPUSH')
end
"""

# KEYS: queue. ARGV: a fresh id, what is asked of the key's limits. For what counts as a request and
# is no call: there never is a job of this id.
ADMIT_ALONE = (
    NOW
    + ADMIT
    + """
local told = admit(ARGV[1], ARGV[2], 1)
redis.call('DEL', job_key(ARGV[1]))
return told
"""
)

# KEYS: queue, bell. ARGV: id, job, payload, ttl (ms), lane, attempts, limited (0 or 1), most
# jobs, longest wait (us), most jobs in a lane, longest silence of the workers (us), how long ago
# the call was accepted (us), and what it asks of its key's limits, if the key has any; then the
# answer's last part is where the key stands.
# Only jobs of the same class and of those that go first count as waiting.
# Interactive jobs are refused where no worker has been there for so long; sooner, where one says
# that it is drained and no other has been there since. Where nobody knows, the time begins with
# the first job: a worker may be about to start.
# A lane is too old by its first job. The queue is too old when the lane whose turn comes next
# has waited too long for it, for so long would a newcomer wait: a tenant with a long queue of
# its own refuses nobody else.
ENQUEUE = (
    NOW
    + WAIT
    + ADMIT
    + f"""
local WINDOW, DRAINED = {WINDOW_S} * 1000000, {DRAINED_AFTER_S} * 1000000
local function rate()  -- claims in a thousand seconds, of late
  local window = math.floor(now / WINDOW)
  local kept = redis.call('HMGET', q .. ':claims', window, window - 1)
  local passed = (now - window * WINDOW) / WINDOW
  return (tonumber(kept[1] or 0) + tonumber(kept[2] or 0) * (1 - passed)) * 1000 / {WINDOW_S}
end
"""
    + """
local id, lane, longest = ARGV[1], ARGV[5], tonumber(ARGV[9])
local function since(key)  -- how long the first interactive one waits
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  return first and tonumber(first) < SPAN and math.max(0, now - tonumber(first)) or 0
end
-- what is claimed after this job keeps nobody from it
local after = '(' .. string.format('%.0f', (lane:sub(1, 1) + 1) * SPAN)
local depth, oldest = redis.call('ZCOUNT', q .. ':waiting', '-inf', after), 0
if depth > 0 then oldest = since(q .. ':waiting') end
local function refuse(result, in_lane)
  if redis.call('EXISTS', job_key(id)) == 1 then return {'EXISTS', depth, oldest} end
  local lanes = redis.call('ZCOUNT', q .. ':turns', '-inf', after)
  return {result, depth, oldest, in_lane, lanes, math.floor(rate())}
end
if ARGV[7] == '1' and lane:sub(1, 1) == '0' then
  local patience = tonumber(ARGV[11])
  local served = redis.call('HMGET', q .. ':served', 'seen', 'drained')
  if not served[1] then
    redis.call('HSET', q .. ':served', 'seen', now)
  else
    local silent, drained = now - served[1], served[2] and now - served[2]
    -- who is drained says so, and so it is known what the silence of the others means
    if drained and drained <= DRAINED and silent > DRAINED then return refuse('DRAINED', 0) end
    if silent > patience then return refuse('UNSERVED', 0) end
  end
end
if ARGV[7] == '1' and depth > 0 then
  local in_lane = redis.call('LLEN', lane_key(lane))
  if in_lane >= tonumber(ARGV[10]) then return refuse('TENANT_BUSY', in_lane) end
  if depth >= tonumber(ARGV[8]) or (oldest > longest and since(q .. ':turns') > longest) then
    return refuse('BUSY', in_lane)
  end
  if in_lane > 0 and oldest > longest and lane:sub(1, 1) == '0' then
    local first = redis.call('LINDEX', lane_key(lane), 0)
    if now - tonumber(redis.call('ZSCORE', q .. ':waiting', first) or now) > longest then
      return refuse('TENANT_BUSY', in_lane)
    end
  end
end
if redis.call('EXISTS', job_key(id)) == 1 then return {'EXISTS', depth, oldest} end
local standing = nil
if ARGV[13] then
  standing = admit(id, ARGV[13], ARGV[4])
  if standing[1] ~= '' then return {'KEY_LIMIT', depth, oldest, standing} end
end
redis.call('HSET', job_key(id), 'job', ARGV[2], 'lane', lane, 'try', ARGV[6],
  'at', now - ARGV[12], 'since', now)
redis.call('PEXPIRE', job_key(id), ARGV[4])
redis.call('SET', payload_key(id), ARGV[3], 'PX', ARGV[4])
wait_in(lane, id, 'RPUSH')
ring(KEYS[2])
return {'QUEUED', depth + 1, oldest, standing}
"""
)

# KEYS: queue, leases, bell, passed. ARGV: how many, lease (us), worker, prefix of jobs that arq
# itself enqueued or '', slots of a tenant, ttl (ms), then tenants and the slots left to them in
# this worker. Returns the claims, and 1 if a lane gave its turn away.
CLAIM = (
    WHEN_FULL
    + NOW
    + WAIT
    + f"local WINDOW = {WINDOW_S} * 1000000\n"
    + """
local limit, foreign, turns = tonumber(ARGV[1]), ARGV[4], q .. ':turns'
local free = {}
for i = 7, #ARGV, 2 do free[ARGV[i]] = tonumber(ARGV[i + 1]) end
redis.call('HSET', q .. ':served', 'seen', now)

-- what a dead worker had goes to the front of its lane; the oldest last, so it is first there
local lost = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZREM', KEYS[2], id)
  local job = redis.call('HMGET', job_key(id), 'lane', 'at')
  if job[1] then
    lost[#lost + 1] = {id = id, lane = job[1], at = tonumber(job[2])}
  else
    redis.call('DEL', payload_key(id))
  end
end
table.sort(lost, function(one, other) return one.at > other.at end)
for _, job in ipairs(lost) do back_to(job.lane, job.id) end

-- what is due by now: retries to the front, what arq enqueued to the end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', q, '-inf', now / 1000, 'LIMIT', 0, limit)) do
  redis.call('ZREM', q, id)
  local lane = redis.call('HGET', job_key(id), 'lane')
  if lane then
    back_to(lane, id)
  elseif foreign ~= '' and redis.call('EXISTS', foreign .. id) == 1 then
    redis.call('HSET', job_key(id), 'lane', '1:', 'try', 0, 'at', now, 'since', now)
    redis.call('PEXPIRE', job_key(id), ARGV[6])
    wait_in('1:', id, 'RPUSH')
  end
end

local last
local function give_turn(lane)
  last = math.max(now, last or tonumber(redis.call('GET', q .. ':turn') or 0)) + 1
  redis.call('ZADD', turns, in_class(lane, last), lane)
end

local claimed = {}
local function take(lane)
  local id = redis.call('LPOP', lane_key(lane))
  if redis.call('EXISTS', lane_key(lane)) == 1 then
    give_turn(lane)
  else
    redis.call('ZREM', turns, lane)
  end
  if not id then return 0 end
  redis.call('ZREM', q .. ':waiting', id)
  local kept = redis.call('HMGET', job_key(id), 'job', 'try', 'since', 'at', 'stop', 'back')
  local job = kept[1]
  if not job and foreign ~= '' then job = redis.call('GET', foreign .. id) end
  if not job or not kept[2] then
    redis.call('DEL', job_key(id), payload_key(id))
    return 0
  end
  local try = kept[2] + 1
  redis.call('HSET', job_key(id), 'try', try, 'owner', ARGV[3] .. ':' .. try)
  for _, key in ipairs({job_key(id), payload_key(id)}) do redis.call('PEXPIRE', key, ARGV[6]) end
  redis.call('ZADD', KEYS[2], now + ARGV[2], id)
  local payload = redis.call('GET', payload_key(id))
  local waited, age, stop, back = now - kept[3], now - kept[4], kept[5] or '', kept[6] or ''
  claimed[#claimed + 1] = {id, job, try, payload, lane:sub(3), waited, age, stop, back}
  return 1
end

-- those that gave their turn away keep their place until the end: the rank of the next one
local passed, lane = {}, nil
while #claimed < limit do
  lane = redis.call('ZRANGE', turns, #passed, #passed)[1]
  if not lane then break end
  local tenant = lane:sub(3)
  local slots = free[tenant] or tonumber(ARGV[5])
  if slots > 0 then
    free[tenant] = slots - take(lane)
  else
    passed[#passed + 1] = lane
  end
end
for _, each in ipairs(passed) do give_turn(each) end
if last then redis.call('SET', q .. ':turn', last) end

-- whoever can take what is left shall hear of it
if lane and redis.call('ZCARD', turns) > #passed then
  ring(KEYS[3])
elseif #passed > 0 then
  ring(KEYS[4])
end
if #claimed > 0 then
  local window, counts = math.floor(now / WINDOW), q .. ':claims'
  if redis.call('HINCRBY', counts, window, #claimed) == #claimed then
    for _, each in ipairs(redis.call('HKEYS', counts)) do
      if tonumber(each) < window - 1 then redis.call('HDEL', counts, each) end
    end
  end
end
return {claimed, #passed > 0 and 1 or 0}
"""
)

# KEYS: queue, leases. ARGV: lease (us), worker, then jobs and their tries. Renews what the
# caller still owns; returns what it has lost, as <id>:<try>.
RENEW = (
    WHEN_FULL
    + NOW
    + """
local lost = {}
for i = 3, #ARGV, 2 do
  if redis.call('HGET', job_key(ARGV[i]), 'owner') == ARGV[2] .. ':' .. ARGV[i + 1] then
    redis.call('ZADD', KEYS[2], 'XX', now + ARGV[1], ARGV[i])
  else
    lost[#lost + 1] = ARGV[i] .. ':' .. ARGV[i + 1]
  end
end
return lost
"""
)

# KEYS: queue. ARGV: `seen` or `drained`. A worker was here just now, which claims nothing because
# it is full, or drained; who claims is seen by that.
SERVE = WHEN_FULL + NOW + "redis.call('HSET', q .. ':served', ARGV[1], now)\n"

DONE, DONE_KEEP, HANDED_BACK = -1, -2, -3

# KEYS: queue, leases, bell. ARGV: worker, prefix of arq's jobs or '', how long such a job is
# kept if it is (ms), then jobs, their tries, their waits (ms) and the tokens they used (-1: not
# known). Ends what the caller still owns: wait -1 deletes all of a job; -2 too, but keeps arq's, so
# that it is not enqueued again; 0 puts it to the front of its lane; -3 too, and notes that this try
# was handed back; more is when it is due again.
FINISH = (
    WHEN_FULL
    + NOW
    + WAIT
    + RELEASE
    + """
local ended, foreign = 0, ARGV[2]
local function finish(id, lane, try, wait)
  redis.call('ZREM', KEYS[2], id)
  if wait == -3 then
    local back = redis.call('HGET', job_key(id), 'back')
    redis.call('HSET', job_key(id), 'back', (back and back .. ' ' or '') .. try)
  end
  if wait == 0 or wait == -3 then
    back_to(lane, id)
    ring(KEYS[3])
  elseif wait > 0 then
    redis.call('HSET', job_key(id), 'owner', '')
    redis.call('ZADD', q, now / 1000 + wait, id)
  else
    redis.call('DEL', job_key(id), payload_key(id))
    if foreign == '' then return end
    if wait == -2 then
      redis.call('PEXPIRE', foreign .. id, ARGV[3])
    else
      redis.call('DEL', foreign .. id)
    end
  end
end
for i = 4, #ARGV, 4 do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'owner', 'lane', 'limits')
  if job[1] == ARGV[1] .. ':' .. ARGV[i + 1] then
    local wait = tonumber(ARGV[i + 2])
    if job[3] and (wait == -1 or wait == -2) then
      settle_limits(ARGV[i], job[3], tonumber(ARGV[i + 3]))
    end
    finish(ARGV[i], job[2], ARGV[i + 1], wait)
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
        self.waiting = f"{queue}:waiting"
        self.turns = f"{queue}:turns"
        self.lease = f"{queue}:lease"
        self.claims = f"{queue}:claims"
        self.bell = f"{queue}:bell"
        self.passed = f"{queue}:passed"
        self.served = f"{queue}:served"

    def job(self, job_id: str) -> str:
        return f"{self.queue}:job:{job_id}"

    def payload(self, job_id: str) -> str:
        return f"{self.queue}:payload:{job_id}"

    def lane(self, lane: str) -> str:
        return f"{self.queue}:lane:{lane}"
