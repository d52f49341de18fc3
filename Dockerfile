# All programs in `/` of an image without a shell. `make image` sets the build arguments:
#
#   BASE                the base image of the programs; it needs CA certificates and a passwd
#   BUILD_BASE          Debian 12 with Rust; OpenSSL 3.5 of Debian 13 adds 2.7 MB to each program
#   TARGETARCH          amd64 or arm64, whatever the architecture of this machine
#   REVISION, VERSION   for the labels
#   SOURCE_DATE_EPOCH   time of all files in the image, in seconds since 1970
ARG BASE=gcr.io/distroless/static-debian12:nonroot
ARG BUILD_BASE=rust:1.95-slim-bookworm

FROM --platform=${BUILDPLATFORM} ${BUILD_BASE} AS build
ARG TARGETARCH
# A C compiler, libc and OpenSSL's static libraries for the target's architecture. The build names
# the directories of OpenSSL itself, so that pkg-config need not know the architecture.
RUN case "${TARGETARCH}" in \
      amd64) gnu=x86_64-linux-gnu ;; \
      arm64) gnu=aarch64-linux-gnu ;; \
      *) echo "TARGETARCH=${TARGETARCH} is neither amd64 nor arm64" >&2; exit 1 ;; \
    esac \
 && if [ "$(dpkg --print-architecture)" = "${TARGETARCH}" ]; then compiler=gcc; \
    else compiler="gcc-$(echo ${gnu} | tr _ -)"; fi \
 && dpkg --add-architecture "${TARGETARCH}" \
 && apt-get update \
 && apt-get install --yes --no-install-recommends \
    "${compiler}" "libc6-dev:${TARGETARCH}" "libssl-dev:${TARGETARCH}" \
 && rm -rf /var/lib/apt/lists/* \
 && ln -s "/usr/lib/${gnu}" /usr/lib/target \
 && rustup target add "$(echo ${gnu} | sed s/-/-unknown-/)"
WORKDIR /src
COPY . .
ARG SOURCE_DATE_EPOCH=0
RUN case "${TARGETARCH}" in \
      amd64) target=x86_64-unknown-linux-gnu ;; \
      arm64) target=aarch64-unknown-linux-gnu ;; \
    esac \
 && OPENSSL_LIB_DIR=/usr/lib/target OPENSSL_INCLUDE_DIR=/usr/include CARGO_INCREMENTAL=0 \
    cargo build --locked --release --target "${target}" --workspace --exclude tests --bins \
 && mkdir /programs \
 && find "target/${target}/release" -maxdepth 1 -type f -executable \
    -exec install -m 0755 -t /programs {} + \
 && find /programs -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} + \
 && rm -rf target \
 && sha256sum /programs/*

# The platform is repeated because buildah of Debian 12 otherwise keeps the first stage's, and takes
# the base image of this machine's architecture.
FROM --platform=${TARGETPLATFORM} ${BASE}
ARG BASE
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="replica-migration" \
      org.opencontainers.image.description="Moves PostgreSQL from Zalando's operator to CloudNativePG" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /programs/ /
# Numeric, so that runAsNonRoot can be checked without reading the image's passwd.
USER 65532:65532
