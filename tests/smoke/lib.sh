# What the smoke tests share: starting nodes on free ports, one request, one comparison, and an end that
# leaves nothing behind. Needs bash, curl and awk. Sourced, never run.
# shellcheck shell=bash
# The variables set here are read by the scripts that source this file.
# shellcheck disable=SC2034
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly BIN=${EVENKV_BIN:-${CARGO_TARGET_DIR:-$REPOSITORY/target}/release/evenkv}
readonly READY_WITHIN_S=20
# A node drains for at most 8 s after SIGTERM.
readonly STOP_WITHIN_S=10
readonly POLL_S=0.05
TEST_NAME=$(basename "$0" .sh)
readonly REPOSITORY TEST_NAME

scratch=$(mktemp -d)
checks=0
failures=0
# The pids of the nodes started here, by name. Only these are ever signalled.
declare -A pids=()
trap clean_up EXIT
trap 'exit 130' INT TERM

clean_up() {
  local code=$? name
  for name in "${!pids[@]}"; do kill -TERM "${pids[$name]}" 2>/dev/null || true; done
  for name in "${!pids[@]}"; do
    if ! wait_until "$STOP_WITHIN_S" has_ended "${pids[$name]}"; then
      kill -KILL "${pids[$name]}" 2>/dev/null || true
      echo "$TEST_NAME: $name did not end within $STOP_WITHIN_S s of SIGTERM" >&2
    fi
  done
  if ((code != 0)); then
    for name in "${!pids[@]}"; do
      echo "--- the end of the log of $name" >&2
      tail -n 15 "$scratch/$name.log" >&2 || true
    done
  fi
  rm -rf "$scratch"
}

# --- waiting

# wait_until SECONDS COMMAND...: fails when the command still fails at the deadline.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    if ((SECONDS >= deadline)); then return 1; fi
    sleep "$POLL_S"
  done
}

has_ended() {
  ! kill -0 "$1" 2>/dev/null
}

answers_200() {
  curl --silent --fail --noproxy '*' --max-time 2 --output /dev/null "http://$1"
}

# --- nodes

