-- A worker could not make the job: again later, if that may help, else failed for good.
-- ARGV: id, token, error, and `never` or `again` if the job may have another attempt, `elsewhere` if
-- only another worker can make it: that was no attempt. Returns retried, failed, duplicate or stale.

even_when_full()
local id, token, error, what_helps = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local key = job_key(id)
local job = redis.call('HMGET', key, 'state', 'token', 'attempts', 'failed_token')
if job[4] == token then return 'duplicate' end
if job[1] ~= 'running' or job[2] ~= token then return 'stale' end
local attempts = tonumber(job[3]) or 0
redis.call('HSET', key, 'failed_token', token, 'retryable', what_helps == 'never' and '0' or '1')
if what_helps == 'elsewhere' then redis.call('HINCRBY', key, 'attempts', -1) end
if what_helps == 'elsewhere' or what_helps == 'again' and attempts < policy.max_attempts then
  leave_running(id)
  redis.call('HSET', key, 'state', 'queued', 'token', '', 'worker', '', 'error', error,
    'share', '0', 'started', '')
  local wait = math.min(policy.backoff_us * 2 ^ (attempts - 1), policy.max_backoff_us)
  redis.call('ZADD', DELAYED, n(now + wait), id)
  count('queued', id, 1)
  touch(id)
  return 'retried'
end
finish(id, 'failed', error)
return 'failed'
