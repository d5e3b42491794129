-- A key. ARGV: prefix, id. Answers a row, or nothing.
return read(ARGV[2])
