-- The queue at one moment: counts of sets, the counters of `meta`, and the oldest that waits.
-- Priority lets younger jobs overtake: the oldest is looked for among the first hundred.

local oldest = now
for _, id in ipairs(redis.call('ZRANGE', READY, 0, 99)) do
  oldest = math.min(oldest, tonumber(redis.call('HGET', job_key(id), 'created')) or now)
end
local waiting = redis.call('ZCARD', READY) + redis.call('ZCARD', SOLO) + redis.call('ZCARD', DELAYED)
return {
  waiting, redis.call('ZCARD', LEASE), redis.call('ZCARD', DEAD), n(now - oldest),
  redis.call('HGETALL', META),
}
