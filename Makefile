# The one door to everything, for people and for CI. `make help` lists it.
# Downloads happen in `setup`, `tools` and what builds on them (`up`, `wheel`): all else works
# without a network.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# What the tests run beside Python is found here before it is looked for anywhere else.
export PATH := $(CURDIR)/.tools/bin:$(CURDIR)/$(BIN):$(PATH)
export UV_PYTHON_DOWNLOADS := never
# Tests start hundreds of processes: without compiled files each of them compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

T ?=
ARGS ?=
# make test T=path narrows; a layer that has no test yet is no mistake.
# What takes longest comes first: at the end, short files fill the gaps.
LAYERS := $(wildcard tests/journeys tests/conformance tests/attacks tests/integration tests/contract tests/unit tests/perf)
PYTEST := $(BIN)/pytest $(ARGS)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

# --- what the rest stands on -------------------------------------------------------------------

.PHONY: setup tools
setup: ## Python packages into .venv (downloads)
	@dev/setup.sh

tools: setup ## OPA, Node.js, the MCP Inspector, the conformance suite into .tools (downloads, builds)
	@dev/tools.sh

$(BIN)/python:
	@dev/setup.sh

# --- contracts ---------------------------------------------------------------------------------

.PHONY: protos protos-check
protos: $(BIN)/python ## stubs of protos/behavry into protos/gen
	$(BIN)/python dev/protos.py

protos-check: $(BIN)/python ## contracts: lint, format, breaking changes, committed stubs
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	dev/breaking.sh
	$(BIN)/python dev/protos.py --check

# --- reading the code --------------------------------------------------------------------------

.PHONY: fmt lint ruff types imports rego
fmt: $(BIN)/python ## put every file into the house format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/buf format --write
	@if command -v opa >/dev/null; then dev/rego.sh fmt; fi

lint: $(BIN)/python ## all of the next three, to the end
	@$(MAKE) --keep-going ruff types imports

ruff: $(BIN)/python ## lint rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/python ## mypy, strict, tests included
	$(BIN)/mypy

imports: $(BIN)/python ## who may import whom
	$(BIN)/lint-imports --no-logo

rego: ## policies: format, strict check, tests (needs `make tools`)
	dev/rego.sh check

.PHONY: models
models: ## the ticket's protocol, checked with spin, and its seeded faults found
	dev/models.sh

# --- tests -------------------------------------------------------------------------------------

.PHONY: test unit contract integration journeys attacks conformance wheel bench bench-against bench-hops bench-pages bench-relay bench-hidden bench-start chaos
# What measures or kills under load runs alone; all else three at a time (it waits much), and what
# fails then once more with nothing beside it: both are told, the second counts. An interrupt ends
# all of it, after the running half has told what failed so far.
ALONE := tests/perf tests/contract/engines tests/integration/up \
  $(addprefix tests/journeys/test_,cheap_by_rule.py failures.py plans_under_traffic.py stops.py under_fire.py workers.py)
BESIDE := $(ALONE:%=--ignore=%) $(LAYERS)
test: $(BIN)/python ## every test that needs no hours; T=path narrows, ARGS= goes to pytest
ifdef T
	$(PYTEST) $(T)
else
	trap 'exit 2' INT; failed=0; \
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder $(BESIDE) || \
	  $(PYTEST) --last-failed --last-failed-no-failures none $(BESIDE) || failed=1; \
	$(PYTEST) $(ALONE) || failed=1; \
	exit $$failed
endif

unit contract integration journeys attacks: $(BIN)/python
	$(PYTEST) $(or $(T),tests/$@)
unit: ## rules on values and fakes
contract: ## fakes and the real thing behave alike; decision tables
integration: ## one service, its real neighbours
journeys: ## promises to a user, all processes
attacks: ## what an adversary tries, with innocent twins

conformance: $(BIN)/python ## what works directly works through the gateway, check by check (needs `make tools`)
	$(BIN)/python -m tests.conformance.gate $(ARGS)

wheel: setup ## the unit layer against the built wheel, sources out of reach (downloads)
	dev/wheel.sh

bench: $(BIN)/python ## latency, throughput, CPU per call; BENCH_ARGS="--seconds --concurrency --rate --short"
	$(BIN)/python -m tests.perf.bench $(BENCH_ARGS)

bench-against: $(BIN)/python ## this tree against another commit, in turns: BASE=commit BENCH_ARGS="--pairs --seconds"
	$(BIN)/python -m tests.perf.against $(BASE) $(BENCH_ARGS)

bench-hops: $(BIN)/python ## what the hops cost with nothing in them, against the floor
	$(BIN)/python -m tests.perf.skeleton $(BENCH_ARGS)

bench-pages: $(BIN)/python ## lists over much history; BENCH_ARGS="--rows N"
	$(BIN)/python -m tests.perf.pages $(BENCH_ARGS)

bench-relay: $(BIN)/python ## the proxy beside a proxy made of the SDK's halves; BENCH_ARGS="--seconds --eras --baseline"
	$(BIN)/python -m tests.perf.relay $(BENCH_ARGS)

bench-hidden: $(BIN)/python ## what the time of a refusal tells of a tool
	$(BIN)/python -m tests.perf.hidden $(BENCH_ARGS)

bench-start: ## from a clone and an empty cache to the first denied call
	python3 tests/perf/bench_start.py $(BENCH_ARGS)

chaos: $(BIN)/python ## kills and long outages under traffic, the long form
	BEHAVRY_CHAOS=long $(PYTEST) -o faulthandler_timeout=0 -m chaos $(or $(T),tests)

# --- running it --------------------------------------------------------------------------------

.PHONY: fuzz
fuzz: $(BIN)/python ## mutated calls and answers at a proxy process, the long form: CASES=100000
	BEHAVRY_FUZZ=$(or $(CASES),100000) $(PYTEST) -o faulthandler_timeout=0 -s tests/attacks/mcp/test_fuzz.py

.PHONY: up down
up: setup ## start everything on this machine; UP_ARGS="--port-base N" and the like
	$(BIN)/behavry up $(UP_ARGS)

down: ## stop what `make up` started
	$(BIN)/behavry down $(UP_ARGS)

.PHONY: clean ci
clean: ## forget caches and results; .venv and .tools stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist bench.json
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +

ci: ## what CI does
	bash .ci/run
