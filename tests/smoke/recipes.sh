#!/usr/bin/env bash
# The recipes of docs/from-others.md, as they stand there, at one node of three that keep one shard together.
. "$(dirname "$0")/lib.sh"

readonly DOCUMENT=$REPOSITORY/docs/from-others.md

nodes=()
while ((${#nodes[@]} < 3)); do nodes+=("$(free_port_beside "${nodes[@]}")"); done
view=$(IFS=, && echo "${nodes[*]}")
for index in 0 1 2; do start_node "node$((index + 1))" "${nodes[index]}" VIEW="$view" REPL_FACTOR=3; done
wait_ready "${nodes[@]}"

awk -v folder="$scratch" '
  /^```sh$/ { number++; file = folder "/recipe" number ".sh"; next }
  /^```$/ { file = "" }
  file { print > file }
' "$DOCUMENT"

recipes=0
for recipe in "$scratch"/recipe*.sh; do
  recipes=$((recipes + 1))
  about "$(basename "$recipe")"
  expect_that "that every line of it succeeds" env NODE="${nodes[recipes % 3]}" NO_PROXY='*' bash -eu "$recipe"
done
expect_that "four recipes" [ "$recipes" = 4 ]
finish
