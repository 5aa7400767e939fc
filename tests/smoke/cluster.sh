#!/usr/bin/env bash
# A sharded cluster: every node answers for every key and names the node that holds it, and counts add up.
#   cluster.sh                  starts three nodes on free ports; also adds one, removes it, and kills another
#   cluster.sh HOST:PORT ...    asks those nodes, all of the cluster; what they call each other may differ
. "$(dirname "$0")/lib.sh"

readonly KEYS=24

nodes=("$@")
if (($# == 0)); then
  while ((${#nodes[@]} < 3)); do nodes+=("$(free_port_beside "${nodes[@]}")"); done
  view=$(IFS=, && echo "${nodes[*]}")
  for index in "${!nodes[@]}"; do start_node "node$((index + 1))" "${nodes[index]}" VIEW="$view"; done
fi
wait_ready "${nodes[@]}"

# Which shard is each node of, and whose is each address that an answer may name?
declare -A shard_of_node=() shard_of_address=()
request GET "${nodes[0]}" /kv-store/shards
ids=$(strings_of shards)
shards=$body
for node in "${nodes[@]}"; do
  request GET "$node" /kvs/shards
  expect 200 "$shards"
  request GET "$node" /kv-store/key-count
  shard_of_node[$node]=$(member shard-id)
  expect 200 "{\"message\":\"Key count retrieved successfully\",\"key-count\":$(member key-count),\"shard-id\":\"$(member shard-id)\"}"
done
for id in $ids; do
  request GET "${nodes[0]}" "/kv-store/shards/$id"
  expect_that "200 and shard $id" [ "$status $(member shard-id)" = "200 $id" ]
  for address in $(strings_of replicas); do
    shard_of_address[$address]=$id
  done
done
request GET "${nodes[0]}" /kv-store/shards/no-such-shard
expect_error 404

# The sum of all shards' counts, each asked of the given node, which need not be of that shard.
count_all() {
  local id sum=0
  for id in $ids; do
    request GET "$1" "/kv-store/shards/$id"
    sum=$((sum + $(member key-count)))
  done
  echo "$sum"
}

# The answer as the contract has it, with the one field that a cluster may add. Sets owner to the shard.
expect_key() {
  local address
  address=$(member address)
  expect "$1" "${2%\}}${address:+,\"address\":\"$address\"}}"
  if [ -z "$address" ]; then
    owner=${shard_of_node[$asked_node]}
  else
    owner=${shard_of_address[$address]:-unknown}
    expect_that "no address of the asked node's own shard, and none of a stranger" \
      [ "$owner" != unknown -a "$owner" != "${shard_of_node[$asked_node]}" ]
  fi
}

for asked_node in "${nodes[@]}"; do
  key_rows "$asked_node" /kv-store/keys/
  key_rows "$asked_node" /kvs/keys/
  key_bytes "$asked_node"
done

# Put each key through one node, read it through all of them: all must name the same owner.
before=$(count_all "${nodes[0]}")
declare -A owned=()
for ((n = 0; n < KEYS; n++)); do
  key=/kv-store/keys/smoke-$$-count-$n
  asked_node=${nodes[n % ${#nodes[@]}]}
  request PUT "$asked_node" "$key" "{\"value\":$n}"
  expect_key 201 '{"message":"Added successfully","replaced":false}'
  put_by=$owner
  owned[$owner]=$((${owned[$owner]:-0} + 1))
  for asked_node in "${nodes[@]}"; do
    request GET "$asked_node" "$key"
    expect_key 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":$n}"
    expect_that "shard $put_by as the owner, not $owner" [ "$owner" = "$put_by" ]
  done
done
about "counting after $KEYS new keys"
for node in "${nodes[@]}"; do
  sum=$(count_all "$node")
  expect_that "$((before + KEYS)) pairs in all by $node, not $sum" [ "$sum" = $((before + KEYS)) ]
done
for node in "${nodes[@]}"; do
  request GET "$node" /kv-store/key-count
  counted=$(member key-count)
  request GET "${nodes[0]}" "/kv-store/shards/${shard_of_node[$node]}"
  expect_that "$counted pairs, as $node counts itself" [ "$(member key-count)" = "$counted" ]
done
# With a hash that is fair, a shard that got none of 24 keys is a 1 in 17,000 chance for three shards.
if ((${#nodes[@]} <= 3)); then
  expect_that "keys on every shard, not only on ${!owned[*]}" [ "${#owned[@]}" = "$(wc -w <<<"$ids")" ]
fi

# The short form of the path is for a view of one node.
if ((${#nodes[@]} > 1)); then
  request GET "${nodes[0]}" /kv-store/some-key
  expect_error 404
fi

# even_counts: the shards as they are now differ by at most one pair. Sets ids.
even_counts() {
  local id least=-1 most=0 counted
  request GET "${nodes[0]}" /kv-store/shards
  ids=$(strings_of shards)
  for id in $ids; do
    request GET "${nodes[0]}" "/kv-store/shards/$id"
    counted=$(member key-count)
    if ((least < 0 || counted < least)); then least=$counted; fi
    if ((counted > most)); then most=$counted; fi
  done
  about "counting ${ids// /, } after a view change"
  expect_that "shards that differ by one pair at most, not from $least to $most" [ $((most - least)) -le 1 ]
}

# change_view NODE...: to exactly these nodes; nothing is written meanwhile.
change_view() {
  local view shards
  view=$(IFS=, && echo "$*")
  request PUT "${nodes[0]}" /kv-store/view-change "{\"view\":\"$view\"}"
  expect_that "200 and the message of a success" [ "$status $(member message)" = "200 View change successful" ]
  expect_that "the least possible number of pairs moved" [ "$(member moved)" = "$(member minimum)" ]
  expect_that "checksums that match" grep -q '"checksums-match":true' <<<"$body"
  even_counts
  shards=$(wc -w <<<"$ids")
  expect_that "$# shards, not $shards" [ "$shards" = $# ]
}

# read_all NODE: reads every key through it. Sets owned to the number of them on each shard.
read_all() {
  asked_node=$1 owned=()
  for ((n = 0; n < KEYS; n++)); do
    request GET "$asked_node" "/kv-store/keys/smoke-$$-count-$n"
    expect_key 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":$n}"
    owned[$owner]=$((${owned[$owner]:-0} + 1))
  done
}

# A fourth node and back again: even shards each time, and every key is found through every node.
if (($# == 0)); then
  fourth=$(free_port_beside "${nodes[@]}")
  start_node node4 "$fourth" VIEW="$view"
  wait_alive "$fourth"
  request GET "$fourth" /kv-store/key-count
  expect_that "a passive node without pairs" [ "$status $(member key-count)" = "200 0" ]
  change_view "${nodes[@]}" "$fourth"
  shard_of_node[$fourth]=4 shard_of_address[$fourth]=4
  for node in "${nodes[@]}" "$fourth"; do read_all "$node"; done
  expect_that "some of the $KEYS keys on the new shard" [ "${owned[4]:-0}" -gt 0 ]

  change_view "${nodes[@]}"
  shard_of_node[$fourth]=none
  unset "shard_of_address[$fourth]"
  request GET "$fourth" /kv-store/key-count
  expect_that "no pairs on a node that left" [ "$status $(member key-count)" = "200 0" ]
  for node in "$fourth" "${nodes[@]}"; do read_all "$node"; done
  stop_node node4
fi

# An owner that is gone costs its own keys, and no others.
if [ -n "${pids[node3]:-}" ]; then
  kill_node node3
  asked_node=${nodes[0]}
  for ((n = 0; n < KEYS; n++)); do
    request GET "$asked_node" "/kv-store/keys/smoke-$$-count-$n"
    if [ "$status" = 503 ]; then
      expect 503 '{"error":"Unable to satisfy request","message":"Error in GET"}'
      expect_that "the header Retry-After" grep -qi '^retry-after: [0-9]' <<<"$headers"
    else
      expect_key 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":$n}"
      owned[$owner]=$((${owned[$owner]:-0} - 1))
    fi
  done
  about "reading all keys after node 3 was killed"
  expect_that "all keys of the other two shards and only those" \
    [ "${owned[${shard_of_node[${nodes[0]}]}]:-0} ${owned[${shard_of_node[${nodes[1]}]}]:-0}" = "0 0" ]
else
  for ((n = 0; n < KEYS; n++)); do
    asked_node=${nodes[(n + 1) % ${#nodes[@]}]}
    request DELETE "$asked_node" "/kv-store/keys/smoke-$$-count-$n"
    expect_key 200 '{"doesExist":true,"message":"Deleted successfully"}'
  done
  sum=$(count_all "${nodes[0]}")
  about "counting after the deletes"
  expect_that "$before pairs as before, not $sum" [ "$sum" = "$before" ]
fi
finish
