-- End a job with the result that lies staged under its token: the fence that late workers meet.
-- ARGV: id, token. Returns done, duplicate, stale, or unstaged when the staged bytes are gone.

even_when_full()
local id, token = ARGV[4], ARGV[5]
local staged = staged_key(id, token)
local job = redis.call('HMGET', job_key(id), 'state', 'token')
if job[2] ~= token or token == '' then
  redis.call('DEL', staged)
  return 'stale'
end
if job[1] == 'succeeded' then
  redis.call('DEL', staged)
  return 'duplicate'
end
if job[1] ~= 'running' then
  redis.call('DEL', staged)
  return 'stale'
end
if redis.call('EXISTS', staged) == 0 then return 'unstaged' end
redis.call('RENAME', staged, result_key(id))
redis.call('PEXPIRE', result_key(id), n(policy.result_ttl_ms))
redis.call('HSET', job_key(id), 'share', '1')
finish(id, 'succeeded')
return 'done'
