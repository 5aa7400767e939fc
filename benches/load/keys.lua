-- Requests for random ones of the keys that were put in before. Arguments: method, number of keys, path before the
-- key, body (for PUT). wrk keeps --connections open and sends each one's next request when the last is answered.

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("seed", threads)
end

function init(args)
  math.randomseed(seed)
  local headers = {}
  if args[4] then headers["Content-Type"] = "application/json" end
  prepared = {}
  for index = 1, tonumber(args[2]) do
    prepared[index] = wrk.format(args[1], args[3] .. string.format("%016d", index - 1), headers, args[4])
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
