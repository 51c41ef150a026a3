#!/usr/bin/env bash
# Runs `snapshot`, its peers and plain reference tools side by side over the workload of make_data.py, and prints a
# Markdown table of medians. Progress goes to stderr, every single measurement to a JSON file.
#
#   benches/compare.sh [options] >table.md
#
#   --snapshot BINARY   default target/release/snapshot (cargo build --release)
#   --peers A,B,...     default snapshot,restic: each is benches/peers/NAME.sh
#   --only STAGE,...    some of: first unchanged restore check night prune quiet tiny
#   --rounds N          default 5 for cheap stages, 3 for expensive ones
#   --work DIR          default ${TMPDIR:-/tmp}/snapshot-bench; 25 GB, on the file system to be measured
#   --data DIR          a data set of make_data.py; default WORK/data, made when absent. Never modified.
#   --tmpfs DIR         where restores go, default /dev/shm; 3 GB
#   --json FILE         default target/bench/compare.json
#   --keep              leave the work directory as it is at the end
#
# A peer NAME is a set of shell functions; STATE is its own directory, and its repository has to be STATE/repo:
#
#   NAME_reads              live: the application as it is; staging: the database comes from a `sqlite3 .backup` copy
#   NAME_packages           "command=Debian-package ..." that it needs
#   NAME_version            print name and version, the heading of its column
#   NAME_init               make an empty repository
#   NAME_create PATH...     take a snapshot; NAME_unchanged PATH... the same where nothing has changed
#   NAME_restore TARGET     restore the newest snapshot below TARGET, by absolute path
#   NAME_check              read and verify all data
#   NAME_prune N            keep the N newest snapshots and free the space of the others
#
# They run what is to be measured through `timed COMMAND...` (several are added up); whatever else they do is not
# counted. Within a round all take their turn on the same data, page cache warm, `sync` before each command.
# Sizes are sums of file sizes: what directories take depends on the file system.
set -euo pipefail
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STAGES="first unchanged restore check night prune quiet tiny"
TARGET_DIR=${CARGO_TARGET_DIR:-$HERE/../target}
SNAPSHOT=$TARGET_DIR/release/snapshot
PEERS=snapshot,restic
ONLY=$STAGES
CHEAP_ROUNDS=5
EXPENSIVE_ROUNDS=3
WORK=${TMPDIR:-/tmp}/snapshot-bench
DATA=
TMPFS=/dev/shm
JSON=$TARGET_DIR/bench/compare.json
KEEP=
PRUNED_GENERATIONS=12
KEPT_GENERATIONS=2

say() { echo "$(date +%T) $*" >&2; }
die() { echo "compare.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while (($#)); do
  case $1 in
    -h | --help) usage; exit ;;
    --keep) KEEP=yes; shift; continue ;;
  esac
  (($# > 1)) || die "$1: unknown option, or its value is missing (see --help)"
  case $1 in
    --snapshot) SNAPSHOT=$2 ;;
    --peers) PEERS=$2 ;;
    --only) ONLY=$2 ;;
    --rounds) CHEAP_ROUNDS=$2 EXPENSIVE_ROUNDS=$2 ;;
    --work) WORK=$2 ;;
    --data) DATA=$2 ;;
    --tmpfs) TMPFS=$2 ;;
    --json) JSON=$2 ;;
    *) die "$1: unknown option (see --help)" ;;
  esac
  shift 2
done
read -ra PEERS <<<"${PEERS//,/ }"
read -ra ONLY <<<"${ONLY//,/ }"

# --- before the first measurement

