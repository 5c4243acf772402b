#!/bin/sh
# Makes sure that PostgreSQL 15+ and Redis 7+ (or Valkey) are on this machine, by its own package manager: apt-get on
# Debian and its kin, Homebrew on macOS. Says what it does before it does it, and does nothing if both are there.
# Without the right to install, it names the exact command and exits 69. It starts nothing: `carillon dev` and the tests
# run private instances of their own. The one place that installs: the Makefile and `carillon dev` both run this.
set -eu

have_postgres() {
    for directory in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin $(echo "$PATH" | tr ':' ' '); do
        [ -x "$directory/postgres" ] && [ -x "$directory/initdb" ] || continue
        major=$("$directory/postgres" --version | sed 's/.*) \([0-9]*\).*/\1/')
        [ "$major" -ge 15 ] 2>/dev/null && return 0
    done
    return 1
}

have_redis() {
    for name in redis-server valkey-server; do
        for directory in /opt/homebrew/bin /usr/local/bin $(echo "$PATH" | tr ':' ' '); do
            [ -x "$directory/$name" ] || continue
            major=$("$directory/$name" --version | sed 's/.*v=\([0-9]*\).*/\1/')
            [ "$major" -ge 7 ] 2>/dev/null && return 0
        done
    done
    return 1
}

missing_apt=""
missing_brew=""
have_postgres || { missing_apt="$missing_apt postgresql"; missing_brew="$missing_brew postgresql@17"; }
have_redis || { missing_apt="$missing_apt redis-server"; missing_brew="$missing_brew redis"; }
[ -z "$missing_apt" ] && exit 0

if [ "$(uname)" = Darwin ]; then
    if ! command -v brew >/dev/null; then
        echo "Missing:$missing_brew. Install Homebrew (https://brew.sh), then: brew install$missing_brew" >&2
        exit 69
    fi
    echo "Installing by Homebrew: brew install$missing_brew"
    # shellcheck disable=SC2086 # a list of packages
    exec brew install $missing_brew
fi

if ! command -v apt-get >/dev/null; then
    echo "Missing:$missing_apt. This is no Debian: install PostgreSQL 15+ and Redis 7+ by your package manager." >&2
    exit 69
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "Missing:$missing_apt. Without the right to install here; as root run:" >&2
    echo "    apt-get update && apt-get install -y$missing_apt" >&2
    exit 69
fi
echo "Installing by apt-get:$missing_apt (the system's own instances of them, if it starts any, are not used)"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -q update
# shellcheck disable=SC2086 # a list of packages
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing_apt
if ! have_postgres || ! have_redis; then
    echo "This system's packages are too old: PostgreSQL 15+ and Redis 7+ are needed (Debian 12, Ubuntu 24.04 or newer)." >&2
    exit 69
fi
