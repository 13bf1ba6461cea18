-- Renew a worker's leases. Returns the ids that it has lost: ended, late, or another's by now.
-- ARGV: worker, then id and token of each job that the engine really holds

even_when_full()
local lost = {}
for i = 5, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local job = redis.call('HMGET', job_key(id), 'state', 'token', 'deadline')
  if job[1] ~= 'running' or job[2] ~= token then
    lost[#lost + 1] = id
  elseif now >= (tonumber(job[3]) or 0) then
    expire(id)
    lost[#lost + 1] = id
  else
    redis.call('ZADD', LEASE, 'XX', n(now + policy.lease_us), id)
    if redis.call('HGET', META, 'solo_job') == id then
      redis.call('HSET', META, 'solo_until', n(now + policy.lease_us))
    end
  end
end
return lost
