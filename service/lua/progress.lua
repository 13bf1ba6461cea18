-- Note how far running jobs are. ARGV: then id, token, share and time left of each

for i = 4, #ARGV, 4 do
  local id = ARGV[i]
  local job = redis.call('HMGET', job_key(id), 'state', 'token')
  if job[1] == 'running' and job[2] == ARGV[i + 1] then
    redis.call('HSET', job_key(id), 'share', ARGV[i + 2], 'eta', ARGV[i + 3])
    touch(id)
  end
end
return redis.status_reply('OK')
