# `make help` lists the targets. Nothing needs root; tests/prerequisites.sh lists what must be
# installed. Times are those of a machine with two cores.

CARGO ?= cargo
# docker, podman or buildah, and its options for `build`.
ENGINE ?= docker
ENGINE_FLAGS ?=
IMAGE ?= replica-migration:0.1.0
# amd64 or arm64: the other one is cross-compiled.
ARCH ?= amd64
# Where these cannot be pulled: any image with CA certificates and a passwd, and a Debian 12 with
# Rust.
BASE ?= gcr.io/distroless/static-debian12:nonroot
BUILD_BASE ?= rust:1.95-slim-bookworm
PROGRAMS := --workspace --exclude tests --bins

# The model search with one disturbance takes seconds, with two minutes: `make test` takes two.
QUICK_SEARCH := SEARCH_FAULTS=1
# The crates' own tests. Those of the harness start servers.
UNIT_TESTS := --workspace --exclude tests --lib --bins
# Installed outside of the checkout, once per version.
DENY_VERSION := 0.20.2
DENY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/replica-migration/cargo-deny-$(DENY_VERSION)
# `advisories` needs a network, and its verdict changes from day to day.
DENY_CHECKS ?= bans licenses sources

.PHONY: help prerequisites setup build release lint docs deny unit check test rehearse soak bench \
  e2e image image-twice clean
# Cargo and the harness use all cores themselves, and prerequisites must end in their order.
.NOTPARALLEL:

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) \
	  | sed -E 's/^([a-z0-9-]+):.*## /make \1\t/' | expand -t 20

prerequisites: ## check what must be installed (2 s); as root on Debian, install what is missing
	@tests/prerequisites.sh

setup: prerequisites ## make the parts of the harness, once (about 8 min, later 1 s)
	$(CARGO) run --locked --quiet --package tests --example setup

build: ## the programs, as static binaries for this machine (2 min, later seconds)
	$(CARGO) build --locked $(PROGRAMS)

release: ## the programs as they are released: small and stripped (about 8 min)
	$(CARGO) build --locked --release $(PROGRAMS)

lint: ## formatting and clippy; warnings are errors (2 min, later seconds)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: ## the documentation of all items in target/doc; a broken link is an error (1 min)
	$(CARGO) doc --locked --workspace --no-deps --document-private-items

deny: ## licenses, sources and bans of dependencies (seconds; once, 5 min, to build cargo-deny)
	@[ -x "$(DENY)/bin/cargo-deny" ] || { \
	  echo "building cargo-deny $(DENY_VERSION), about 5 minutes on two cores, once"; \
	  cd / && $(CARGO) install --locked --quiet --root "$(DENY)" cargo-deny@$(DENY_VERSION); }
	"$(DENY)/bin/cargo-deny" --locked check --hide-inclusion-graph $(DENY_CHECKS)

unit: ## the unit tests only, with a small model search (seconds when built)
	$(QUICK_SEARCH) $(CARGO) test --locked $(UNIT_TESTS)

check: lint unit ## after every change: formatting, clippy, unit tests (under 1 min when built)

test: prerequisites lint docs build setup release ## everything that CI checks (about 50 min)
	$(CARGO) test --locked --workspace

rehearse: prerequisites build ## the whole migration here, with a report (2 min when built)
	$(CARGO) run --locked --package tests --bin rehearse

# WALK=7 only walks, SEED=7 repeats one, CUTOVERS=50 ends after 50, WORKERS=4 run at a time;
# SOAK_TALLY=FILE adds up.
soak: prerequisites build ## the model, then real cutovers, at each step and at random (hours)
	WALK=$(WALK) SEED=$(SEED) CUTOVERS=$(CUTOVERS) WORKERS=$(WORKERS) FAULT=$(FAULT) \
	  SOAK_TALLY=$(SOAK_TALLY) $(CARGO) run --locked --package tests --bin soak

bench: prerequisites release ## the rehearsal's figures, with the release build (about 10 min)
	$(CARGO) run --locked --release --package tests --bin rehearse -- bench

