-- Admit a job, once: a known id, or a known idempotency key with the same body, changes nothing.
-- ARGV: id, payload, cost, images, owner, lead µs, time-out µs, API, is_forced, key's hash, fingerprint
-- Returns {admitted | duplicate | attached, id} or {full | quota, number} or {conflict}.

local id, payload, cost, images = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local owner, lead, timeout, api = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]
local is_forced, hash, fingerprint = ARGV[12] == '1', ARGV[13], ARGV[14]

local idem = P .. 'idem:' .. owner .. ':' .. hash
if hash ~= '' then
  local known = redis.call('HMGET', idem, 'id', 'fingerprint')
  if known[1] then
    if known[2] ~= fingerprint then return {'conflict'} end
    if known[1] ~= id then return {'attached', known[1]} end
  end
end
if redis.call('EXISTS', job_key(id)) == 1 then return {'duplicate', id} end
if not is_forced then
  local queued = tonumber(redis.call('HGET', META, 'queued_cost')) or 0
  if queued + cost > policy.max_queued_cost then return {'full', n(queued)} end
  local unfinished = redis.call('SCARD', owner_key(owner))
  if unfinished >= policy.max_owner_jobs then return {'quota', n(unfinished)} end
end
redis.call('HSET', job_key(id), 'payload', payload, 'cost', n(cost), 'images', images, 'owner', owner,
  'api', api, 'score', n(now - lead), 'created', n(now), 'deadline', n(now + timeout),
  'attempts', '0', 'crashes', '0', 'version', '0', 'token', '', 'worker', '', 'error', '')
redis.call('SADD', owner_key(owner), id)
redis.call('ZADD', DEADLINES, n(now + timeout), id)
if hash ~= '' then
  redis.call('HSET', idem, 'id', id, 'fingerprint', fingerprint)
  redis.call('PEXPIRE', idem, n(policy.idempotency_ttl_ms))
end
bump('accepted', 1)
enter_queue(id, READY, now - lead)
return {'admitted', id}
