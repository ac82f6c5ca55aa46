"""Orders about jobs that wait, or that somebody may have: that they shall stop, or not be begun.

Scripts of the queue, in the same keys as those of lanes.py.
"""

from shared.lanes import NOW, WAIT, WHEN_FULL

# KEYS: queue. ARGV: id. Notes at a job, if there is one, that it shall stop.
STOP = (
    WHEN_FULL
    + NOW
    + """
if redis.call('EXISTS', job_key(ARGV[1])) == 0 then return 0 end
redis.call('HSETNX', job_key(ARGV[1]), 'stop', 1)
return 1
"""
)

# KEYS: queue. ARGV: ids of interactive jobs that have waited too long to be begun. Those that
# nobody works on will not be: whoever claims one has only to close it, after all other work.
# Returns for each: NOT_STARTED; LOST, its worker was lost before; BEGUN; GONE, there is no job.
GIVE_UP = (
    WHEN_FULL
    + NOW
    + WAIT
    + """
local function give_up(id)
  local job = redis.call('HMGET', job_key(id), 'lane', 'owner', 'try')
  local lane, held = job[1], job[2] and job[2] ~= ''
  if not lane then return 'GONE' end
  if held and tonumber(redis.call('ZSCORE', q .. ':lease', id) or 0) > now then return 'BEGUN' end
  redis.call('HSETNX', job_key(id), 'stop', 'late')
  if redis.call('LREM', lane_key(lane), 1, id) == 1 then
    if redis.call('EXISTS', lane_key(lane)) == 0 then redis.call('ZREM', q .. ':turns', lane) end
    lane = '2' .. lane:sub(2)
    redis.call('HSET', job_key(id), 'lane', lane)
    wait_in(lane, id, 'RPUSH')
  end
  return tonumber(job[3]) == 0 and 'NOT_STARTED' or 'LOST'
end
local said = {}
for i, id in ipairs(ARGV) do said[i] = give_up(id) end
return said
"""
)
