-- Lay a result where nobody sees it yet, unless its worker has lost the job meanwhile.
-- ARGV: id, token, the result's bytes

even_when_full()
local id, token = ARGV[4], ARGV[5]
local job = redis.call('HMGET', job_key(id), 'state', 'token')
if job[1] ~= 'running' or job[2] ~= token then return false end
redis.call('SET', staged_key(id, token), ARGV[6], 'PX', n(policy.staged_ttl_ms))
return true
