-- What every script begins with: the keys, the clock, and the few ways in which a job moves. Keys
-- are spelt here and in queue_keys.py, which describes them, and nowhere else.
--
-- KEYS[1] is the queue's `meta` hash, which routes the script to the queue's slot; ARGV[1] is the
-- prefix of all keys, ARGV[2] the time in µs ('' asks the server, which is what runs), ARGV[3] the
-- policy as JSON. Numbers become text by `n`: Lua's own %.14g would round a time in µs.

local P, policy = ARGV[1], cjson.decode(ARGV[3])
local META, READY, SOLO, DELAYED = P .. 'meta', P .. 'ready', P .. 'solo', P .. 'delayed'
local LEASE, DEAD, DEADLINES, BELL = P .. 'lease', P .. 'dead', P .. 'deadlines', P .. 'bell'
local KEPT, CONTROL = P .. 'kept', P .. 'ctl'

local function n(x) return string.format('%.0f', x) end

local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

local function job_key(id) return P .. 'j:' .. id end
local function staged_key(id, token) return P .. 's:' .. id .. ':' .. token end
local function result_key(id) return P .. 'r:' .. id end
local function partials_key(id) return P .. 'p:' .. id end
local function owner_key(owner) return P .. 't:' .. owner end
local function list_key(owner) return P .. 'o:' .. owner end
local function idempotency_key(owner, hash) return P .. 'idem:' .. owner .. ':' .. hash end
local function claim_key(worker) return P .. 'w:' .. worker end
local function events_key(api) return P .. 'ev:' .. api end

-- Also on a server that is full: Redis refuses a script only at its first write, and only if that
-- write could need memory. What ends or moves jobs must go on, so it begins with one that cannot.
local function even_when_full() redis.call('DEL', P .. 'nothing') end

local function bump(field, by) redis.call('HINCRBY', META, field, n(by)) end

-- Wake one idle worker. The list is short and only a hint: workers look again each second.
local function ring()
  redis.call('LPUSH', BELL, '1')
  redis.call('LTRIM', BELL, 0, 63)
  redis.call('PEXPIRE', BELL, 60000)
end

-- Note that something about a job has changed that its client may want to see.
local function touch(id) redis.call('HINCRBY', job_key(id), 'version', 1) end

-- Tell the API that admitted the job, and those that follow it, what has become of it.
local function announce(id, state)
  local known = redis.call('HMGET', job_key(id), 'api', 'others')
  for api in string.gmatch((known[1] or '') .. ' ' .. (known[2] or ''), '%S+') do
    redis.call('PUBLISH', events_key(api), id .. ' ' .. state)
  end
end

-- Let another API hear of the job as well. Only a hint: beyond some the oldest look each second.
local function tell_also(id, api)
  local known = redis.call('HMGET', job_key(id), 'api', 'others')
  local others = known[2] and ' ' .. known[2] or ''
  if not known[1] or known[1] == api or string.find(others .. ' ', ' ' .. api .. ' ', 1, true) then
    return
  end
  redis.call('HSET', job_key(id), 'others', string.sub(api .. others, 1, 512))
end

-- Count a job in (+1) or out (-1) of what waits or what runs.
local function count(where, id, sign)
  local size = redis.call('HMGET', job_key(id), 'cost', 'images')
  bump(where .. '_cost', sign * (tonumber(size[1]) or 0))
  bump(where .. '_images', sign * (tonumber(size[2]) or 0))
end

-- Show the job among its owner's, the newest of which are listed.
local function list(id, owner, created_at)
  local key = list_key(owner)
  redis.call('ZADD', key, created_at, id)
  redis.call('ZREMRANGEBYRANK', key, 0, -policy.max_listed - 1)
  redis.call('PEXPIRE', key, n(policy.dead_ttl_ms))
end

-- Know of an ended job for so long and no longer. Its key has a time to live as well, a minute more,
-- for when nobody is there to drop it.
local function keep(id, ttl_ms)
  redis.call('ZADD', KEPT, n(now + ttl_ms * 1000), id)
  redis.call('PEXPIRE', job_key(id), n(ttl_ms + 60000))
end

-- Drop the records of ended jobs that are late, and those next to it beyond the bound.
local function drop_records(limit)
  local num_beyond = redis.call('ZCARD', KEPT) - policy.max_records
  local ids = redis.call('ZRANGEBYSCORE', KEPT, '-inf', n(now), 'LIMIT', 0, limit)
  if num_beyond > #ids then ids = redis.call('ZRANGE', KEPT, 0, math.min(num_beyond, limit) - 1) end
  for _, id in ipairs(ids) do
    redis.call('ZREM', list_key(redis.call('HGET', job_key(id), 'owner') or ''), id)
    redis.call('DEL', job_key(id), result_key(id), partials_key(id))
    redis.call('ZREM', KEPT, id)
  end
