-- Give a dead job another life, under a new id: a terminal state is never left.
-- ARGV: dead id, new id. Returns the id of the new job; false when there is no such dead job.

local id, new = ARGV[4], ARGV[5]
local job = redis.call('HMGET', job_key(id), 'state', 'payload', 'cost', 'images', 'owner', 'score',
  'created', 'deadline', 'retried_as', 'fingerprint')
if job[9] then return job[9] end
if job[1] ~= 'dead' then return false end
local timeout = tonumber(job[8]) - tonumber(job[7])
redis.call('HSET', job_key(id), 'retried_as', new)
redis.call('ZREM', DEAD, id)
redis.call('HSET', job_key(new), 'payload', job[2], 'cost', job[3], 'images', job[4], 'owner', job[5],
  'api', '', 'score', n(now), 'created', n(now), 'deadline', n(now + timeout),
  'attempts', '0', 'crashes', '0', 'version', '0', 'token', '', 'worker', '', 'error', '',
  'retry_of', id, 'fingerprint', job[10] or '')
redis.call('SADD', owner_key(job[5]), new)
list(new, job[5], redis.call('ZSCORE', list_key(job[5]), id) or '0')
redis.call('ZADD', DEADLINES, n(now + timeout), new)
bump('accepted', 1)
enter_queue(new, READY, now)
return new
