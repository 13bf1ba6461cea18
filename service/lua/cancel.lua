-- End a job that nobody wants any more, or whose time is up. Returns the state that it was in.
-- ARGV: id, cancelled | expired

even_when_full()
local id, target = ARGV[4], ARGV[5]
local state = redis.call('HGET', job_key(id), 'state')
if state == 'queued' or state == 'running' then stop(id, state, target) end
return state
