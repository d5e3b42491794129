-- Asks all gateways to give back what they hold of a subject. KEYS: recall marker rc:{SUBJECT} (tracked).
-- ARGV: minute, channel for those who cannot track names, subject.
redis.call('SET', KEYS[1], ARGV[1], 'EX', 3600)
redis.pcall('PUBLISH', ARGV[2], 'recall ' .. ARGV[1] .. ' ' .. ARGV[3])
return 1
