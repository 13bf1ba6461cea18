-- Renew a worker's leases. Returns the ids that it has lost: ended, late, or another's by now.
-- ARGV: worker, then id and token of each job that the engine really holds

even_when_full()
local worker, lost = ARGV[4], {}
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
  end
end
-- Whoever runs a job alone, or empties its slots for one, has its turn as long as it lives: were
-- a slow worker's turn lost to another, and then to the next, such a job might wait for ever.
local turn = redis.call('HMGET', META, 'solo_worker', 'solo_until', 'solo_job')
local has_turn = turn[1] == worker and (tonumber(turn[2]) or 0) > now
if has_turn and (turn[3] or redis.call('ZCARD', SOLO) > 0) and #lost < (#ARGV - 4) / 2 then
  redis.call('HSET', META, 'solo_until', n(now + policy.lease_us))
end
return lost
