#!/usr/bin/env bash
# Installs what compare.sh compares with, on Debian: `benches/install-peers.sh [PEER...]`, default restic rustic borg
# bupstash, and the plain tools. As root, for what comes from apt.
#
#   plain tools, restic    apt
#   rustic, bupstash       cargo, compiled here (some minutes each), to PREFIX/bin
#   borg                   PyPI, in an environment of its own, PREFIX/borg, with a link in PREFIX/bin
#
# PREFIX is /usr/local unless set. To compare.sh, RESTIC=…, RUSTIC=…, BORG=… and BUPSTASH=… name programs elsewhere.
set -euo pipefail

PREFIX=${PREFIX:-/usr/local}
(($#)) || set -- restic rustic borg bupstash

apt() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

from_cargo() {
  command -v cargo >/dev/null || { echo "install-peers.sh: $1 needs Rust: see https://rustup.rs" >&2; exit 1; }
  nice cargo install --quiet --locked --root "$PREFIX" "$1"
}

mkdir -p "$PREFIX/bin"
apt-get update -qq
apt b3sum findutils python3 sqlite3 tar zstd
for peer in "$@"; do
  case $peer in
    restic) apt restic ;;
    rustic)
      apt build-essential
      from_cargo rustic-rs
      ;;
    bupstash)
      apt build-essential libsodium-dev pkg-config
      from_cargo bupstash
      ;;
    borg)
      apt python3-venv
      python3 -m venv "$PREFIX/borg"
      "$PREFIX/borg/bin/pip" install --quiet borgbackup
      ln -sf ../borg/bin/borg "$PREFIX/bin/borg"
      ;;
    *) echo "install-peers.sh: unknown: $peer" >&2; exit 1 ;;
  esac
done
