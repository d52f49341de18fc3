# syntax=docker/dockerfile:1
# All programs in `/` of an image without a shell. Build arguments:
#   BASE        the final image, where the one below cannot be pulled: it needs CA certificates and nothing else
#   TARGETARCH  amd64 or arm64; docker sets it from --platform
#   REVISION    the commit, for the label
ARG BASE=gcr.io/distroless/static-debian12:nonroot

FROM rust:1.95-slim-trixie AS build
# OpenSSL's static library, and how the build finds it.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libssl-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG TARGETARCH=amd64
# The flag of .cargo/config.toml for every architecture; the target is named so that it does not reach proc-macros.
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_INCREMENTAL=0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=target-${TARGETARCH} \
    case "${TARGETARCH}" in \
      amd64) target=x86_64-unknown-linux-gnu ;; \
      arm64) target=aarch64-unknown-linux-gnu ;; \
      *) echo "TARGETARCH=${TARGETARCH} is neither amd64 nor arm64" >&2; exit 1 ;; \
    esac \
 && cargo build --locked --release --target "${target}" --workspace --exclude tests --bins \
 && mkdir /programs \
 && find "target/${target}/release" -maxdepth 1 -type f -executable -exec cp {} /programs/ ';'

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="replica-migration" \
      org.opencontainers.image.description="Moves a PostgreSQL cluster from the Zalando operator to CloudNativePG by physical replication" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /programs/ /
# Numeric, so that runAsNonRoot can be checked without reading the image's passwd.
USER 65532:65532
