# What a person types. Each target installs what it misses: tools from PyPI go into private virtual
# environments below target/, and nothing outside of the project changes but for Debian packages
# that root is missing.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo serve check test snapshots soak fuzz lint audit bench build release contract versions style

# Finds or installs Rust; where rustup has just been installed, its folder is not on PATH yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
rust = tests/tools/rust
# For `cargo lambda`, `cargo deny` and the like.
with = PATH="$$(tests/tools/venv $(1)):$$PATH"

help:                  ## Show this list
	@sed -n 's/^\([a-z]*\): .*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo:                  ## Run the function on a sample homeserver and show its answers to events/
	@$(rust)
	@$(call with,demo) tests/demo/run

serve:                 ## The same, and keep it running for requests of your own
	@$(rust)
	@$(call with,demo) tests/demo/run serve

check: style           ## Run the checks to go by while editing: style, unit tests, the recorded answers in process
	cargo test --locked --lib
	cargo test --locked --test it -- every_recorded_answer_in_process

# What `check` and `lint` have in common.
style:
	@$(rust)
	@echo "== Rust: format, clippy"
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

# By a debug binary, which is made sooner and says the same.
snapshots:             ## Renew tests/snapshots; what git then shows as changed is to be read
	@$(rust)
	cargo build --locked
	FUNCTION_BINARY="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/synapse-media-usage" UPDATE_SNAPSHOTS=1 \
	    cargo test --locked --test it -- snapshot
	$(call with,lint) UPDATE_SNAPSHOTS=1 python tests/template/check Rendered
	git status --short tests/snapshots

# The function that is tested and measured is what `sam build` has made. Elsewhere that does not run, and the tests compile one.
ifeq ($(shell uname -s),Linux)
test soak bench: export FUNCTION_BINARY = $(CURDIR)/.aws-sam/build/Function/bootstrap
endif

# Many tests wait for what does not answer, so three times as many of them at a time as there are cores.
test: export RUST_TEST_THREADS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) * 3)))
test: check lint build ## Run every check
	@echo "== the bench, on data too small to tell anything"
	cargo bench --profile dev --locked --bench bench -- --smoke
	@echo "== tests"
# What the demo runs, so that no test compiles it beside others.
	cargo build --locked --bins
# `check` has run the unit tests, and one of these.
	cargo test --locked --test it -- --show-output --skip every_recorded_answer_in_process
	@$(MAKE) --no-print-directory --jobs=2 on-14 on-18

# Most of it is waiting, so that many functions share the faults. SOAK_SEED=... makes a run's faults again.
soak: export SOAK_FAULTS ?= 1200
soak: export SOAK_FUNCTIONS ?= 12
soak: export SOAK_CRASHES ?= 20
soak: build            ## Break the connection to the database in 1200 random ways (two minutes)
	cargo test --locked --test it -- soak --nocapture

# FUZZ_TARGETS="query headers" runs only those.
fuzz: export FUZZ_SECONDS ?= 600
fuzz:                  ## Throw mutated requests, events and introspections at what reads them (ten minutes each of 4)
	@$(rust)
	$(call with,fuzz) tests/fuzz/run $(FUZZ_TARGETS)

# For this machine's architecture; the group "lint" holds sam, cargo-lambda and zig together.
build:                 ## Build what sam deploys, in .aws-sam
	@$(rust)
	@echo "== building what sam deploys"
	export RUSTFLAGS; RUSTFLAGS=$$(tests/release/rustflags); \
	$(call with,lint) AWS_DEFAULT_REGION=eu-central-1 SAM_CLI_TELEMETRY=0 sam build \
	    --parameter-overrides Architecture=$$(uname -m | sed s/aarch64/arm64/)

release:               ## Build what is released from the last commit, twice, and compare (ten minutes)
	@$(rust)
	@$(call with,lint) python tests/release/run

# The function is the release binary whatever the bench is built with. Its data sets take minutes to make and
# some 2 GB; they are kept in a folder that also PostgreSQL's own user can enter.
bench: export BENCH_DATA ?= /var/tmp/synapse-media-usage-bench$(PG:%=-%)
bench: export SHARED_BUFFERS ?= 512MB
bench: build           ## Measure the function beside Synapse's statements and psql (half an hour)
	cargo bench --profile dev --locked --bench bench

lint: style            ## Run the checks that read but do not run the code
	@echo "== Rust: documentation"
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked
	@echo "== the fuzz targets, likewise"
	cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
	cargo clippy --manifest-path tests/fuzz/Cargo.toml --no-default-features --locked --target-dir "$${CARGO_TARGET_DIR:-target}" -- -D warnings
	@echo "== dependencies: bans, licences, sources; unused ones"
	$(call with,lint) cargo deny --locked check bans licenses sources
	$(call with,lint) cargo shear
	@echo "== scripts, template, release, contract"
	@$(call with,lint) $(MAKE) --no-print-directory --jobs=2 $(scripts)

# Two at a time, the longest first. Each finds the tools of the group "lint" in its PATH.
scripts = release-scripts contract-scripts sam cloudformation template shell-scripts
.PHONY: $(scripts)
$(scripts): export AWS_DEFAULT_REGION = eu-central-1
$(scripts): export SAM_CLI_TELEMETRY = 0

shell-scripts:
	shellcheck tests/tools/{debian,pgbouncer,postgres,reverse-proxy,rust,venv} tests/fuzz/run tests/release/rustflags .ci/run

template:
	python tests/template/check

cloudformation:
	cfn-lint template.yaml

sam:
	sam validate --lint

release-scripts:
	env -u MAKEFLAGS -u MFLAGS python tests/release/check

contract-scripts:
	python tests/contract/check

# What depends on the server's version, on PostgreSQL 14 by `on-14`. cargo would take MAKEFLAGS for its own.
on-%:
	@echo "== the recorded cases, the statements, the plans and odd copies on PostgreSQL $*"
	env -u MAKEFLAGS -u MFLAGS PG_BIN= PG_VERSION=$* cargo test --locked --test it -- \
	    conformance:: statements:: plans:: copies:: versions:: rds_iam --skip disagree

ifeq ($(shell uname -s),Linux)
versions: export FUNCTION_BINARY = $(CURDIR)/.aws-sam/build/Function/bootstrap
endif

versions: build        ## Run what depends on PostgreSQL's version on all that are supported
	@$(MAKE) --no-print-directory --jobs=2 on-14 on-15 on-16 on-17 on-18

# `make bench PG=18` measures on that version. Each has data of its own, because none can read another's.
ifdef PG
bench: export PG_VERSION = $(PG)
endif

# SYNAPSE=1.150.0 compares with that release.
contract:              ## Compare the recorded cases and tables with the newest Synapse's (two minutes)
	@$(rust)
	@tests/contract/run $(SYNAPSE)

# Not part of `make test`: it installs some 300 MB, and what it finds depends on the template alone.
audit:                 ## Ask checkov and cdk-nag what a security review would, and CDK whether it can load the template
	@$(call with,lint) python tests/audit/run
