# What people type. Needs Rust, Go, Python 3, a C compiler and the Debian packages that README.md names; none of it as root.

CARGO ?= cargo
# docker, or anything that takes its arguments.
ENGINE ?= docker
IMAGE ?= replica-migration:0.1.0
# Where the base image cannot be pulled: any image with CA certificates.
BASE ?= gcr.io/distroless/static-debian12:nonroot
PROGRAMS := --workspace --exclude tests --bins

.PHONY: help setup build lint test rehearse bench image clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

setup: ## make the parts of the harness (about 8 minutes on two cores, once)
	$(CARGO) run --quiet --package tests --example setup

build: ## the programs, as static binaries for this machine
	$(CARGO) build --locked $(PROGRAMS)

lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

test: lint build ## everything that CI checks
	$(CARGO) test --locked --workspace

rehearse: build ## the whole migration on this machine, with a report
	$(CARGO) run --locked --package tests --bin rehearse

bench: ## the rehearsal's figures, with the programs as they are released
	$(CARGO) build --locked --release $(PROGRAMS)
	$(CARGO) run --locked --release --package tests --bin rehearse -- bench

image: ## the image with all programs
	@command -v $(ENGINE) >/dev/null || { echo "$(ENGINE) is missing; install it: apt-get install docker.io, or name another with ENGINE="; exit 1; }
	$(ENGINE) build --build-arg BASE=$(BASE) --build-arg REVISION=$$(git rev-parse HEAD) --tag $(IMAGE) .

clean: ## what was built here; the parts of the harness stay in the user's cache
	$(CARGO) clean
