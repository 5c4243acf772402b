#!/bin/sh
# Shows a row of docs/reliability.md (make fault ROW=17): runs the tests that it names, then its faults at random, under load, for
# a minute. With --print only says what it would run.
set -eu
print=
[ "${1-}" = --print ] && { print=1; shift; }
row=${1:?which row of docs/reliability.md? make fault ROW=17}
cd "$(dirname "$0")/.."
line=$(grep "^| $row |" docs/reliability.md) || { echo "docs/reliability.md has no row $row" >&2; exit 2; }
words=$(printf '%s\n' "$line" | grep -o '`[^`]*`' | tr -d '`' || true)
# The last column.
kinds=$(printf '%s\n' "$line" | sed 's/ *|$//; s/.*|//' | grep -o '`[^`]*`' | tr -d '`' | paste -sd, -)

run() {
    echo "$*"
    if [ -z "$print" ]; then "$@"; fi
}

# The package that a source file belongs to.
package_of() {
    directory=$(dirname "$1")
    while [ ! -e "$directory/Cargo.toml" ]; do directory=$(dirname "$directory"); done
    sed -n 's/^name = "\(.*\)"/\1/p' "$directory/Cargo.toml" | head -1
}

shown=
if [ -z "$print" ]; then "${CARGO:-cargo}" build --workspace --bins; fi
for word in $(printf '%s\n' "$words" | grep '::' || true); do
    file=${word%%::*} test=${word##*::}
    source=$(find libs services integration-tests -path "*/$file" -exec grep -l "fn $test(" {} + | head -1)
    run "${CARGO:-cargo}" test -p "$(package_of "$source")" --tests -- "$test"
    shown=1
done
# A file of tests, whole.
for file in $(printf '%s\n' "$words" | grep '^[a-z_/]*\.rs$' || true); do
    source=$(find libs services integration-tests -path "*/$file" | head -1)
    run "${CARGO:-cargo}" test -p "$(package_of "$source")" --tests -- "$(basename "$file" .rs)"
    shown=1
done
printf '%s\n' "$words" | grep '^make ' | while read -r command; do run sh -c "$command"; done
if [ -n "$kinds" ]; then
    run target/debug/carillon-soak --minutes 1 --only "$kinds"
    shown=1
fi
case "$words" in *make*) shown=1 ;; esac
[ -n "$shown" ] || echo "nothing yet: $(printf '%s\n' "$line" | cut -d'|' -f4,5)"
