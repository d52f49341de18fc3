# What people type. Needs Rust, Go, Python 3, a C compiler and the Debian packages that README.md
# names; none of it as root.

CARGO ?= cargo
# docker, podman or buildah, with options of its own for `build`.
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

.PHONY: help setup build release lint test rehearse soak bench e2e image image-twice clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /make \1\t/' | expand -t 16

setup: ## make the parts of the harness (about 8 minutes on two cores, once)
	$(CARGO) run --quiet --package tests --example setup

build: ## the programs, as static binaries for this machine
	$(CARGO) build --locked $(PROGRAMS)

release: ## the programs as they are released: small, stripped, and slow to build
	$(CARGO) build --locked --release $(PROGRAMS)

lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

test: lint build release ## everything that CI checks
	$(CARGO) test --locked --workspace

rehearse: build ## the whole migration on this machine, with a report
	$(CARGO) run --locked --package tests --bin rehearse

soak: build ## real cuts disturbed at each step, then by chance to a thousand; SEED=7 repeats one, CUTOVERS=50 are enough, WORKERS=4 at a time
	SEED=$(SEED) CUTOVERS=$(CUTOVERS) WORKERS=$(WORKERS) $(CARGO) run --locked --package tests --bin soak

bench: release ## the rehearsal's figures, with the programs as they are released
	$(CARGO) run --locked --release --package tests --bin rehearse -- bench

e2e: ## the whole migration on the cluster of $KUBECONFIG, which has both operators; tests/e2e/main.rs lists its E2E_ variables
	@command -v kubectl >/dev/null || { echo "kubectl is missing; install it: https://kubernetes.io/docs/tasks/tools"; exit 1; }
	$(CARGO) run --locked --package tests --bin e2e

# Of one commit there is one image, byte for byte: it is made of what was committed, and everything
# in it is as old as the commit.
COMMIT = $(shell git rev-parse HEAD)
COMMIT_TIME = $(shell git log -1 --format=%ct)
# Buildah from 1.41 on (podman from 5.6) refuses it beside --timestamp, also from the environment.
unexport SOURCE_DATE_EPOCH
# An attestation would name the time of the build.
FOR_docker = --load --provenance=false --build-arg SOURCE_DATE_EPOCH=$(COMMIT_TIME)
# Debian 12's does not know by itself what it runs on, and what for.
FOR_buildah = --timestamp $(COMMIT_TIME) --identity-label=false --build-arg TARGETPLATFORM=linux/$(ARCH) \
  --build-arg BUILDPLATFORM=linux/$(if $(filter x86_64,$(shell uname -m)),amd64,arm64)
FOR_podman = $(FOR_buildah)
CYCLONEDX = 0.5.9

image: ## the image with all programs, and for each program the list of its crates
	@command -v $(ENGINE) >/dev/null || { echo "$(ENGINE) is missing; install it: apt-get install buildah, or name another with ENGINE="; exit 1; }
	@git diff --quiet HEAD || echo "the image is made of the last commit: what has changed since is not in it"
	rm -rf target/image
	mkdir -p target/image/context target/image/crates
	git archive HEAD | tar --extract --directory target/image/context
	$(ENGINE) build $(ENGINE_FLAGS) $(FOR_$(notdir $(ENGINE))) --platform linux/$(ARCH) \
	  --build-arg BASE=$(BASE) --build-arg BUILD_BASE=$(BUILD_BASE) --build-arg REVISION=$(COMMIT) --build-arg VERSION=$(lastword $(subst :, ,$(IMAGE))) \
	  --iidfile target/image/digest --tag $(IMAGE) target/image/context
	$(CARGO) install --quiet --locked --root target/tools --target-dir target/tools/build cargo-cyclonedx@$(CYCLONEDX)
	cd target/image/context && SOURCE_DATE_EPOCH=$(COMMIT_TIME) ../../tools/bin/cargo-cyclonedx cyclonedx --quiet --format json --spec-version 1.5 \
	  --describe binaries --no-build-deps --target $(if $(filter arm64,$(ARCH)),aarch64,x86_64)-unknown-linux-gnu
	sed -i 's|file://$(CURDIR)/target/image/context|file:///src|' target/image/context/bins/*/*_bin.cdx.json
	for list in target/image/context/bins/*/*_bin.cdx.json; do mv $$list target/image/crates/$$(basename $$list _bin.cdx.json).cdx.json; done
	@echo "$(IMAGE) linux/$(ARCH) of $(COMMIT): $$(cat target/image/digest)"
	@sha256sum target/image/crates/*

image-twice: ## two builds of the image, which must be the same byte for byte
	rm -rf target/image-before
	$(MAKE) image ENGINE_FLAGS="$(ENGINE_FLAGS) --no-cache"
	cp -r target/image target/image-before
	$(MAKE) image ENGINE_FLAGS="$(ENGINE_FLAGS) --no-cache"
	diff -r target/image-before/crates target/image/crates
	cmp target/image-before/digest target/image/digest
	rm -r target/image-before

clean: ## what was built here; the parts of the harness stay in the user's cache
	$(CARGO) clean
