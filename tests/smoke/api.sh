#!/usr/bin/env bash
# The lines with curl of docs/API.md, as they stand there and in their order: those at port 13800 at one node, those at 13801
# and up at a cluster of three, with a fourth node that waits for a view. Each has to be answered as the document says: with the
# status that stands first, with the one behind "again" when it is run once more, with the headers that are shown behind "with",
# and with the JSON that is shown behind a colon, in which ".." stands for anything.
. "$(dirname "$0")/lib.sh"

readonly DOCUMENT=$REPOSITORY/docs/API.md
# Streams do not end by themselves.
readonly WATCHING_S=2

node=127.0.0.1:$(free_port)
members=()
while ((${#members[@]} < 4)); do members+=("$(free_port_beside "$node" "${members[@]}")"); done
view=$(IFS=, && echo "${members[*]:0:3}")
start_node single "$node"
for index in 0 1 2; do start_node "member$index" "${members[index]}" VIEW="$view"; done
start_node member3 "${members[3]}" VIEW="$view"
wait_ready "$node" "${members[@]:0:3}"
wait_alive "${members[3]}"

# Ports of the document for those of the nodes that were started here, and back.
to_nodes() {
  sed -e "s/localhost:13800/$node/g" -e "s/127\.0\.0\.1:13801/${members[0]}/g" -e "s/127\.0\.0\.1:13802/${members[1]}/g" \
    -e "s/127\.0\.0\.1:13803/${members[2]}/g" -e "s/127\.0\.0\.1:13804/${members[3]}/g"
}

# What stands in the document, a line of three fields each: its number, the command, and the answer. A table's head may set a variable.
rows() {
  awk -v OFS='\t' '
    function emit(number, command, answer) { print number, command, answer }
    /^```sh$/ { in_shell = 1; next }
    /^```/ { in_shell = 0 }
    in_shell {
      line = line $0
      if (sub(/\\$/, "", line)) next
      answer = ""
      if (match(line, / +# /)) { answer = substr(line, RSTART + RLENGTH); line = substr(line, 1, RSTART - 1) }
      if (line ~ /^curl/) emit(NR, line, answer)
      line = ""
      next
    }
    /^\| curl/ {
      in_table = 1
      if (match($0, /`[A-Z]=[^`]*`/)) emit(NR, substr($0, RSTART + 1, RLENGTH - 2), "")
      next
    }
    in_table && /^\| `/ {
      text = $0
      gsub(/\\\|/, "\001", text)
      split(text, cells, / \| /)
      command = cells[1]
      sub(/^\| `/, "", command)
      sub(/`$/, "", command)
      answer = cells[2]
      sub(/ \|$/, "", answer)
      gsub(/\001/, "|", command)
      gsub(/\001/, "|", answer)
      emit(NR, command, answer)
      next
    }
    !/^\|/ { in_table = 0 }
  ' "$DOCUMENT"
}

# curl as the lines call it: the status, the headers and the body are kept.
curl() {
  local more=()
  if [[ "$*" == */v1/watch* ]]; then more=(--max-time "$WATCHING_S"); fi
  command curl --noproxy '*' --path-as-is "${more[@]}" --write-out '%{stderr}%{http_code}\n' "$@" 2>"$scratch/statuses"
}

# as_pattern JSON: an extended regular expression in which ".." is anything.
as_pattern() {
  sed -e 's/[][\\.^$*+?(){}|]/\\&/g' -e 's/\\\.\\\./.*/g' <<<"$1"
}

# run NUMBER COMMAND: in this shell, since later lines use what it sets.
run() {
  asked="line $1: $2"
  set +eu
  eval "$2" >"$scratch/output" 2>"$scratch/errors"
  set -eu
  status=$(tail -n 1 "$scratch/statuses" 2>/dev/null || true)
  body=$(tr -d '\r\0' <"$scratch/output")
  rm -f "$scratch/statuses"
}

# is_answered ANSWER: what the document shows beside the status.
is_answered() {
  local shown=$1 header json
  while [[ $shown =~ with\ \`([A-Z][A-Za-z-]*:\ [^\`]*)\` ]]; do
    header=${BASH_REMATCH[1]}
    shown=${shown/"with \`$header\`"/}
    checks=$((checks + 1))
    grep -qiE "^$(as_pattern "$header")$" <<<"$body" || fail "the header $header"
  done
  if [[ $shown =~ :\ \`(\{[^\`]*\})\` ]]; then
    json=$(to_nodes <<<"${BASH_REMATCH[1]}")
    checks=$((checks + 1))
    grep -qE "^$(as_pattern "$json")$" <<<"$body" || fail "$json"
  fi
}

lines=0
cd "$scratch"
while IFS=$'\t' read -r number command answer; do
  command=$(to_nodes <<<"$command")
  run "$number" "$command"
  # What only sets a variable has no answer.
  if [[ $command =~ ^[A-Z]+= ]]; then continue; fi
  lines=$((lines + 1))
  if [[ ! $answer =~ [2-5][0-9][0-9] ]]; then
    fail "the document to say how it is answered"
    continue
  fi
  first=${BASH_REMATCH[0]}
  # Where it depends on how things stand, the document names each status.
  allowed=$first
  if [[ $answer == *" where "* || $answer == *" while "* ]]; then allowed=$(grep -oE '\b[2-5][0-9][0-9]\b' <<<"$answer" | tr '\n' ' '); fi
  checks=$((checks + 1))
  [[ " $allowed " == *" $status "* ]] || fail "$allowed"
  if [ "$status" = "$first" ]; then is_answered "$answer"; fi
  if [[ $answer =~ again[^:]*:\ ([2-5][0-9][0-9]) ]]; then
    again=${BASH_REMATCH[1]}
    run "$number" "$command"
    asked+=" again"
    checks=$((checks + 1))
    [ "$status" = "$again" ] || fail "$again"
  fi
done < <(rows)
about "docs/API.md"
expect_that "many lines (there were $lines)" [ "$lines" -ge 80 ]
finish
