-- An ended job has been answered: keep it only as long as a repeated request may ask for it.
-- ARGV: id

even_when_full()
local id = ARGV[4]
local state = redis.call('HGET', job_key(id), 'state')
if state and state ~= 'queued' and state ~= 'running' and state ~= 'dead' then
  local kept_until = tonumber(redis.call('ZSCORE', KEPT, id))
  if not kept_until or kept_until > now + policy.answered_ttl_ms * 1000 then
    keep(id, policy.answered_ttl_ms)
  end
  for _, key in ipairs({result_key(id), partials_key(id)}) do
    if redis.call('PTTL', key) > policy.answered_ttl_ms then
      redis.call('PEXPIRE', key, n(policy.answered_ttl_ms))
    end
  end
end
return redis.status_reply('OK')
