#!/usr/bin/env bash
# usage: tests/heavy/cluster.sh [SNAPSHOT]
#
# A run against a real distributed object store: Ceph with one monitor, three stores that keep each object twice, and two
# gateways for S3. A store is killed in the middle of a create and in the middle of a restore, and a gateway in the middle
# of another create; it comes back each time. Everything must come back identical, and a check of all data find nothing.
# Takes some minutes, and is not part of ./test, which installs what it needs.
set -euo pipefail
snapshot=$(realpath "${1:-target/release/snapshot}")
tools=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../it/servers")
dir=$(mktemp -d "${TMPDIR:-/tmp}/snapshot-cluster-XXXXXX")
read -r mon first_gateway second_gateway < <(python3 -c '
import socket
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in taken))')

declare -A process
finish() {
  trap - EXIT
  for name in "${!process[@]}"; do kill -9 "${process[$name]}" 2>/dev/null || :; done
  wait 2>/dev/null || :
  cd / && rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM
say() { echo "$(date +%T) $*"; }

cd "$dir"
mkdir mon osd-0 osd-1 osd-2 rgw-a rgw-b
export CEPH_CONF=$dir/ceph.conf
cat >ceph.conf <<END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v2:127.0.0.1:$mon/0]
public_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_mon_client_mode = crc
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = $dir/keyring
log_file = $dir/\$name.log
admin_socket =
crash_dir = $dir/crash
run_dir = $dir
mon_data_avail_crit = 1
mon_osd_min_down_reporters = 1
osd_heartbeat_interval = 1
osd_heartbeat_grace = 4
osd_pool_default_size = 2
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_create = true
bluestore_block_size = 4294967296
[mon.a]
mon_data = $dir/mon
[osd]
osd_data = $dir/osd-\$id
[client.rgw.a]
rgw_data = $dir/rgw-a
rgw_frontends = beast endpoint=127.0.0.1:$first_gateway tcp_nodelay=1
[client.rgw.b]
rgw_data = $dir/rgw-b
rgw_frontends = beast endpoint=127.0.0.1:$second_gateway tcp_nodelay=1
END

serve() {
  local name=$1
  shift
  setpriv --pdeathsig KILL "$@" </dev/null >>output 2>&1 &
  process[$name]=$!
}
start() {
  case $1 in
    osd-*) serve "$1" ceph-osd -f -i "${1#osd-}" ;;
    rgw-*) serve "$1" radosgw -f -n "client.rgw.${1#rgw-}" --no-mon-config ;;
  esac
}
kill_it() {
  say "$1 is killed"
  kill -9 "${process[$1]}"
  wait "${process[$1]}" 2>/dev/null || :
}
answers() {
  for _ in $(seq 600); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 output ./*.log >&2
  return 1
}

say "a cluster begins"
fsid=$(sed -n 's/^fsid = //p' ceph.conf)
{
  ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon/0]" monmap
  ceph-mon --mkfs -i a --monmap monmap --keyring keyring
  serve mon ceph-mon -f -i a
  for n in 0 1 2; do
    uuid=$(cat /proc/sys/kernel/random/uuid)
    timeout 60 ceph osd new "$uuid"
    ceph-osd --mkfs -i "$n" --osd-uuid "$uuid"
    start "osd-$n"
  done
  timeout 120 radosgw-admin user create --uid=owner --display-name=owner \
    --access-key=OWNER --secret-key=secret --no-mon-config
} >>output 2>&1 </dev/null || { tail -n 20 output >&2; exit 1; }
start rgw-a
start rgw-b
answers $first_gateway
answers $second_gateway

export AWS_ACCESS_KEY_ID=OWNER AWS_SECRET_ACCESS_KEY=secret AWS_REGION=us-east-1
export AWS_ENDPOINT_URL=http://127.0.0.1:$first_gateway SNAPSHOT_REPO=s3://cluster/app SNAPSHOT_KEY_FILE=$dir/key
export XDG_CACHE_HOME=$dir/cache
python3 "$tools/s3.py" "$AWS_ENDPOINT_URL" cluster make
"$snapshot" init -q

mkdir data
more() {
  for n in $(seq 20); do head -c 8M /dev/urandom >"data/$1-$n"; done
  sqlite3 data/app.db "CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT hex(randomblob(50)) FROM n;"
}
# Runs a command; a second or two later something is killed, which comes back some seconds after that.
while_killing() {
  local victim=$1 running
  shift
  "$@" &
  running=$!
  sleep 1.5
  kill -0 $running 2>/dev/null || { say "$* was over too soon"; exit 1; }
  kill_it "$victim"
  sleep 8
  start "$victim"
  say "$victim is back"
  wait $running
}
same() {
  diff -r --no-dereference data "restored/data"
  rm -rf restored
}

more first
while_killing osd-1 "$snapshot" create data -q --limit-upload 20M
say "created, while a store was killed"
while_killing osd-2 "$snapshot" restore latest --target restored -q --limit-download 20M
same
say "restored, while a store was killed"
more second
while_killing rgw-a "$snapshot" create data -q --limit-upload 20M
answers $first_gateway
say "created, while the gateway was killed"
export AWS_ENDPOINT_URL=http://127.0.0.1:$second_gateway
"$snapshot" restore latest --target restored -q --no-cache
same
"$snapshot" check --read-data --databases -q
rm data/first-*
"$snapshot" create data -q
"$snapshot" prune -q --keep-last 1 --instant
"$snapshot" check --read-data -q --no-cache
"$snapshot" restore latest --target restored -q
same
say "well"
