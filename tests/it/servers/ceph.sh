#!/usr/bin/env bash
# usage: ceph.sh DIR MON_PORT S3_PORT TLS_PORT
#
# A real S3 server on the loopback: Ceph's RADOS Gateway over one monitor and one object store in memory, in the
# foreground and without authentication among each other. Says "ready" when it answers, with a user whose keys are in
# DIR/keys; by TLS too, with a certificate for 127.0.0.1 that DIR/authority.pem vouches for. Then each line of standard input is an order, answered with "done": `stop` and `start` the gateway, or
# `admin ARGS` for radosgw-admin. When standard input ends, all of it ends and DIR goes.
set -euo pipefail
dir=$1 mon=$2 port=$3 tls=$4
trap '' INT

processes=()
finish() {
  trap - EXIT
  ((${#processes[@]})) && kill -9 "${processes[@]}" 2>/dev/null
  wait 2>/dev/null
  cd / && rm -rf "$dir"
}
trap finish EXIT

cd "$dir"
mkdir mon osd rgw
fsid=$(cat /proc/sys/kernel/random/uuid)
# A gateway asks for a secure connection to its monitor, which there is not without authentication; short intervals of
# the monitor save some twenty seconds.
cat >ceph.conf <<END
[global]
fsid = $fsid
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
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
[mon.a]
mon_data = $dir/mon
[osd.0]
osd_data = $dir/osd
[client.rgw]
rgw_data = $dir/rgw
rgw_frontends = beast endpoint=127.0.0.1:$port ssl_endpoint=127.0.0.1:$tls ssl_certificate=$dir/server.pem ssl_private_key=$dir/server.key tcp_nodelay=1
END
export CEPH_CONF=$dir/ceph.conf

# Starts a server that does not outlive this shell, whatever ends it.
serve() {
  setpriv --pdeathsig KILL "$@" </dev/null >>"$dir/output" 2>&1 &
  processes+=($!)
}

# Waits until the gateway answers; fails when it has ended.
answers() {
  for _ in $(seq 300); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
    kill -0 "$gateway" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 output client.rgw.log >&2
  return 1
}

start() {
  serve radosgw -f -n client.rgw --no-mon-config
  gateway=$!
  answers
}

{
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=test authority' \
    -keyout authority.key -out authority.pem
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=test server' -keyout server.key -out request.pem
  openssl x509 -req -in request.pem -CA authority.pem -CAkey authority.key -CAcreateserial -days 30 \
    -extfile <(echo 'subjectAltName = IP:127.0.0.1') -out server.pem
  ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon/0]" monmap
  ceph-mon --mkfs -i a --monmap monmap --keyring keyring
  serve ceph-mon -f -i a
  uuid=$(cat /proc/sys/kernel/random/uuid)
  timeout 60 ceph osd new "$uuid"
  ceph-osd --mkfs -i 0 --osd-uuid "$uuid"
  serve ceph-osd -f -i 0
  timeout 60 radosgw-admin user create --uid=owner --display-name=owner \
    --access-key=OWNER --secret-key=secret/of+the/owner --no-mon-config
} >>output 2>&1 </dev/null || { tail -n 20 output >&2; exit 1; }
start
echo ready

while read -r order arguments; do
  case $order in
    stop)
      kill -9 "$gateway"
      wait "$gateway" 2>/dev/null || :
      ;;
    start) start ;;
    # shellcheck disable=SC2086 # Several words.
    admin) timeout 60 radosgw-admin $arguments --no-mon-config >>output 2>&1 </dev/null || tail -n 20 output >&2 ;;
  esac
  echo done
done
