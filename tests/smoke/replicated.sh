#!/usr/bin/env bash
# Three nodes that keep one shard together: every node answers, and goes on when one of them is killed and when it comes back.
. "$(dirname "$0")/lib.sh"

readonly KEYS=12
readonly RECOVERS_WITHIN_S=10

nodes=()
while ((${#nodes[@]} < 3)); do nodes+=("$(free_port_beside "${nodes[@]}")"); done
view=$(IFS=, && echo "${nodes[*]}")
for index in 0 1 2; do start_node "node$((index + 1))" "${nodes[index]}" VIEW="$view" REPL_FACTOR=3; done
wait_ready "${nodes[@]}"

for node in "${nodes[@]}"; do
  key_rows "$node" /kv-store/keys/
  key_bytes "$node"
done

for ((n = 0; n < KEYS; n++)); do
  request PUT "${nodes[n % 3]}" "/kv-store/keys/replicated-$n" "{\"value\":$n}"
  expect 201 '{"message":"Added successfully","replaced":false}'
done

# All keys through these nodes.
read_all() {
  local node n
  for node in "$@"; do
    for ((n = 0; n < KEYS; n++)); do
      request GET "$node" "/kv-store/keys/replicated-$n"
      expect 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":$n}"
    done
  done
}
read_all "${nodes[@]}"

request GET "${nodes[1]}" '/kv-store/keys/replicated-3?consistency=stale'
expect 200 '{"doesExist":true,"message":"Retrieved successfully","value":3}'

kill_node node1
read_all "${nodes[1]}" "${nodes[2]}"
request PUT "${nodes[2]}" /kv-store/keys/replicated-0 '{"value":0}'
expect 200 '{"message":"Updated successfully","replaced":true}'

start_node node1 "${nodes[0]}" VIEW="$view" REPL_FACTOR=3
wait_ready "${nodes[0]}"
read_all "${nodes[0]}"
all_agree() {
  request GET "${nodes[0]}" /kv-store/audit
  [[ $status == 200 && $body == *'"ok":true'* ]]
}
expect_that "all replicas agree" wait_until "$RECOVERS_WITHIN_S" all_agree

finish
