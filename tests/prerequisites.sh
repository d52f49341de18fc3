#!/usr/bin/env bash
# Checks, in a second or two, that this machine has everything that building, testing and rehearsing
# need: `make prerequisites`. As root on Debian or Ubuntu it installs what is missing; anywhere else
# it prints one line that names everything missing, and how to install it.
#
# This is the only list of prerequisites. The Makefile and .ci/run call this script, and the
# harness's own errors refer to it.
set -euo pipefail
cd "$(dirname "$0")/.."

# The versions are those that Cargo.toml and the go.mod files ask for.
rust=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
go=$(find tests/harness -name go.mod -exec sed -n 's/^go //p' {} + |
  sort --version-sort | tail -n 1)

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# at_least MINIMUM VERSION
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort --version-sort | head -n 1)" = "$1" ]; }

# Runs a command as the user that the harness runs the servers as: PostgreSQL refuses root.
as_server() {
  if [ "$(id -u)" = 0 ] && have setpriv; then
    setpriv --reuid="$(id -u nobody)" --regid="$(id -g nobody)" --clear-groups -- "$@"
  else
    "$@"
  fi
}

has_rust() { have cargo && at_least "$rust" "$(cargo --version | cut -d ' ' -f 2)"; }

has_rust_components() { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1

has_go() {
  local version
  have go && version=$(cd / && go env GOVERSION | sed 's/^go//') || return 1
  # From 1.21 on, Go fetches the version that a go.mod asks for, unless it is told not to.
  at_least "$go" "$version" ||
    { at_least 1.21 "$version" && [[ $(cd / && go env GOTOOLCHAIN) == *auto ]]; }
}

# The static libraries, too: every program is one static binary.
has_compiler() {
  have cc && echo 'int main(void) { return 0; }' | cc -static -x c -o /dev/null - 2>/dev/null
}

# Asks for what openssl-sys asks for.
has_openssl() {
  [ -z "${OPENSSL_DIR:-}${OPENSSL_LIB_DIR:-}" ] || return 0
  local flags
  have pkg-config && flags=$(pkg-config --static --cflags --libs openssl 2>/dev/null) || return 1
  # shellcheck disable=SC2086
  echo '#include <openssl/ssl.h>
        int main(void) { return 0; }' | cc -static -x c -o /dev/null - $flags 2>/dev/null
}

# A Python that the servers' user can run: the first in PATH may be in root's home directory.
has_python() {
  local python
  for python in "$(command -v python3 || true)" /usr/bin/python3 /usr/local/bin/python3; do
    if [ -n "$python" ] && (cd / && as_server "$python" -c '
import ensurepip, ssl, sys, venv
sys.exit(sys.version_info < (3, 9))') >/dev/null 2>&1; then
      return 0
    fi
  done
  return 1
}

# The locale en_US.UTF-8, or what it is made of.
has_locale() {
  [[ $(locale -a 2>/dev/null) == *en_US.utf8* ]] ||
    { have localedef && [ -e /usr/share/i18n/locales/en_US ] &&
      [ -e /usr/share/i18n/charmaps/UTF-8.gz ]; }
}

has_certificates() {
  [ -n "${SSL_CERT_FILE:-}" ] || [ -e /etc/ssl/certs/ca-certificates.crt ] ||
    [ -e /etc/pki/tls/certs/ca-bundle.crt ]
}

# Sets `missing` to what is missing in words, `packages` to the Debian packages that bring it, and
# `by_hand` to what Debian has too old, with the place to get it from.
check() {
  missing=() packages=() by_hand=()
  need() { "$1" || { missing+=("$2"); packages+=("${@:3}"); }; }
  need_program() { have "$1" || { missing+=("$1"); packages+=("${@:2}"); }; }

  if ! has_rust; then
    by_hand+=("Rust $rust or newer (https://rustup.rs)")
  elif ! has_rust_components; then
    by_hand+=("rustfmt and clippy (rustup component add rustfmt clippy)")
  fi
  has_go || by_hand+=("Go $go or newer (https://go.dev/dl)")
  need_program make make
  need has_compiler "a C compiler with static libraries" gcc libc6-dev
  need_program pkg-config pkg-config
  need has_openssl "OpenSSL's static libraries" libssl-dev
  need has_python "a Python 3.9 or newer with venv that every user can run" python3 python3-venv
  need has_locale "the sources of the locale en_US" locales
  need has_certificates "CA certificates" ca-certificates
  need_program setpriv util-linux
  need_program git git
  need_program gzip gzip
  need_program pgbouncer pgbouncer
  need_program promtool prometheus
}

# Prints what is missing in one line, and the commands that install it.
report() {
  local line
  line=$(printf '%s, ' "${missing[@]}" "${by_hand[@]}")
  line="missing: ${line%, }"
  [ ${#packages[@]} = 0 ] || line+="; run as root: apt-get install ${packages[*]}"
  echo "$line" >&2
}

check
if [ ${#by_hand[@]} = 0 ] && [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && have apt-get; then
  echo "installing ${packages[*]}" >&2
  apt-get update -q >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends \
    "${packages[@]}" >&2
  check
fi
[ $((${#missing[@]} + ${#by_hand[@]})) = 0 ] || { report; exit 1; }
