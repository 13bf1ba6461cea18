-- Admit a job, once: a known id, or a known idempotency key with the same body, changes nothing.
-- ARGV: id, payload, cost, images, owner, lead µs, time-out µs, API, is_forced, key's hash and
-- fingerprint, created_at, the job's fingerprint, its owner's quota
-- Returns {admitted | duplicate | attached, id}, {full | quota, number} or {conflict, key | id}.
-- A duplicate is this API's own job; it attaches to another's, and to a key's.

local id, payload, cost, images = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local owner, lead, timeout, api = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]
local is_forced, hash, key_fingerprint = ARGV[12] == '1', ARGV[13], ARGV[14]
local created_at, fingerprint = ARGV[15], ARGV[16]

local idem, is_keys = idempotency_key(owner, hash), false
if hash ~= '' then
  local meant = redis.call('HMGET', idem, 'id', 'fingerprint')
  if meant[1] then
    if meant[2] ~= key_fingerprint then return {'conflict', 'key'} end
    local first = redis.call('HMGET', job_key(meant[1]), 'state', 'retryable')
    -- What failed through no fault of its own is asked for again, as its client was told to do.
    if not (first[1] == 'failed' and first[2] == '1') then
      is_keys = meant[1] ~= id
      id = meant[1]  -- if the record of its job is gone, this one takes its place
    end
  end
end
local known = redis.call('HMGET', job_key(id), 'owner', 'fingerprint', 'api')
if known[1] then
  local is_same = is_keys or known[1] == owner and (known[2] or '') == fingerprint
  if not is_same then return {'conflict', 'id'} end
  if known[3] == api and not is_keys then return {'duplicate', id} end
  tell_also(id, api)
  return {'attached', id}
end
if not is_forced then
  local queued = tonumber(redis.call('HGET', META, 'queued_cost')) or 0
  if queued + cost > policy.max_queued_cost then return {'full', n(queued)} end
  local unfinished = redis.call('SCARD', owner_key(owner))
  if unfinished >= tonumber(ARGV[17]) then return {'quota', n(unfinished)} end
end
redis.call('HSET', job_key(id), 'payload', payload, 'cost', n(cost), 'images', images, 'owner', owner,
  'api', api, 'score', n(now - lead), 'created', n(now), 'deadline', n(now + timeout),
  'attempts', '0', 'crashes', '0', 'version', '0', 'token', '', 'worker', '', 'error', '',
  'fingerprint', fingerprint)
redis.call('ZREM', KEPT, id)
list(id, owner, created_at)
redis.call('SADD', owner_key(owner), id)
redis.call('ZADD', DEADLINES, n(now + timeout), id)
if hash ~= '' then
  redis.call('HSET', idem, 'id', id, 'fingerprint', key_fingerprint)
  redis.call('PEXPIRE', idem, n(policy.idempotency_ttl_ms))
end
bump('accepted', 1)
enter_queue(id, READY, now - lead)
return {'admitted', id}
