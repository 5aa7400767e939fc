# Everything a person runs here. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where cargo puts the program; `make smoke PROFILE=checked` takes the one that `make test` has built.
PROFILE ?= release
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
export EVENKV_BIN := $(abspath $(TARGET_DIR))/$(PROFILE)/evenkv

# What is given on the command line reaches the scripts as an environment variable: NODES, REPL_FACTOR and
# PORT for the local cluster, EDGE and COMPOSE ("docker compose" or "docker-compose", found by itself) for up and down.

# What the image is built of; its context has no .git to ask.
COMMIT = git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || true

SHELL_SCRIPTS = $(wildcard scripts/*) $(wildcard tests/smoke/*.sh) tests/openapi/run tests/browser/run .ci/run

.PHONY: help build run run-cluster stop-cluster add-node run-follower demo edge stop-edge \
        smoke openapi page-test test test-full mutants torture check bench dist record image up down

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## build the program into target/release/evenkv (PROFILE=checked: target/checked)
	cargo build --locked --profile $(PROFILE:debug=dev)

run: build ## one node in the foreground on port 13800; Ctrl-C ends it
	@"$$EVENKV_BIN"

run-cluster: build ## a cluster of NODES=3 local processes on 127.0.0.1:13801 and up; DATA=1 keeps it on disk
	@scripts/cluster start

stop-cluster: ## end exactly the processes that these targets started
	@scripts/cluster stop

add-node: build ## start one more local node; it is passive until a view change names it
	@scripts/cluster add-node

run-follower: build ## start a follower of node 1 on the next free port
	@scripts/cluster run-follower

edge: ## nginx with TLS and limits before the local cluster, on https://127.0.0.1:13443 (needs nginx, openssl, curl)
	@scripts/edge start

stop-edge: ## end exactly the nginx of `make edge`
	@scripts/edge stop

demo: build ## real data in a local cluster that changes its nodes under requests
	@scripts/demo

smoke: build ## shell tests with curl against fresh processes of the built program
	tests/smoke/single.sh
	tests/smoke/follower.sh
	tests/smoke/cluster.sh
	tests/smoke/replicated.sh
	tests/smoke/recipes.sh
	tests/smoke/api.sh

openapi: build ## drive the program from its own /openapi.json with EXAMPLES=10000 requests; needs Python and its packages
	@tests/openapi/run

page-test: ## try the page in Chromium; needs chromium and chromedriver, and npm for axe-core
	@tests/browser/run

test: ## the tests that take minutes at most
	@scripts/test

test-full: ## all tests, those that take long too, 10,000 requests that schemathesis makes, and the mutants
	SIMULATION_SEEDS=10000 cargo test --locked --profile checked --features failpoints -- --include-ignored
	$(MAKE) openapi PROFILE=checked
	$(MAKE) page-test
	scripts/mutants

mutants: ## show that the simulation, or the test that is named, finds the faults of tests/mutants.txt, within MUTANTS_MINUTES=60
	@scripts/mutants

# SECONDS is a variable of bash, too, so both go to the tests under other names.
torture: ## kill, stop, cut off and exchange real nodes under clients: SEED=1 SECONDS=60; partitions need root, iproute2, iptables
	TORTURE_SEED='$(SEED)' TORTURE_SECONDS='$(or $(SECONDS),60)' cargo test --locked --profile checked --features failpoints \
	  --test torture a_replicated_cluster -- --nocapture

check: ## formatting, lints, licences and advisories, shell syntax
	cargo fmt --check
	cargo clippy --locked --profile checked --all-targets --all-features -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo 'check: cargo-deny is not installed, so licences and advisories were not checked'; fi
	@for script in $(SHELL_SCRIPTS); do bash -n "$$script"; done
	@if command -v shellcheck >/dev/null; then shellcheck -x -P SCRIPTDIR $(SHELL_SCRIPTS); \
	else echo 'check: shellcheck is not installed, so the scripts were checked for syntax only'; fi

bench: ## measure beside a bare server, Redis and etcd; BENCH_PART does one part (scripts/bench)
	@scripts/bench

# The flags go to the program alone, so what is built for `make build` serves both.
dist: ## the program, static where this system can, with manual, completions and unit, as target/dist/*.tar.gz (STATIC=no: not static)
	cargo rustc --locked --profile $(PROFILE:debug=dev) --bin evenkv -- -C strip=debuginfo $(if $(filter no,$(STATIC)),,-C target-feature=+crt-static)
	@scripts/dist
	@tests/smoke/dist.sh

record: build ## run a session in a local cluster and draw it as docs/session.svg
	@scripts/record

image: ## build the image evenkv
	docker build --build-arg EVENKV_COMMIT="$$($(COMMIT))" -t evenkv .

up: ## the cluster of compose/cluster.yaml, ready on 127.0.0.1:13801 to 13803; EDGE=1: with compose/edge.yaml, port 13443
	@scripts/compose-cluster up

down: ## take the cluster of compose/cluster.yaml down
	@scripts/compose-cluster down
