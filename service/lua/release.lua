-- A worker that stops hands jobs back as though it had never claimed them.
-- ARGV: worker, then id and token of each

even_when_full()
for i = 5, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local job = redis.call('HMGET', job_key(id), 'state', 'token')
  if job[1] == 'running' and job[2] == token then
    redis.call('HINCRBY', job_key(id), 'attempts', -1)
    requeue(id)
  end
end
return redis.status_reply('OK')
