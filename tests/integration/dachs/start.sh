#!/bin/bash
# start.sh DIR: a real TAP service on loopback, GAVO DaCHS on PostgreSQL, serving the tables that table.py wrote into DIR.
#
# Prints "TAP http://127.0.0.1:PORT/tap" last. stop.sh DIR ends both servers and removes DIR; a start that fails leaves its
# logs in DIR and needs stop.sh too. Environment: TAP_PORT and PG_PORT (free ports of 127.0.0.1), HARD_MAXREC (the most rows
# of one answer), TAP_USER and TAP_PASSWORD (somebody who may log in). Installs nothing: it needs dachs, initdb, pg_sphere and q3c (.ci/run names the Debian packages).
set -euo pipefail
here=$(realpath "${BASH_SOURCE%/*}")
dir=$(realpath "$1")
: "${TAP_PORT:=8080}" "${PG_PORT:=54329}" "${HARD_MAXREC:=20000}" "${TAP_USER:=cecilia}" "${TAP_PASSWORD:=sigma}"
pg=/usr/lib/postgresql/15/bin
extensions=/usr/share/postgresql/15/extension

# Neither server runs as root.
user=$(id -un) as=()
if [ "$user" = root ]; then user=postgres as=(runuser -u postgres --); fi
chown -R "$user" "$dir"
group=$(id -gn "$user")
export HOME=$dir GAVOSETTINGS=$dir/gavo.rc GAVOCUSTOM=/nonexistent PGHOST=127.0.0.1 PGPORT=$PG_PORT PYTHONWARNINGS=ignore
cd "$dir"

"${as[@]}" "$pg/initdb" -D pg -U "$user" --auth=trust -E UTF8 --locale=C.UTF-8 --no-sync >initdb.log
cat >>pg/postgresql.conf <<CONF
listen_addresses = '127.0.0.1'
port = $PG_PORT
unix_socket_directories = '$dir'
fsync = off
CONF
"${as[@]}" "$pg/pg_ctl" -D pg -w -l pg.log start >/dev/null
"${as[@]}" "$pg/createdb" -U "$user" --encoding=UTF-8 --template template0 gavo

# CREATE EXTENSION pg_sphere fails on this PostgreSQL: two obsolete operators name commutators that others have since taken
# (pgsphere issue 85). Load its script without those two, and enter it as the extension it is, so that dachs finds it there.
{
  echo "BEGIN;"
  perl -0pe 's/^\\echo.*$//m; s/MODULE_PATHNAME/\$libdir\/pg_sphere/g; s/CREATE OPERATOR @ \([^;]*\bsmoc\b[^;]*\);//g' \
    "$extensions/pg_sphere--1.2.0.sql"
  echo "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
        SELECT 1000000, 'pg_sphere', r.oid, 'public'::regnamespace, true, '1.2.0' FROM pg_roles r WHERE rolname = current_user;"
  echo "COMMIT;"
} | "${as[@]}" "$pg/psql" -q -v ON_ERROR_STOP=1 -U "$user" gavo >pgsphere.log 2>&1

cat >gavo.rc <<CONF
[general]
rootDir: $dir/gavo
group: $group
gavoGroup: $group
[web]
bindAddress: 127.0.0.1
serverPort: $TAP_PORT
serverURL: http://127.0.0.1:$TAP_PORT
user: $user
sitename: loopback TAP
[async]
defaultMAXREC: $HARD_MAXREC
hardMAXREC: $HARD_MAXREC
[ivoa]
authority: x-gaiadask
CONF
"${as[@]}" dachs init -d "host=127.0.0.1 port=$PG_PORT user=$user dbname=gavo" >init.log 2>&1
"${as[@]}" dachs admin adduser "$TAP_USER" "$TAP_PASSWORD" >adduser.log 2>&1
"${as[@]}" mkdir -p gavo/inputs/gaiadr2
"${as[@]}" cp q.rd gavo/inputs/gaiadr2/q.rd
"${as[@]}" dachs imp gaiadr2/q >imp.log 2>&1
for rows in *.csv; do
  table=gaiadr2.${rows%.csv}
  "${as[@]}" "$pg/psql" -q -v ON_ERROR_STOP=1 -U gavoadmin gavo \
    -c "\\copy $table FROM '$rows' WITH (FORMAT csv)" -c "ANALYZE $table" >>copy.log 2>&1
done

exec "$here/serve.sh" "$dir"
