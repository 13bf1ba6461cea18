-- Let a request of an owner pass, or not: a bucket that leaks evenly, kept as when it is empty.
-- KEYS: the owner's bucket. ARGV: µs that a request adds to it, µs that it holds, µs now ('' asks).
-- Returns {1 if it may pass, else 0; µs that the bucket then holds}.

local cost, capacity, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local empty_at = tonumber(redis.call('GET', KEYS[1])) or 0
-- Never more than it holds: the limit may have been another, and clocks step back.
local held = math.min(math.max(empty_at - now, 0), capacity)
local passes = held + cost <= capacity
if passes then held = held + cost end
redis.call('SET', KEYS[1], string.format('%.0f', now + held), 'PX', math.ceil(held / 1000))
return {passes and 1 or 0, held}
