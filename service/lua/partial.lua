-- Show what is drawn of an image of a running job. ARGV: id, token, the encoded preview

local id, token = ARGV[4], ARGV[5]
local job = redis.call('HMGET', job_key(id), 'state', 'token', 'partial')
if job[1] == 'running' and job[2] == token and job[3] ~= ARGV[7] then
  redis.call('HSET', job_key(id), 'partial', ARGV[7])  -- its number: a script run twice adds once
  redis.call('RPUSH', partials_key(id), ARGV[6])
  redis.call('PEXPIRE', partials_key(id), n(policy.result_ttl_ms))
  touch(id)
  announce(id, 'running')
end
return redis.status_reply('OK')