end

local function enter_queue(id, set, score)
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call('ZADD', set, n(score), id)
  count('queued', id, 1)
  ring()
end

local function leave_queue(id)
  local removed = redis.call('ZREM', READY, id) + redis.call('ZREM', SOLO, id)
  removed = removed + redis.call('ZREM', DELAYED, id)
  if removed > 0 then count('queued', id, -1) end
end

-- The right to run jobs alone belongs to one worker at a time; it ends with the job.
local function leave_solo(id)
  if redis.call('HGET', META, 'solo_job') == id then
    redis.call('HDEL', META, 'solo_job', 'solo_worker', 'solo_until')
    if redis.call('ZCARD', SOLO) > 0 then ring() end
  end
end

local function leave_running(id)
  if redis.call('ZREM', LEASE, id) > 0 then count('running', id, -1) end
  leave_solo(id)
end

-- Enter a terminal state: the only way into one, and `state` must not be terminal before.
local function finish(id, state, error, ttl_ms)
  local key = job_key(id)
  leave_queue(id)
  leave_running(id)
  redis.call('ZREM', DEADLINES, id)
  redis.call('SREM', owner_key(redis.call('HGET', key, 'owner') or ''), id)
  redis.call('HSET', key, 'state', state, 'ended', n(now), 'error', error or '')
  bump('ended:' .. state, 1)
  touch(id)
  keep(id, ttl_ms or policy.record_ttl_ms)
  announce(id, state)
end

-- End a job that nobody wants any more or whose time is up; a worker that holds it is told.
local function stop(id, state, target)
  finish(id, target)
  if state == 'running' then redis.call('PUBLISH', CONTROL, id) end
end

-- What nobody asked for in so many words, for whoever runs the script to log: id, state by turns.
local by_itself = {}

local function note(id, state)
  by_itself[#by_itself + 1] = id
  by_itself[#by_itself + 1] = state
end

local function expire(id)
  local state = redis.call('HGET', job_key(id), 'state')
  if state == 'queued' or state == 'running' then
    stop(id, state, 'expired')
    note(id, 'expired')
  else
    redis.call('ZREM', DEADLINES, id)
  end
end

-- Where a job waits to be claimed, and at which score: the place that it came to at first. Of
-- suspects those with fewer crashes go first: the innocent do not wait until the guilty are dead.
local function place_of(id)
  local known = redis.call('HMGET', job_key(id), 'score', 'crashes')
  local score, crashes = tonumber(known[1]) or now, tonumber(known[2]) or 0
  if crashes < policy.solo_from then return READY, score end
  return SOLO, score + crashes * 1e12
end

-- Back to the queue from a worker.
local function requeue(id)
  leave_running(id)
  redis.call('HSET', job_key(id), 'token', '', 'worker', '', 'share', '0', 'started', '')
  local set, score = place_of(id)
  enter_queue(id, set, score)
  touch(id)
end

-- The worker that ran the job is lost. That was no attempt of the job's; it may have been its doing.
local function lose(id)
  local key = job_key(id)
  if redis.call('HGET', key, 'state') ~= 'running' then
    redis.call('ZREM', LEASE, id)
    return
  end
  local crashes = redis.call('HINCRBY', key, 'crashes', 1)
  redis.call('HINCRBY', key, 'attempts', -1)
  bump('redelivered', 1)
  if crashes >= policy.max_crashes then
    redis.call('ZADD', DEAD, n(now), id)
    finish(id, 'dead', 'every worker that ran it was lost', policy.dead_ttl_ms)
    note(id, 'dead')
  else
    requeue(id)
    note(id, 'queued')
  end
end

-- What time alone changes: late jobs expire, delayed ones return, expired leases are taken back.
-- When nobody has reaped for two intervals there was an outage, in which nobody could renew
-- either: then no lease is taken back for one lease.
local function reap(limit)
  local last = tonumber(redis.call('HGET', META, 'reaped')) or 0
  if now - last > 2 * policy.reap_us then
    redis.call('HSET', META, 'grace_until', n(now + policy.lease_us))
  end
  redis.call('HSET', META, 'reaped', n(math.max(now, last)))
  local function due(set) return redis.call('ZRANGEBYSCORE', set, '-inf', n(now), 'LIMIT', 0, limit) end
  for _, id in ipairs(due(DEADLINES)) do expire(id) end
  for _, id in ipairs(due(DELAYED)) do
    redis.call('ZREM', DELAYED, id)
    local set, score = place_of(id)
    redis.call('ZADD', set, n(score), id)
    ring()
  end
  if now < (tonumber(redis.call('HGET', META, 'grace_until')) or 0) then return end
  for _, id in ipairs(due(LEASE)) do lose(id) end
end
