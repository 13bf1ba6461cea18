-- An ended job has been answered: keep it only as long as a repeated request may ask for it.
-- ARGV: id

local id = ARGV[4]
local state = redis.call('HGET', job_key(id), 'state')
if state and state ~= 'queued' and state ~= 'running' and state ~= 'dead' then
  for _, key in ipairs({job_key(id), P .. 'r:' .. id, P .. 'p:' .. id}) do
    if redis.call('PTTL', key) > policy.answered_ttl_ms then
      redis.call('PEXPIRE', key, n(policy.answered_ttl_ms))
    end
  end
end
return redis.status_reply('OK')
