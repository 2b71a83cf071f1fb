# Every command of this repository. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
LOCAL := $(BIN)/python -m replank_local
PACKAGES := libs/common libs/cli deploy/local $(wildcard services/* examples/*)
CODE := $(PACKAGES) $(wildcard bench) tests
BENCHES := outbox migrate vault
# What pytest is given: make test T="tests/common/outbox -k lease"
T ?=
# How many processes share all the tests; most of a test's time is waiting.
WORKERS ?= 2
# Those that count what the server writes have it for themselves.
ALL_TESTS = $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --ignore=tests/common/bench && $(BIN)/pytest tests/common/bench

.PHONY: help demo up down status logs env clean test unit lint fmt types docs bench lock fetch

help: ## this list
	@awk -F ':.*## ' '/^[.a-z%-]+:.*## / {gsub(/\$$\$$/, "$$", $$2); printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment

.venv: .venv/.stamp ## the Python environment, exactly as requirements.lock pins it
.venv/.stamp: requirements.lock $(PACKAGES:%=%/pyproject.toml) deploy/local/make-venv.sh
	@deploy/local/make-venv.sh "$(PYTHON)" $(PACKAGES)

# The stack

demo: .venv/.stamp ## bring the stack up, tell the story against it, leave it up
	@$(LOCAL) demo

up: .venv/.stamp ## bring up servers, migrations and services (REPLANK_STACK=native|docker forces a way)
	@$(LOCAL) up

down: ## stop what `up` started; data stays
	@test ! -x $(BIN)/python || $(LOCAL) down

status: .venv/.stamp ## what runs, where, and whether it is ready
	@$(LOCAL) status

logs: .venv/.stamp ## the end of every log; S=schema for one, F=1 to follow
	@$(LOCAL) logs $(S) $(if $(F),--follow)

env: ## where the running stack is:  eval "$$(make env)"
	@test -x $(BIN)/python || { echo "error: the local stack is not running; start it with \`make up\`" >&2; exit 1; }
	@$(LOCAL) env

clean: ## remove the data, secrets and logs of a stopped stack
	@test ! -x $(BIN)/python || $(LOCAL) clean

fetch: .venv/.stamp ## download and build what the cache lacks, and start nothing
	@$(LOCAL) fetch

# Proof

test: .venv/.stamp ## all tests, on servers of their own; T="tests/common -k lease" for some
	@$(LOCAL) test -- $(if $(T),$(BIN)/pytest $(T),bash -c '$(ALL_TESTS)')

unit: .venv/.stamp ## the tests that need no server
	@$(BIN)/pytest -m "not servers and not chaos" $(T)

lint: .venv/.stamp types ## style, types, architecture, the lock file
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports
	@! grep -n '://' requirements.lock || { echo "error: requirements.lock names a URL; run \`make lock\`" >&2; exit 1; }

types: .venv/.stamp ## mypy --strict
	@$(BIN)/mypy $(CODE)

fmt: .venv/.stamp ## format the code
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

bench: $(BENCHES:%=bench-%) ## every benchmark

bench-%: .venv/.stamp ## one benchmark, on servers of its own: make bench-outbox
	@$(LOCAL) bench -- $(BIN)/python -m bench.$(subst -,_,$*) $(T)

# Upkeep

docs: .venv/.stamp ## write what is generated under docs/reference; a test compares it
	@$(BIN)/python -m replank.telemetry.metrics >docs/reference/metrics.md.new
	@mv docs/reference/metrics.md.new docs/reference/metrics.md
	@$(BIN)/python -m replank.migrate.mapping >docs/reference/mapping.schema.json.new
	@mv docs/reference/mapping.schema.json.new docs/reference/mapping.schema.json
	@for module in $(notdir $(wildcard services/*/replank_*)); do $(BIN)/python -m $$module describe docs/reference; done

lock: .venv/.stamp ## write the lock files anew; UPGRADE=1 to newer versions (uv.lock is not kept in git)
	@$(BIN)/uv lock --quiet $(if $(UPGRADE),--upgrade)
	@$(BIN)/uv export --quiet --all-packages --all-extras --all-groups --no-emit-workspace --no-annotate --no-header \
		--format requirements-txt --output-file requirements.lock
	@$(BIN)/uv export --quiet $(foreach project,$(wildcard services/* examples/*),--package replank-$(notdir $(project))) --no-dev --no-emit-workspace --no-annotate --no-header \
		--format requirements-txt --output-file deploy/docker/requirements.lock
	@$(BIN)/uv export --quiet --only-group build --no-emit-workspace --no-annotate --no-header \
		--format requirements-txt --output-file deploy/docker/build.lock
	@deploy/local/make-venv.sh "$(PYTHON)" $(PACKAGES)
