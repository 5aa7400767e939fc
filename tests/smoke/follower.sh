#!/usr/bin/env bash
# A main node and a follower that passes everything on to it.
#   follower.sh                 starts both on free ports; also kills the main and starts it again
#   follower.sh MAIN FOLLOWER   asks those two, as HOST:PORT each
. "$(dirname "$0")/lib.sh"

if (($# > 0)); then
  main=$1 follower=$2
else
  main=127.0.0.1:$(free_port)
  follower=127.0.0.1:$(free_port)
  start_node main "$main"
  start_node follower "$follower" FORWARDING_ADDRESS="$main"
fi
wait_ready "$main" "$follower"

for prefix in /kv-store/keys/ /kvs/keys/ /kv-store/ /kvs/; do key_rows "$follower" "$prefix"; done
key_bytes "$follower"

# One store seen through two nodes, in both directions.
key=/kv-store/keys/smoke-$$-shared
request PUT "$follower" "$key" '{"value":"by the follower"}'
expect 201 '{"message":"Added successfully","replaced":false}'
request GET "$main" "$key"
expect 200 '{"doesExist":true,"message":"Retrieved successfully","value":"by the follower"}'
request PUT "$main" "$key" '{"value":"by the main"}'
expect 200 '{"message":"Updated successfully","replaced":true}'
request GET "$follower" "$key"
expect 200 '{"doesExist":true,"message":"Retrieved successfully","value":"by the main"}'
request GET "$main" /kv-store/key-count
counted=$body
request GET "$follower" /kv-store/key-count
expect 200 "$counted"
request DELETE "$follower" "$key"
expect 200 '{"doesExist":true,"message":"Deleted successfully"}'
for path in /livez /metrics; do
  request GET "$follower" $path
  expect_that "200 of the follower itself" [ "$status" = 200 ]
done

serves_again() {
  request GET "$follower" "$key"
  [ "$status" = 404 ]
}

if [ -n "${pids[main]:-}" ]; then
  kill_node main
  for method in PUT GET DELETE; do
    request "$method" "$follower" "$key" '{"value":1}'
    expect 503 "{\"error\":\"Main instance is down\",\"message\":\"Error in $method\"}"
    expect_that "an answer within 1500 ms, not $took_ms" [ "$took_ms" -le 1500 ]
  done
  request GET "$follower" /livez
  expect_that "200: the follower itself lives" [ "$status" = 200 ]
  start_node main "$main"
  wait_ready "$main"
  expect_that "404 by the main that came back empty" wait_until 5 serves_again
fi
finish
