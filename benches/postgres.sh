#!/usr/bin/env bash
# What a night adds for a PostgreSQL database of which 1 % of the rows are updated, against restic with the same dumps.
#
#   benches/postgres.sh [NIGHTS]        5 nights by default; SNAPSHOT names the program, target/release/snapshot by default
#
# Needs restic, and PostgreSQL's programs along the PATH or in /usr/lib/postgresql. As root the server runs as the user
# postgres; it listens on a socket in a temporary directory only. Two databases: that of pgbench at scale 10 (a million
# rows of 97 bytes, which compress a hundredfold at first, since all balances are 0) and one of half a million orders
# with text (some 400 bytes a row). The rows to update are drawn at random; a vacuum follows, so that the next night's
# rows come to lie in the gaps that this one left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nights=${1:-5}
program=${SNAPSHOT:-target/release/snapshot}
[[ -x $program ]] || { echo "$program is missing: cargo build --release" >&2; exit 1; }
program=$(realpath "$program")
command -v restic >/dev/null || { echo "restic is missing: apt-get install restic" >&2; exit 1; }
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
export PATH=${bin:+$bin:}$PATH LC_ALL=C.UTF-8
command -v initdb >/dev/null || { echo "PostgreSQL's server is missing: apt-get install postgresql" >&2; exit 1; }

dir=$(mktemp -d)
as=()
((EUID)) || { as=(setpriv --reuid postgres --regid postgres --clear-groups); chown postgres "$dir"; }
cleanup() {
  "${as[@]}" pg_ctl -D "$dir/data" -m immediate -w stop >/dev/null 2>&1 || true
  rm -rf "$dir"
}
trap cleanup EXIT
export PGHOST=$dir PGUSER=postgres HOME=$dir
(
  cd "$dir"
  "${as[@]}" initdb -D "$dir/data" -U postgres --auth=trust -E UTF8 >/dev/null
  "${as[@]}" pg_ctl -D "$dir/data" -l "$dir/log" -w -o "-k $dir -c listen_addresses= -c fsync=off -c autovacuum=off" start >/dev/null
)
sql() { psql -X -q -v ON_ERROR_STOP=1 "$@" >/dev/null; }
createdb bench
pgbench -i -q -s 10 bench 2>/dev/null
createdb orders
sql orders <<'SQL'
select setseed(0.5);
create table words as select i, substr(md5(i || 'w'), 1, 3 + i % 8) as word from generate_series(1, 5000) i;
alter table words add primary key (i);
create table orders (id bigint primary key, customer int, title text, body text, price numeric(10, 2), created timestamptz);
insert into orders select i, (random() * 10000)::int, 'Order ' || i || ' ' || md5(random()::text),
  (select string_agg(word, ' ') from words where words.i = any (array(
    select (power(random(), 3) * 4999)::int + 1 from generate_series(1, 20 + g.i % 40)))),
  (random() * 10000)::numeric(10, 2), timestamptz '2026-01-01' + i * interval '7 seconds'
from generate_series(1, 500000) g (i);
SQL

export SNAPSHOT_KEY_FILE=$dir/key RESTIC_PASSWORD=x
for db in bench orders; do
  "$program" -q -r "$dir/$db.snapshot" init --key-file "$dir/key.$db" 2>/dev/null
  restic -q -r "$dir/$db.restic" init --repository-version 2
done
night() {
  case $1 in
    bench) sql bench -c "select setseed(0.01 * $2)" -c "update pgbench_accounts set abalance = abalance + (random() * 10000)::int - 5000
      where aid in (select (random() * 999999)::int + 1 from generate_series(1, 10000))" -c "vacuum pgbench_accounts" ;;
    orders) sql orders -c "select setseed(0.01 * $2)" -c "update orders set price = (random() * 10000)::numeric(10, 2)
      where id in (select (random() * 499999)::int + 1 from generate_series(1, 5000))" -c "vacuum orders" ;;
  esac
}
size() { du -sb "$1" | cut -f1; }
printf '%-8s %5s %12s %12s %12s %8s\n' database night dump snapshot restic ratio
for db in bench orders; do
  before=(0 0)
  for ((n = 0; n <= nights; n++)); do
    ((n == 0)) || night "$db" "$n"
    "$program" -q -r "$dir/$db.snapshot" --key-file "$dir/key.$db" create --postgres "postgresql:///$db?host=$dir"
    pg_dump -Fc -Z0 "$db" | restic -q -r "$dir/$db.restic" backup --stdin --stdin-filename "$db.dump"
    now=("$(size "$dir/$db.snapshot")" "$(size "$dir/$db.restic")")
    ours=$((now[0] - before[0])) theirs=$((now[1] - before[1]))
    bytes=$("$program" -q --json -r "$dir/$db.snapshot" --key-file "$dir/key.$db" list | grep -o '"bytes":[0-9]*' | tail -1 | cut -d: -f2)
    printf '%-8s %5s %12s %12s %12s %8s\n' "$db" "$n" "$bytes" "$ours" "$theirs" "1/$(awk "BEGIN { printf \"%.1f\", $theirs / $ours }")"
    before=("${now[@]}")
  done
done
