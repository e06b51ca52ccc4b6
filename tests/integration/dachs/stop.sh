#!/bin/bash
# stop.sh DIR: ends the TAP service and the PostgreSQL that start.sh started in DIR, as far as it got, and removes DIR.
set -uo pipefail
dir=$(realpath "$1")
as=()
[ "$(id -u)" = 0 ] && as=(runuser -u postgres --)
cd /
if [ -s "$dir/dachs.pid" ]; then
  pid=$(cat "$dir/dachs.pid")
  kill "$pid"
  # What still writes into the folder would keep it from being removed.
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
fi
[ -s "$dir/pg/postmaster.pid" ] && "${as[@]}" /usr/lib/postgresql/15/bin/pg_ctl -D "$dir/pg" -m immediate -w stop
rm -rf "$dir"
