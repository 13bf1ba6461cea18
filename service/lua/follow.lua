-- An API follows a job that another one admitted: it wants to hear of it too. ARGV: id, API

tell_also(ARGV[4], ARGV[5])
return redis.status_reply('OK')
