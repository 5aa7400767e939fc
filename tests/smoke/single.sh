#!/usr/bin/env bash
# One node on its own: every row of the contract about keys, under all four spellings of the path.
#   single.sh              starts a node on a free port
#   single.sh HOST:PORT    asks that node
. "$(dirname "$0")/lib.sh"

if (($# > 0)); then
  node=$1
else
  node=127.0.0.1:$(free_port)
  start_node node "$node"
fi
wait_ready "$node"

for prefix in /kv-store/keys/ /kvs/keys/ /kv-store/ /kvs/; do key_rows "$node" "$prefix"; done
key_bytes "$node"

# A body on GET is allowed, and a causal context asked for is answered.
request GET "$node" /kv-store/keys/absent '{"causal-context":""}'
expect_that "404 with a causal-context" [ "$status" = 404 ]
expect_that "404 with a causal-context" grep -q '"causal-context":{' <<<"$body"

# put_string LENGTH: puts a string of that many bytes, its quotes included, which curl sends from a file.
put_string() {
  {
    printf '{"value":"'
    head -c $(($1 - 2)) /dev/zero | tr '\0' 'x'
    printf '"}'
  } >"$scratch/large"
  about "PUT of a value of $1 bytes"
  status=$(curl --silent --noproxy '*' --max-time 15 --request PUT --data-binary @"$scratch/large" \
    --output "$scratch/body" --write-out '%{http_code}' "http://$node/kv-store/keys/smoke-$$-large" || true)
  body=$(<"$scratch/body")
}

# The limit itself is allowed, a byte more is not.
put_string 8388608
expect 201 '{"message":"Added successfully","replaced":false}'
request DELETE "$node" /kv-store/keys/smoke-$$-large
put_string 8388609
expect_error 413

request GET "$node" /kv-store/key-count
before=$(member key-count)
expect 200 "{\"message\":\"Key count retrieved successfully\",\"key-count\":$before,\"shard-id\":\"1\"}"
request PUT "$node" /kv-store/keys/smoke-$$-counted '{"value":1}'
request GET "$node" /kvs/key-count
expect 200 "{\"message\":\"Key count retrieved successfully\",\"key-count\":$((before + 1)),\"shard-id\":\"1\"}"
request DELETE "$node" /kv-store/keys/smoke-$$-counted
request GET "$node" /kv-store/shards
expect 200 '{"message":"Shard membership retrieved successfully","shards":["1"]}'
request GET "$node" /kv-store/shards/1
expect_that "200 with the count of shard 1" [ "$status $(member shard-id) $(member key-count)" = "200 1 $before" ]
request GET "$node" /kv-store/shards/2
expect_error 404
request GET "$node" /kv-store/view
expect_that "200 and an epoch" [ "$status" = 200 -a -n "$(member epoch)" ]
request GET "$node" /nowhere
expect_error 404
for path in /livez /readyz /metrics; do
  request GET "$node" $path
  expect_that 200 [ "$status" = 200 ]
done
expect_that "metrics of evenkv" grep -q '^evenkv_' <<<"$body"

if [ -n "${pids[node]:-}" ]; then
  pid=${pids[node]}
  about "SIGTERM to the node"
  kill -TERM "$pid"
  expect_that "an end within 2 s when idle" wait_until 2 has_ended "$pid"
  status=0
  wait "$pid" || status=$?
  body="(exit status)"
  expect_that "exit status 0" [ "$status" = 0 ]
fi
finish
