#!/bin/bash
# serve.sh DIR: (re)starts the TAP service alone, DaCHS, in the folder that start.sh has filled; PostgreSQL runs already.
set -euo pipefail
dir=$(realpath "$1")
as=()
if [ "$(id -u)" = 0 ]; then as=(runuser -u postgres --); fi
url=$(sed -n 's/^serverURL: //p' "$dir/gavo.rc")
export HOME=$dir GAVOSETTINGS=$dir/gavo.rc GAVOCUSTOM=/nonexistent PYTHONWARNINGS=ignore
PGHOST=127.0.0.1 PGPORT=$(sed -n 's/^port = //p' "$dir/pg/postgresql.conf")
export PGHOST PGPORT
cd "$dir"

"${as[@]}" setsid bash -c 'echo $$ >dachs.pid; exec dachs serve start --foreground' >>serve.log 2>&1 </dev/null &
for _ in $(seq 300); do
  if curl -fs -o availability.xml "$url/tap/availability"; then
    echo "TAP $url/tap"
    exit 0
  fi
  sleep 0.2
done
echo "dachs did not answer within 60 s: see $dir/serve.log" >&2
exit 1
