#!/bin/sh
# `make contract`: is the API what its document says? A gateway with private servers, tools pinned in requirements.txt, all of it under
# target/contract and gone at the end. The document is OpenAPI 3.1; schemathesis finds no 5xx, no status, content type or answer that is
# not in it, by a fixed seed; a client generated from it creates a job and reads it. Before it buf: the protos are as their style has
# them, and break nobody who has those of baseline.binpb. EXAMPLES: requests a call (20), SEED (1). With `baseline` as its argument it
# renews that file, which is for a change that is meant to break, and for a release. And JSON is held to protobuf's own for Python; with
# `oracle` what that answers is written anew.
set -eu
cd "$(dirname "$0")/../.."
here=$PWD/integration-tests/contract
work=$PWD/target/contract
venv=$work/venv
mkdir -p "$work"
if ! cmp -s "$here/package-lock.json" "$work/installed-lock.json"; then
    rm -rf "$work/node_modules"
    cp "$here/package.json" "$here/package-lock.json" "$work/"
    npm ci --prefix "$work" --no-audit --no-fund --loglevel=error
    cp "$here/package-lock.json" "$work/installed-lock.json"
fi
buf=$work/node_modules/.bin/buf
if [ "${1:-}" = baseline ]; then
    exec "$buf" build proto --output "$here/baseline.binpb"
fi
"$buf" lint proto
"$buf" breaking proto --against "$here/baseline.binpb"
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
# JSON, as the reference reads and writes it: is that still what the table says which the gateway's own tests hold it to?
oracle=$PWD/services/gateway/tests/oracle
"$buf" build "$oracle" --exclude-source-info --output "$work/kinds.binpb"
"$buf" build proto --output "$work/carillon.binpb"
mode=--check
if [ "${1:-}" = oracle ]; then
    cp "$work/kinds.binpb" "$oracle/kinds.binpb"
    mode=--renew
fi
cmp "$work/kinds.binpb" "$oracle/kinds.binpb"
"$venv/bin/python" "$oracle/reference.py" "$mode" "$oracle/cases.txt" "$work/kinds.binpb" "$work/carillon.binpb"
if [ "$mode" = --renew ]; then exit 0; fi
port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
sh deploy/clean-data.sh "$work/data" >/dev/null
rm -rf "$work/client"
# Servers of its own, whatever the surroundings name: what is sent is made to do harm.
env -u CARILLON_POSTGRES_URL -u CARILLON_REDIS_URL target/debug/carillon dev --with-parent --no-samples \
    --port "$port" --data "$work/data" --dispatchers 1 --executors 1 >"$work/carillon.log" 2>&1 &
carillon=$!
end() {
    kill "$carillon" 2>/dev/null || true
    wait "$carillon" 2>/dev/null || true
    sh deploy/clean-data.sh "$work/data" >/dev/null
}
trap end EXIT
trap "exit 130" INT TERM
"$venv/bin/python" "$here/until_ready.py" "http://127.0.0.1:$port/api/v1/scheduler/jobs" "$carillon" || {
    cat "$work/carillon.log" >&2
    exit 1
}
"$venv/bin/python" -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' \
    "http://127.0.0.1:$port/openapi.json" >"$work/openapi.json"
"$venv/bin/openapi-spec-validator" "$work/openapi.json"
# It keeps what it learns in the directory that it is in.
export SCHEMATHESIS_HOOKS="$here/hooks.py"
(cd "$work" && "$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run openapi.json --url "http://127.0.0.1:$port" \
    --max-examples "${EXAMPLES:-20}" --seed "${SEED:-1}")
"$venv/bin/openapi-python-client" generate --path "$work/openapi.json" --output-path "$work/client" --meta none >"$work/client.log" ||
    { cat "$work/client.log" >&2; exit 1; }
"$venv/bin/python" "$here/create_and_read.py" "$work" "http://127.0.0.1:$port"