# tests/e2e/main.rs lists its variables. The cluster has both operators.
e2e: ## the whole migration on the cluster of $KUBECONFIG (about 15 min)
	@command -v kubectl >/dev/null || { \
	  echo "kubectl is missing; install it: https://kubernetes.io/docs/tasks/tools"; exit 1; }
	$(CARGO) run --locked --package tests --bin e2e

# Each build of a commit gives the same image, byte for byte: it contains only what was committed,
# and all times in it are the commit's.
COMMIT = $(shell git rev-parse HEAD)
COMMIT_TIME = $(shell git log -1 --format=%ct)
# Buildah from 1.41 on (podman from 5.6) does not accept it together with --timestamp, not even in
# the environment.
unexport SOURCE_DATE_EPOCH
# An attestation would contain the time of the build.
FOR_docker = --load --provenance=false --build-arg SOURCE_DATE_EPOCH=$(COMMIT_TIME)
# Debian 12's buildah does not set these two by itself.
FOR_buildah = --timestamp $(COMMIT_TIME) --identity-label=false \
  --build-arg TARGETPLATFORM=linux/$(ARCH) \
  --build-arg BUILDPLATFORM=linux/$(if $(filter x86_64,$(shell uname -m)),amd64,arm64)
FOR_podman = $(FOR_buildah)
CYCLONEDX = 0.5.9

# Also prints the size of the image, and lists the crates of each program.
image: ## the image with all programs (about 15 min)
	@command -v $(ENGINE) >/dev/null || { \
	  echo "$(ENGINE) is missing; install it: apt-get install buildah, or name another with ENGINE="; \
	  exit 1; }
	@git diff --quiet HEAD \
	  || echo "the image is built from the last commit; later changes are not in it"
	rm -rf target/image
	mkdir -p target/image/context target/image/crates
	git archive HEAD | tar --extract --directory target/image/context
	$(ENGINE) build $(ENGINE_FLAGS) $(FOR_$(notdir $(ENGINE))) --platform linux/$(ARCH) \
	  --build-arg BASE=$(BASE) --build-arg BUILD_BASE=$(BUILD_BASE) \
	  --build-arg REVISION=$(COMMIT) --build-arg VERSION=$(lastword $(subst :, ,$(IMAGE))) \
	  --iidfile target/image/digest --tag $(IMAGE) target/image/context
	$(CARGO) install --quiet --locked --root target/tools --target-dir target/tools/build \
	  cargo-cyclonedx@$(CYCLONEDX)
	cd target/image/context && SOURCE_DATE_EPOCH=$(COMMIT_TIME) \
	  ../../tools/bin/cargo-cyclonedx cyclonedx --quiet --format json --spec-version 1.5 \
	  --describe binaries --no-build-deps \
	  --target $(if $(filter arm64,$(ARCH)),aarch64,x86_64)-unknown-linux-gnu
	sed -i 's|file://$(CURDIR)/target/image/context|file:///src|' \
	  target/image/context/bins/*/*_bin.cdx.json
	for list in target/image/context/bins/*/*_bin.cdx.json; do \
	  mv $$list target/image/crates/$$(basename $$list _bin.cdx.json).cdx.json; done
	@echo "$(IMAGE) linux/$(ARCH) of $(COMMIT): $$(cat target/image/digest)"
	@tests/image-size.sh $(ENGINE) $(IMAGE) $$(ls target/image/crates | wc -l)
	@sha256sum target/image/crates/*

image-twice: ## build the image twice and compare the results byte for byte (about 30 min)
	rm -rf target/image-before
	$(MAKE) image ENGINE_FLAGS="$(ENGINE_FLAGS) --no-cache"
	cp -r target/image target/image-before
	$(MAKE) image ENGINE_FLAGS="$(ENGINE_FLAGS) --no-cache"
	diff -r target/image-before/crates target/image/crates
	cmp target/image-before/digest target/image/digest
	rm -r target/image-before

clean: ## remove what was built; the parts of the harness stay in the user's cache
	$(CARGO) clean
