#!/bin/sh
# Makes sure that what Carillon needs is on this machine, by its own package manager (apt-get on Debian and its kin,
# Homebrew on macOS): PostgreSQL 15+ and Redis 7+ (or Valkey), for a build a C compiler, which Rust links with, and for tests
# PgBouncer and faketime. Says what it does before it does it, and does nothing if all is there. Without the right to install, it
# names the exact command and exits 69. It starts nothing: `carillon dev` and the tests run private servers of their own. The one
# place that installs.
#
# Arguments: `servers`, or `servers-unless-given` (not those that CARILLON_POSTGRES_URL and CARILLON_REDIS_URL name);
# `compiler` besides; `contract`: Python with venv, and npm, which fetch the tools of `make contract`; `pooler`: PgBouncer, which
# tests put before Postgres; `clocks`: Debian's faketime, by which the soak gives each process a wall clock of its own. Without it the soak runs all the same and says so: it alone never ends in an error.
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

have_pooler() {
    for directory in /usr/sbin /usr/bin /opt/homebrew/bin /usr/local/bin $(echo "$PATH" | tr ':' ' '); do
        [ -x "$directory/pgbouncer" ] && return 0
    done
    return 1
}

have_python() {
    command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null
}

postgres_given=""
redis_given=""
compiler=""
contract=""
pooler=""
clocks=""
for argument in "$@"; do
    case "$argument" in
    servers) ;;
    servers-unless-given)
        postgres_given="${CARILLON_POSTGRES_URL:-}"
        redis_given="${CARILLON_REDIS_URL:-}"
        ;;
    compiler) compiler=yes ;;
    contract) contract=yes ;;
    pooler) pooler=yes ;;
    clocks) clocks=yes ;;
    *)
        echo "setup.sh: unknown argument $argument" >&2
        exit 64
        ;;
    esac
done

missing_apt=""
missing_brew=""
instead=""
if [ -n "$compiler" ] && ! command -v cc >/dev/null; then
    if [ "$(uname)" = Darwin ]; then
        echo "Missing: a C compiler, which Rust links with. Run: xcode-select --install" >&2
        exit 69
    fi
    missing_apt="$missing_apt gcc libc6-dev"
fi
if [ -z "$postgres_given" ] && ! have_postgres; then
    missing_apt="$missing_apt postgresql"
    missing_brew="$missing_brew postgresql@17"
    instead="$instead CARILLON_POSTGRES_URL"
fi
if [ -z "$redis_given" ] && ! have_redis; then
    missing_apt="$missing_apt redis-server"
    missing_brew="$missing_brew redis"
    instead="$instead CARILLON_REDIS_URL"
fi
if [ -n "$pooler" ] && ! have_pooler; then
    missing_apt="$missing_apt pgbouncer"
    missing_brew="$missing_brew pgbouncer"
fi
if [ -n "$contract" ] && ! have_python; then
    missing_apt="$missing_apt python3-venv"
    missing_brew="$missing_brew python"
fi
if [ -n "$contract" ] && ! command -v npm >/dev/null; then
    missing_apt="$missing_apt npm"
    missing_brew="$missing_brew node"
fi
faketime=""
if [ -n "$clocks" ] && ! ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then
    faketime=" faketime"
fi
[ -z "$missing_apt$faketime" ] && exit 0
if [ -z "$missing_apt" ] && { [ "$(uname)" = Darwin ] || ! command -v apt-get >/dev/null; }; then
    echo "faketime is not here: processes of the soak share the machine's wall clock."
    exit 0
fi
case " $* " in
*" servers-unless-given "*) ;;
*) instead="" ;;
esac

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
elif [ -z "$missing_apt" ]; then
    echo "faketime is not here: processes of the soak share the machine's wall clock. As root: apt-get install -y faketime"
    exit 0
else
    echo "Missing:$missing_apt. You may not install packages here; as root run:" >&2
    echo "    apt-get update && apt-get install -y$missing_apt" >&2
    [ -z "$instead" ] || echo "or name a server of your own by:$instead" >&2
    exit 69
fi
echo "Installing by apt-get:$missing_apt$faketime (servers that the system starts of them are not used)"
export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086 # a list of packages
    $as_root apt-get -q update && $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends $missing_apt $faketime
}
if [ -z "$missing_apt" ]; then
    install || echo "faketime cannot be installed: processes of the soak share the machine's wall clock."
    exit 0
fi
install
if [ -z "$postgres_given" ] && ! have_postgres || [ -z "$redis_given" ] && ! have_redis; then
    echo "This system's packages are too old: PostgreSQL 15+ and Redis 7+ are needed (Debian 12, Ubuntu 24.04 or newer)." >&2
    exit 69
fi
