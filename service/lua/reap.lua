-- What time alone changes, done by whoever is there: workers and APIs, each second.
-- Returns ids and states, by turns, of the jobs that it moved.

even_when_full()
reap(100)
drop_records(1000)
-- Keep the newest dead letters whose jobs are still there.
redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', n(now - policy.dead_ttl_ms * 1000))
redis.call('ZREMRANGEBYRANK', DEAD, 0, -policy.max_dead - 1)
return by_itself