# A port that nobody listens on, below the range from which the kernel gives ports to clients.
free_port() {
  local port
  while :; do
    port=$((15000 + RANDOM % 15000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

# free_port_beside ADDRESS...: an address with a free port that is none of these, whose nodes may not listen yet.
free_port_beside() {
  local candidate
  while :; do
    candidate=127.0.0.1:$(free_port)
    case " $* " in *" $candidate "*) ;; *)
      echo "$candidate"
      return
      ;;
    esac
  done
}

# start_node NAME ADDRESS SETTING=VALUE...: settings of the caller's environment are not inherited.
start_node() {
  local name=$1 address=$2
  shift 2
  if [ ! -x "$BIN" ]; then
    echo "$TEST_NAME: $BIN is not there; 'make build' makes it" >&2
    exit 1
  fi
  env VIEW= FORWARDING_ADDRESS= REPL_FACTOR= LISTEN= MAX_KEY_LENGTH= MAX_VALUE_LENGTH= REQUEST_TIMEOUT_MS= \
    ADDRESS="$address" "$@" "$BIN" </dev/null >"$scratch/$name.log" 2>&1 &
  pids[$name]=$!
}

# wait_ready ADDRESS...: gives up at once when a node that was started here has ended.
wait_ready() {
  local address
  for address in "$@"; do
    if ! wait_until "$READY_WITHIN_S" is_ready_or_hopeless "$address" || ! answers_200 "$address/readyz"; then
      echo "$TEST_NAME: http://$address/readyz is not 200: a node ended, or $READY_WITHIN_S s were over" >&2
      exit 1
    fi
  done
}

# wait_alive ADDRESS: for a passive node, which is not ready before a view change names it.
wait_alive() {
  if ! wait_until "$READY_WITHIN_S" answers_200 "$1/livez"; then
    echo "$TEST_NAME: http://$1/livez was not 200 within $READY_WITHIN_S s" >&2
    exit 1
  fi
}

is_ready_or_hopeless() {
  local pid
  if answers_200 "$1/readyz"; then return 0; fi
  for pid in "${pids[@]}"; do
    if has_ended "$pid"; then return 0; fi
  done
  return 1
}

# kill_node NAME: the hard way; its connections are refused when this returns.
kill_node() {
  kill -KILL "${pids[$1]}"
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}

# stop_node NAME: the orderly way; it has ended when this returns.
stop_node() {
  kill -TERM "${pids[$1]}"
  if ! wait_until "$STOP_WITHIN_S" has_ended "${pids[$1]}"; then
    about "SIGTERM to $1"
    expect_that "an end within $STOP_WITHIN_S s" false
    kill -KILL "${pids[$1]}"
  fi
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}

# --- requests and comparisons

# request METHOD ADDRESS PATH [BODY]: sets asked, status, body, headers and took_ms.
request() {
  local data=() answer
  asked="$1 http://$2$3"
  if (($# > 3)); then
    data=(--data-raw "$4")
    asked+=" with $4"
  fi
  # The body goes through a file: a shell variable cannot hold every byte.
  answer=$(curl --silent --noproxy '*' --path-as-is --max-time 15 --request "$1" "${data[@]}" \
    --header 'Content-Type: application/json' --dump-header "$scratch/headers" --output "$scratch/body" \
    --write-out '%{http_code} %{time_total}' "http://$2$3" || true)
  status=${answer% *}
  took_ms=$(awk -v s="${answer#* }" 'BEGIN { printf "%d", s * 1000 }')
  headers=$(tr -d '\r' <"$scratch/headers")
  body=$(tr -d '\0' <"$scratch/body")
}

# The members of a JSON object, one a line and sorted, white space outside of strings removed: two
# flat objects are equal in structure exactly when this is equal.
members() {
  awk '
    function flush(   i) {
      if (member == "") return
      for (i = count++; i > 0 && sorted[i - 1] > member; i--) sorted[i] = sorted[i - 1]
      sorted[i] = member
      member = ""
    }
    { text = text $0 }
    END {
      for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (in_string) {
          member = member c
          if (c == "\\") member = member substr(text, ++i, 1)
          else if (c == "\"") in_string = 0
          continue
        }
        if (c ~ /[ \t\r]/) continue
        if (c == "\"") in_string = 1
        if (c == "}" || c == "]") depth--
        if (depth == 1 && c == ",") flush()
        else if (!((depth == 0) && (c == "{" || c == "}"))) member = member c
        if (c == "{" || c == "[") depth++
      }
      flush()
      for (i = 0; i < count; i++) print sorted[i]
    }'
}

# The text of a string or number member of the last body, nothing when it has none.
member() {
  sed -n "s/.*\"$1\":\"\\([^\"]*\\)\".*/\\1/p; t; s/.*\"$1\":\\([0-9][0-9]*\\).*/\\1/p" <<<"$body"
}

# The strings of a list member of the last body, a word each.
strings_of() {
  sed -n "s/.*\"$1\":\\[\\([^]]*\\)\\].*/\\1/p" <<<"$body" | tr -d '"' | tr ',' ' '
}

fail() {
  failures=$((failures + 1))
  {
    echo "$TEST_NAME: $asked"
    echo "  expected: $1"
    echo "  answered: $status $body"
  } >&2
}

# expect STATUS BODY: about the last request.
expect() {
  checks=$((checks + 1))
  if [ "$status" != "$1" ] || [ "$(members <<<"$body")" != "$(members <<<"$2")" ]; then fail "$1 $2"; fi
}

# expect_error STATUS: any text, but of the form that every error has.
expect_error() {
  checks=$((checks + 1))
  if [ "$status" != "$1" ] || [ -z "$(member error)" ] || [ "$(member message)" != "Error in ${asked%% *}" ]; then
    fail "$1 {\"error\":<some text>,\"message\":\"Error in ${asked%% *}\"}"
  fi
}

# expect_that WHAT CONDITION...: anything else that must hold after the last request.
expect_that() {
  local what=$1
  shift
  checks=$((checks + 1))
  if ! "$@"; then fail "$what"; fi
}

# about TEXT: what the next expectations speak of where it is not a single request.
about() {
  asked=$1 status='' body=''
}

# header_is NAME VALUE: header names are compared without regard to case.
header_is() {
  grep -qix "$1: *$2" <<<"$headers"
}

finish() {
  if ((failures > 0)); then
    echo "$TEST_NAME: $failures of $checks checks failed" >&2
    exit 1
  fi
  echo "$TEST_NAME: $checks checks passed"
}

# --- the rows that hold on every kind of node

long_key() {
  printf 'k%.0s' {1..1025}
}

# key_rows ADDRESS PREFIX: what the contract says of one key. PREFIX ends in a slash.
key_rows() {
  local at=$1 prefix=$2 key=smoke-$$-$RANDOM method value
  local absent='{"doesExist":false,"error":"Key does not exist","message":"Error in'
  request GET "$at" "$prefix$key"
  expect_key 404 "$absent GET\"}"
  request DELETE "$at" "$prefix$key"
  expect_key 404 "$absent DELETE\"}"
  expect_that "the header Evenkv-Outcome: not-applied" header_is Evenkv-Outcome not-applied

  request PUT "$at" "$prefix$key" '{"value":"first"}'
  expect_key 201 '{"message":"Added successfully","replaced":false}'
  request GET "$at" "$prefix$key"
  expect_key 200 '{"doesExist":true,"message":"Retrieved successfully","value":"first"}'
  for value in '"second"' 'null' 'true' '-1.50e+2' '[1,[2,{}]]' '{"a":{"b":[]},"c":"ü, \"}"}'; do
    request PUT "$at" "$prefix$key" "{\"other\":1,\"value\":$value}"
    expect_key 200 '{"message":"Updated successfully","replaced":true}'
    request GET "$at" "$prefix$key"
    expect_key 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":$value}"
  done

  for value in '' '{}' '[]' '"text"' '{"val":1}'; do
    request PUT "$at" "$prefix$key" "$value"
    expect_key 400 '{"error":"Value is missing","message":"Error in PUT"}'
    expect_that "the header Evenkv-Outcome: not-applied" header_is Evenkv-Outcome not-applied
  done
  for value in '{' '{"value":}' 'not JSON'; do
    request PUT "$at" "$prefix$key" "$value"
    expect_error 400
  done
  for method in GET PUT DELETE; do
    request "$method" "$at" "$prefix$(long_key)" '{"value":1}'
    expect_key 400 "{\"error\":\"Key is too long\",\"message\":\"Error in $method\"}"
    expect_that "the header Evenkv-Limit: 1024" header_is Evenkv-Limit 1024
  done
  request POST "$at" "$prefix$key" '{"value":1}'
  expect_error 405
  expect_that "the header Allow" grep -qi '^allow: .*PUT' <<<"$headers"

  request DELETE "$at" "$prefix$key"
  expect_key 200 '{"doesExist":true,"message":"Deleted successfully"}'
  request GET "$at" "$prefix$key"
  expect_key 404 "$absent GET\"}"
}

# As expect, for an answer about a key. A cluster redefines it: there the answer may name another node.
expect_key() {
  expect "$@"
}

# key_bytes ADDRESS: keys that a careless server would change. Two spellings of one key on each line.
key_bytes() {
  local at=$1 one other
  while read -r one other; do
    request PUT "$at" "/kv-store/keys/smoke-$$-$one" "{\"value\":\"$one\"}"
    expect_key 201 '{"message":"Added successfully","replaced":false}'
    request GET "$at" "/kvs/keys/smoke-$$-$other"
    expect_key 200 "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":\"$one\"}"
    request DELETE "$at" "/kvs/keys/smoke-$$-$other"
    expect_key 200 '{"doesExist":true,"message":"Deleted successfully"}'
  done <<'KEYS'
a/b a%2Fb
a%252Fb a%25%32Fb
a/../b a%2F..%2Fb
a//b a%2f%2Fb
a+b a%2Bb
a%20b %61%20%62
%00%ff %00%FF
%C3%BC %c3%bc
KEYS
  request PUT "$at" "/kv-store/keys/smoke-%zz" '{"value":1}'
  expect_error 400
  request PUT "$at" "/kv-store/keys/" '{"value":1}'
  expect_error 400
}
