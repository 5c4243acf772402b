#!/bin/sh
# Forgets what `carillon dev` has kept in a directory. Refused while it runs there: the lock is held.
# Argument: the directory.
set -eu
data=$1
if [ -e "$data/owner.lock" ] && command -v flock >/dev/null && ! flock -n "$data/owner.lock" true; then
    echo "carillon dev is running here: stop it first" >&2
    exit 1
fi
# Where Postgres lives if root runs it in a place that its user may not get to.
place="$(cat "$data/postgres.place" 2>/dev/null || true)"
case "$place" in
/*/carillon-dev-*)
    echo "rm -rf $place"
    rm -rf "$place"
    ;;
esac
echo "rm -rf $data"
rm -rf "$data"
