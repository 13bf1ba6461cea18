-- Give a worker the next jobs until they hold `limit` images; only the last may go beyond it.
-- The same nonce gets the same reply, so that a reply that was lost strands nothing.
-- ARGV: worker, nonce, limit, is_idle
-- Returns what it reaped, ids and states by turns, and then for each claimed job
-- {id, token, payload, waited µs, solo, attempts, owner, deadline µs}.

even_when_full()
local worker, nonce, limit, is_idle = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
local last = claim_key(worker)

local function reply_of(id, token)
  local job = redis.call('HMGET', job_key(id), 'token', 'payload', 'created', 'started', 'attempts',
    'owner', 'deadline', 'state', 'crashes')
  if job[1] ~= token or job[8] ~= 'running' then return nil end
  local waited = (tonumber(job[4]) or now) - (tonumber(job[3]) or now)
  local solo = (tonumber(job[9]) or 0) >= policy.solo_from and '1' or '0'
  return {id, token, job[2] or '', n(waited), solo, job[5] or '1', job[6] or '', job[7] or '0'}
end

local known = redis.call('HMGET', last, 'nonce', 'reply')
if known[1] == nonce then
  local replies = {by_itself}
  for _, pair in ipairs(cjson.decode(known[2])) do
    local again = reply_of(pair[1], pair[2])
    if again then replies[#replies + 1] = again end
  end
  return replies
end

reap(20)
local replies, pairs_given, taken = {by_itself}, {}, 0

local function take(id)
  local key, token = job_key(id), nonce .. ':' .. n(#replies)
  local job = redis.call('HMGET', key, 'state', 'images', 'deadline')
  if job[1] ~= 'queued' then  -- a stray entry: nothing that can run
    redis.call('ZREM', READY, id)
    redis.call('ZREM', SOLO, id)
  elseif now >= (tonumber(job[3]) or 0) then
    expire(id)
  else
    leave_queue(id)
    redis.call('HSET', key, 'state', 'running', 'token', token, 'worker', worker, 'started', n(now))
    redis.call('HINCRBY', key, 'attempts', 1)
    redis.call('ZADD', LEASE, n(now + policy.lease_us), id)
    count('running', id, 1)
    touch(id)
    taken = taken + (tonumber(job[2]) or 1)
    replies[#replies + 1] = reply_of(id, token)
    pairs_given[#pairs_given + 1] = {id, token}
    return true
  end
  return false
end

-- A job that may have killed workers runs alone. One worker at a time takes such jobs: it claims
-- nothing else until its slots are free, so that they are not starved by busy workers.
local function take_solo()
  local holder = redis.call('HMGET', META, 'solo_worker', 'solo_until')
  local is_free = not holder[1] or now >= (tonumber(holder[2]) or 0)
  if redis.call('HGET', META, 'solo_job') and not is_free then return holder[1] == worker end
  if redis.call('ZCARD', SOLO) == 0 then return false end
  if not (is_free or holder[1] == worker) then return false end
  redis.call('HSET', META, 'solo_worker', worker, 'solo_until', n(now + policy.lease_us))
  while is_idle and redis.call('ZCARD', SOLO) > 0 do
    local id = redis.call('ZRANGE', SOLO, 0, 0)[1]
    if take(id) then
      redis.call('HSET', META, 'solo_job', id)
      return true
    end
  end
  if is_idle then redis.call('HDEL', META, 'solo_worker', 'solo_until') end
  return not is_idle
end

if limit > 0 and not take_solo() then
  while taken < limit do
    local id = redis.call('ZRANGE', READY, 0, 0)[1]
    if not id then break end
    take(id)
  end
end
if redis.call('ZCARD', READY) > 0 then ring() end
if #pairs_given > 0 then
  redis.call('HSET', last, 'nonce', nonce, 'reply', cjson.encode(pairs_given))
  redis.call('PEXPIRE', last, n(policy.claim_ttl_ms))
end
return replies
