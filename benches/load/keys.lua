-- Random ones of the requests in a file, which is the argument: one a line, as method, path and body with tabs between.
-- wrk keeps --connections open and sends each one's next request when the last is answered. Each thread asks one of
-- SERVERS, an environment variable, since `setup` has no arguments: host:port,host:port.

local threads = 0

function setup(thread)
  local servers = {}
  for host, port in os.getenv("SERVERS"):gmatch("([^:,]+):(%d+)") do
    table.insert(servers, { host, port })
  end
  local server = servers[threads % #servers + 1]
  thread.addr = wrk.lookup(server[1], server[2])[1]
  threads = threads + 1
  thread:set("seed", threads)
end

function init(args)
  math.randomseed(seed)
  prepared = {}
  for line in io.lines(args[1]) do
    local method, path, body = line:match("^(%S+)\t(%S+)\t(.*)$")
    -- The end of a line within a body stands there as a byte that no text has.
    body = body:gsub("\1", "\n")
    if body == "" then
      table.insert(prepared, wrk.format(method, path, {}))
    else
      table.insert(prepared, wrk.format(method, path, { ["Content-Type"] = "application/json" }, body))
    end
  end
end

function request()
  return prepared[math.random(#prepared)]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("answered=%d microseconds=%d status_errors=%d socket_errors=%d p50=%d p99=%d\n",
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