check_needs() {
  local missing=() packages=() pair name
  for name in reference "${PEERS[@]}"; do
    [[ -f $HERE/peers/$name.sh ]] || die "no peer called $name: there is no benches/peers/$name.sh"
    # shellcheck disable=SC1090
    source "$HERE/peers/$name.sh"
    name=${name}_packages
    for pair in ${!name}; do
      command -v "${pair%%=*}" >/dev/null || { missing+=("${pair%%=*}"); packages+=("${pair#*=}"); }
    done
  done
  ((${#missing[@]} == 0)) || die "not installed: ${missing[*]}. On Debian: apt-get install ${packages[*]}"
  for name in "${ONLY[@]}"; do
    [[ " $STAGES " == *" $name "* ]] || die "no stage called $name: there are $STAGES"
  done
  if [[ " ${PEERS[*]} " == *" snapshot "* ]]; then
    [[ -x $SNAPSHOT ]] || die "no binary at $SNAPSHOT: run cargo build --release, or name it with --snapshot"
    SNAPSHOT=$(realpath "$SNAPSHOT")
  fi
}

# need_space DIR GB
need_space() {
  local free
  free=$(df --output=avail -B1000000000 "$1" | tail -n 1)
  ((free >= $2)) || die "$1 has $((free)) GB free and $2 are needed; name another directory (see --help)"
}

cleanup() {
  [[ -z ${OUT-} ]] || rm -rf "$OUT"
  if [[ -n $KEEP ]]; then
    say "kept: ${RUN-}, $DATA"
  else
    [[ -z ${RUN-} ]] || rm -rf "$RUN"
    [[ -z ${MADE_DATA-} ]] || rm -rf "$DATA"
    rmdir "$WORK" 2>/dev/null || true
  fi
}

prepare() {
  mkdir -p "$WORK" "$(dirname "$JSON")"
  WORK=$(realpath "$WORK")
  JSON=$(realpath "$JSON")
  DATA=$(realpath -m "${DATA:-$WORK/data}")
  need_space "$WORK" 25
  need_space "$TMPFS" 3
  trap cleanup EXIT
  trap 'exit 130' INT TERM
  RUN=$(mktemp -d "$WORK/run.XXXXXX")
  OUT=$(mktemp -d "$TMPFS/snapshot-bench.XXXXXX")
  RAW=$RUN/raw.jsonl LIVE=$RUN/live STAGING=$RUN/staging
  if [[ ! -d $DATA ]]; then
    say "making the data set in $DATA"
    MADE_DATA=yes
    python3 "$HERE/make_data.py" make "$DATA" >&2
  fi
  say "copying it to $LIVE"
  mkdir -p "$LIVE" "$STAGING/app" "$RUN/state" "$RUN/saved" "$RUN/tiny"
  cp -a "$DATA/app" "$LIVE/"
  settle
}

describe_machine() {
  local name reads versions=() reading=()
  for name in "${PEERS[@]}"; do
    reads=${name}_reads
    versions+=("$name:$("${name}_version")")
    reading+=("reads_$name=${!reads}")
  done
  record row=meta "date=$(date +%F)" "cores=$(nproc)" \
    "cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "kernel=$(uname -sr)" \
    "memory_gib=$(awk '/^MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)" \
    "filesystem=$(df --output=fstype "$RUN" | tail -n 1)" "load=$LOAD" \
    "peers=$(IFS=,; echo "${versions[*]}")" "${reading[@]}"
  awk '$1 > 0.5 {print "warning: the machine was busy (load " $1 "): the times will not be worth much"}' <<<"$LOAD" >&2
}

# --- measuring

# record KEY=VALUE...: append a record to the raw results
record() { python3 "$HERE/measure.py" "$RAW" "$RUN/log" "$@"; }

# timed COMMAND...: run and record under the current ROW, PEER and ROUND; row "setup" is not reported
timed() {
  sync
  python3 "$HERE/measure.py" "$RAW" "$RUN/log" "row=$ROW" "peer=$PEER" "round=$ROUND" -- "$@"
}

# Long enough for a file's times to count as settled: a write right before a snapshot may always be followed by
# another in the same clock tick, so that the next run would have to read the file again.
settle() { sync; sleep 3; }

# warm PATH...: into the page cache, so that nobody pays for being the first to read
warm() { find "$@" -type f -exec cat {} + >/dev/null; }

# Have a virtual machine get its memory from the host now, not during the first restore into it.
warm_tmpfs() { head -c 2G /dev/zero >"$OUT/zeros"; rm "$OUT/zeros"; }

# repo_bytes: set BYTES to the sum of the repository's file sizes
repo_bytes() {
  BYTES=$(find "$STATE/repo" -type f -printf '%s\n' | awk '{sum += $1} END {printf "%.0f", sum}')
}

# use PEER: make its state the current one, set PATHS to what it reads
use() {
  local reads=$1_reads
  PEER=$1 STATE=$RUN/state/$1
  if [[ ${!reads} == live ]]; then PATHS=("$LIVE/app"); else PATHS=("$STAGING/app/data.db" "$LIVE/app/storage"); fi
}

# fresh: an empty repository in STATE
fresh() {
  rm -rf "$STATE"
  mkdir -p "$STATE"
  "${PEER}_init"
}

# Every peer has a first snapshot of the data; only the stages run which were asked for.
ensure_first() {
  ROW=setup ROUND=0
  for name in reference "${PEERS[@]}"; do
    use "$name"
    [[ -d $STATE ]] || { say "$name: first snapshot"; fresh; "${name}_create" "${PATHS[@]}"; }
  done
}

# Keep the states, and bring one back unharmed; in place, since caches may go by the repository's path.
save_states() { rm -rf "$RUN/saved"; cp -a "$RUN/state" "$RUN/saved"; }
bring_back() { rm -rf "$STATE"; cp -a "$RUN/saved/$PEER" "$STATE"; }
bring_back_all() { rm -rf "$RUN/state"; mv "$RUN/saved" "$RUN/state"; }

# same RESTORED SOURCE: dies unless they are equal
same() {
  diff -rq --no-dereference "$1" "$2" >&2 || die "$PEER restored something else than $2"
}

# restore_to_tmpfs PATH...: restore, compare with PATHs in the first round, remove
restore_to_tmpfs() {
  local path
  mkdir "$OUT/$PEER"
  "${PEER}_restore" "$OUT/$PEER"
  if ((ROUND == 1)); then
    for path in "$@"; do same "$OUT/$PEER$path" "$path"; done
  fi
  rm -rf "${OUT:?}/$PEER"
}

# --- stages

stage_first() {
  for ((ROUND = 1; ROUND <= EXPENSIVE_ROUNDS; ROUND++)); do
    for name in reference "${PEERS[@]}"; do
      use "$name"
      fresh
      warm "${PATHS[@]}"
      ROW=first
      "${name}_create" "${PATHS[@]}"
      repo_bytes
      record row=size "peer=$name" "round=$ROUND" "bytes=$BYTES"
    done
  done
  BYTES=$(reference_bytes "$LIVE/app")
  record row=size peer=tar "bytes=$BYTES"
}

stage_unchanged() {
  ensure_first
  save_states
  for ((ROUND = 1; ROUND <= CHEAP_ROUNDS; ROUND++)); do
    for name in reference "${PEERS[@]}"; do
      use "$name"
      warm "${PATHS[@]}" "$STATE"
      ROW=unchanged
      "${name}_unchanged" "${PATHS[@]}"
    done
  done
  bring_back_all
}

stage_restore() {
  ensure_first
  for ((ROUND = 1; ROUND <= EXPENSIVE_ROUNDS; ROUND++)); do
    for name in reference "${PEERS[@]}"; do
      use "$name"
      warm "$STATE"
      warm_tmpfs
      ROW=restore
      restore_to_tmpfs "${PATHS[@]}"
    done
  done
}

stage_check() {
  ensure_first
  for ((ROUND = 1; ROUND <= EXPENSIVE_ROUNDS; ROUND++)); do
    for name in "${PEERS[@]}"; do
      use "$name"
      warm "$STATE"
      ROW=b3sum
      reference_b3sum "$STATE/repo"
      ROW=check
      "${name}_check"
    done
  done
}

NIGHTS_PASSED=0
GENERATIONS=1

# pass_night KIND ROW: change the application, make the staging copy, let every peer take its snapshot
pass_night() {
  local result pages before
  NIGHTS_PASSED=$((NIGHTS_PASSED + 1)) GENERATIONS=$((GENERATIONS + 1))
  cp "$LIVE/app/data.db" "$RUN/before.db"
  result=$(python3 "$HERE/make_data.py" "$1" "$LIVE" --seed "$NIGHTS_PASSED")
  settle
  ROW=$2 PEER=reference
  if [[ $ROW != setup ]]; then
    pages=$(reference_pages "$RUN/before.db" "$LIVE/app/data.db")
    # shellcheck disable=SC2086
    record "row=$ROW" peer=pages "round=$ROUND" $pages "files_bytes=$(sed 's/.*"add_bytes": \([0-9]*\).*/\1/' <<<"$result")"
  fi
  warm "$LIVE"
  reference_backup "$LIVE/app/data.db" "$STAGING/app/data.db"
  for name in "${PEERS[@]}"; do
    use "$name"
    warm "${PATHS[@]}"
    repo_bytes
    before=$BYTES
    "${name}_create" "${PATHS[@]}"
    repo_bytes
    record "row=$ROW" "peer=$name" "round=$ROUND" "bytes=$((BYTES - before))"
  done
}

stage_night() {
  ensure_first
  for ((ROUND = 1; ROUND <= CHEAP_ROUNDS; ROUND++)); do pass_night night night; done
}

stage_quiet() {
  ensure_first
  for ((ROUND = 1; ROUND <= CHEAP_ROUNDS; ROUND++)); do pass_night quiet quiet; done
}

stage_prune() {
  local before
  ensure_first
  while ((GENERATIONS < PRUNED_GENERATIONS)); do pass_night night setup; done
  save_states
  for ((ROUND = 1; ROUND <= EXPENSIVE_ROUNDS; ROUND++)); do
    for name in "${PEERS[@]}"; do
      use "$name"
      bring_back
      repo_bytes
      before=$BYTES
      ROW=prune
      "${name}_prune" "$KEPT_GENERATIONS"
      repo_bytes
      record row=prune "peer=$name" "round=$ROUND" "bytes=$BYTES" "bytes_before=$before"
      ROW=setup
      ((ROUND > 1)) || restore_to_tmpfs "${PATHS[@]}"
    done
  done
  bring_back_all
}

stage_tiny() {
  for ((ROUND = 1; ROUND <= CHEAP_ROUNDS; ROUND++)); do
    for name in reference "${PEERS[@]}"; do
      use "$name"
      STATE=$RUN/tiny/$name
      fresh
      warm "$DATA/tiny"
      ROW=tiny_first
      "${name}_create" "$DATA/tiny"
      ROW=tiny_unchanged
      "${name}_unchanged" "$DATA/tiny"
      ROW=tiny_restore
      restore_to_tmpfs "$DATA/tiny"
      rm -rf "$STATE"
    done
  done
}

read -r LOAD _ </proc/loadavg # before our own work raises it
check_needs
prepare
describe_machine
ROW=setup PEER=reference ROUND=0
reference_backup "$LIVE/app/data.db" "$STAGING/app/data.db"
settle
for stage in $STAGES; do
  [[ " ${ONLY[*]} " == *" $stage "* ]] || continue
  say "$stage"
  "stage_$stage"
done
python3 "$HERE/report.py" "$RAW" "$JSON"
say "all measurements: $JSON"
