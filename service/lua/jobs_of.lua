-- The jobs of an owner, the newest first. It looks at a bounded number: the reader asks again.
-- ARGV: owner, states that are asked for (none asks for all), the score and the id of the last job
-- seen ('' at first), how many, then the fields of each
-- Returns {score, id} of the last job looked at, {} if there is none behind it; how many are ready, what
-- waits costs; and for each job its id, score and rank in ready, then the fields.

even_when_full()
local owner, states, score, last, limit = ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local key, look = list_key(owner), 5000

local first = 0
if last ~= '' then
  local is_there = redis.call('ZSCORE', key, last)
  if not is_there then redis.call('ZADD', key, score, last) end  -- gone, and yet it had a place
  first = redis.call('ZREVRANK', key, last)
  if is_there then first = first + 1 else redis.call('ZREM', key, last) end
end
local listed = redis.call('ZREVRANGE', key, first, first + look - 1, 'WITHSCORES')
local rows, seen = {}, {}
for i = 1, #listed, 2 do
  local id = listed[i]
  local state = redis.call('HGET', job_key(id), 'state')
  if not state then
    redis.call('ZREM', key, id)
  elseif states == '' or string.find(' ' .. states .. ' ', ' ' .. state .. ' ', 1, true) then
    local rank = redis.call('ZRANK', READY, id)
    rows[#rows + 1] = {id, rank, redis.call('HMGET', job_key(id), unpack(ARGV, 9))}
  end
  if #rows == limit or i == 2 * look - 1 then
    seen = {listed[i + 1], id}
    break
  end
end
return {seen, redis.call('ZCARD', READY), redis.call('HGET', META, 'queued_cost') or '0', rows}
