# All that people and CI do, by one name each. `make` alone lists it.
SHELL := /bin/bash
CARGO ?= cargo
# Where `make run` serves the API.
PORT ?= 3051
# Further arguments for `carillon dev` and for the benchmark: make run ARGS="--executors 4"
ARGS ?=
# How long `make soak` does harm, and what harm in which order.
MINUTES ?= 10
SEED ?= 7
# Which row of docs/reliability.md `make fault` shows.
ROW ?=

.DEFAULT_GOAL := help
.PHONY: help run dev test contract ci fmt fmt-check lint build bench soak fault setup clean-data

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*## "} {printf "  make %-12s %s\n", $$1, $$2}'

run: ## Run all of it on this machine: private Postgres and Redis, gateway, dispatchers, executors, sample jobs
	@sh deploy/setup.sh servers-unless-given compiler
	@$(CARGO) build -p carillon-cli -p carillon-gateway -p carillon-dispatcher -p carillon-executor --bins
	@# exec: a Ctrl-C reaches carillon alone, which ends the rest in good order.
	@exec target/debug/carillon dev --with-parent $(if $(filter-out 3051,$(PORT)),--port $(PORT)) $(ARGS)

dev: run ## The same as make run

test: setup ## Run every test; starts what it needs, assumes no service
	$(CARGO) build --workspace --bins --examples
	$(CARGO) test --workspace

contract: ## Is the API what its document says? buf, JSON by the reference, schemathesis, a generated client (EXAMPLES=200 for more; ARGS=baseline, ARGS=oracle)
	@sh deploy/setup.sh servers compiler contract
	$(CARGO) build -p carillon-cli -p carillon-gateway -p carillon-dispatcher -p carillon-executor --bins
	@sh integration-tests/contract/run.sh $(ARGS)

ci: fmt-check lint test contract ## What CI runs

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Is the code formatted?
	$(CARGO) fmt --all --check

lint: ## Lints, as errors
	$(CARGO) clippy --workspace --all-targets -- -D warnings

build: ## Build optimised programs into target/release
	$(CARGO) build --release --workspace --bins

bench: setup ## Measure throughput and lateness against the floor of this machine (minutes; ARGS=--quick, ARGS="--only gaps", ARGS=--help)
	$(CARGO) build --release -p carillon-dispatcher -p carillon-executor -p carillon-gateway -p carillon-integration-tests --bins
	@exec target/release/carillon-bench $(ARGS)

soak: setup ## Random faults of every kind under load, judged: make soak MINUTES=10 SEED=7 (ARGS=--list names the faults)
	$(CARGO) build -p carillon-gateway -p carillon-dispatcher -p carillon-executor -p carillon-integration-tests --bins
	@exec target/debug/carillon-soak --minutes $(MINUTES) --seed $(SEED) $(ARGS)

fault: setup ## Show a row of docs/reliability.md by its tests, and a minute of its faults at random: make fault ROW=17
	@CARGO=$(CARGO) sh integration-tests/fault.sh $(ROW)

setup: ## Install PostgreSQL, Redis, PgBouncer, faketime and a C compiler by the package manager, if they are missing
	@sh deploy/setup.sh servers compiler pooler clocks

clean-data: ## Forget what make run has kept (.carillon)
	@sh deploy/clean-data.sh .carillon
