#!/usr/bin/env bash
# usage: sshd.sh DIR PORT
#
# A real sshd on the loopback with a configuration, a host key and a client's key of its own, for this user. Says "ready"
# when it answers; `ssh -F DIR/ssh_config` logs in. Then each line of standard input is an order, answered with "done":
# `stop` it with all its connections, `start` it, or `rekey`, which gives it another host key. When standard input ends,
# all of it ends and DIR goes.
set -euo pipefail
dir=$1 port=$2
trap '' INT

server=
# A process and all that came of it, youngest first.
family() {
  local child
  for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do family "$child"; done
  echo "$1"
}
stop() {
  [[ $server ]] || return 0
  # shellcheck disable=SC2046 # Several words.
  kill -9 $(family "$server") 2>/dev/null || :
  wait "$server" 2>/dev/null || :
  server=
}
finish() {
  trap - EXIT
  stop
  cd / && rm -rf "$dir"
}
trap finish EXIT

cd "$dir"
keygen() { ssh-keygen -q -t ed25519 -N '' -C "$1" -f "$1" </dev/null >/dev/null; }
keygen host_key
keygen client_key
cp client_key.pub authorized_keys
# The same name for whatever port leads here.
echo "snapshot-test-server $(cut -d' ' -f1-2 host_key.pub)" >known_hosts
cat >sshd_config <<END
ListenAddress 127.0.0.1
Port $port
HostKey $dir/host_key
AuthorizedKeysFile $dir/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
END
cat >ssh_config <<END
Host *
  IdentityFile $dir/client_key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile $dir/known_hosts
  GlobalKnownHostsFile /dev/null
  HostKeyAlias snapshot-test-server
END
# Where it puts itself for the part that needs no rights.
((EUID != 0)) || mkdir -p /run/sshd

start() {
  setpriv --pdeathsig KILL "$(PATH=$PATH:/usr/sbin type -P sshd)" -D -e -f "$dir/sshd_config" </dev/null >>output 2>&1 &
  server=$!
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  tail -n 20 output >&2
  return 1
}
start
echo ready

while read -r order; do
  case $order in
    stop) stop ;;
    start) start ;;
    rekey)
      stop
      rm host_key host_key.pub
      keygen host_key
      start
      ;;
  esac
  echo done
done
