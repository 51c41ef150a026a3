#!/usr/bin/env bash
# Runs `snapshot`, its peers and plain reference tools side by side over the workload of make_data.py, and prints a
# Markdown table of medians. Progress goes to stderr, every single measurement to a JSON file.
#
#   benches/compare.sh [options] >table.md
#
#   --snapshot BINARY   default target/release/snapshot (cargo build --release)
#   --peers A,B,...     default snapshot,restic,rustic,borg,bupstash: each is benches/peers/NAME.sh. One that is not
#                       installed is left out; benches/install-peers.sh installs them on Debian. RESTIC=…, RUSTIC=…,
#                       BORG=…, BUPSTASH=… name programs that are not in PATH
#   --only STAGE,...    some of: first unchanged restore check night prune quiet tiny live
#   --add               keep what the JSON file has of other rows and peers, and print the table of everything: so rows
#                       and peers can be measured one by one
#   --rounds N          default 5 for cheap stages, 3 for expensive ones; snapshots of the stage live are always 12
#   --scale N           default 1; 1/N of the data, to try things out: such figures say nothing
#   --work DIR          default ${TMPDIR:-/tmp}/snapshot-bench; on the file system to be measured, 8 GB and 8 a peer
#   --data DIR          a data set of make_data.py; default WORK/data, made when absent. Never modified.
#   --tmpfs DIR         where restores go, default /dev/shm; 3 GB
#   --json FILE         default target/bench/compare.json
#   --into FILE         put the table into FILE, between the lines `<!-- comparison: begin -->` and `… end -->` of it;
#                       may be given several times
#   --keep              leave the work directory as it is at the end
#
# A peer NAME is a set of shell functions; STATE is its own directory, and its repository has to be STATE/repo:
#
#   NAME_reads              live: the application as it is; staging: the database comes from a `sqlite3 .backup` copy
#   NAME_program            its command
#   NAME_version            print name and version, the heading of its column
#   NAME_init               make an empty repository
#   NAME_create PATH...     take a snapshot; NAME_unchanged PATH... the same where nothing has changed
#   NAME_restore TARGET     restore the newest snapshot below TARGET, by absolute path
#   NAME_check              read and verify all data; NAME_lacks_check="reason" says why there is no such thing
#   NAME_prune N            keep the N newest snapshots and free the space of the others
#
# They run what is to be measured through `timed COMMAND...` (several are added up); whatever else they do is not
# counted. Within a round all take their turn on the same data, page cache warm, `sync` before each command.
# Sizes are sums of file sizes: what directories take depends on the file system. What each row means, and what it does
# not: docs/performance.md.
set -euo pipefail
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STAGES="first unchanged restore check night prune quiet tiny live"
TARGET_DIR=${CARGO_TARGET_DIR:-$HERE/../target}
SNAPSHOT=$TARGET_DIR/release/snapshot
PEERS=snapshot,restic,rustic,borg,bupstash
ONLY=$STAGES
CHEAP_ROUNDS=5
EXPENSIVE_ROUNDS=3
WORK=${TMPDIR:-/tmp}/snapshot-bench
DATA=
TMPFS=/dev/shm
JSON=$TARGET_DIR/bench/compare.json
KEEP=
ADD=
SCALE=1
INTO=()
PRUNED_GENERATIONS=12
KEPT_GENERATIONS=2
LIVE_SNAPSHOTS=12

say() { echo "$(date +%T) $*" >&2; }
die() { echo "compare.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while (($#)); do
  case $1 in
    -h | --help) usage; exit ;;
    --keep) KEEP=yes; shift; continue ;;
    --add) ADD=--add; shift; continue ;;
  esac
  (($# > 1)) || die "$1: unknown option, or its value is missing (see --help)"
  case $1 in
    --snapshot) SNAPSHOT=$2 ;;
    --peers) PEERS=$2 ;;
    --only) ONLY=$2 ;;
    --rounds) CHEAP_ROUNDS=$2 EXPENSIVE_ROUNDS=$2 ;;
    --scale) SCALE=$2 ;;
    --work) WORK=$2 ;;
    --data) DATA=$2 ;;
    --tmpfs) TMPFS=$2 ;;
    --json) JSON=$2 ;;
    --into)
      grep -qxF '<!-- comparison: begin -->' "$2" || die "$2: the lines for the table are not there (see --help)"
      INTO+=(--into "$(realpath "$2")")
      ;;
    *) die "$1: unknown option (see --help)" ;;
  esac
  shift 2
done
read -ra PEERS <<<"${PEERS//,/ }"
read -ra ONLY <<<"${ONLY//,/ }"

# --- before the first measurement

is_command() { command -v "$1" >/dev/null; }

check_needs() {
  local name program missing=() present=()
  for name in "${ONLY[@]}"; do
    [[ " $STAGES " == *" $name "* ]] || die "no stage called $name: there are $STAGES"
  done
  [[ $SCALE =~ ^[1-9][0-9]*$ ]] || die "--scale $SCALE: a whole number is needed"
  # shellcheck disable=SC1091
  source "$HERE/peers/reference.sh"
  # shellcheck disable=SC2154
  for name in $reference_tools; do is_command "$name" || missing+=("$name"); done
  ((${#missing[@]} == 0)) || die "not installed: ${missing[*]}; benches/install-peers.sh installs what is needed"
  SNAPSHOT=$(realpath -m "$SNAPSHOT")
  for name in "${PEERS[@]}"; do
    [[ -f $HERE/peers/$name.sh ]] || die "no peer called $name: there is no benches/peers/$name.sh"
    # shellcheck disable=SC1090
    source "$HERE/peers/$name.sh"
    program=${name}_program
    # Some commands are run elsewhere.
    [[ ${!program} != */* ]] || printf -v "$program" %s "$(realpath -m "${!program}")"
    if is_command "${!program}"; then
      present+=("$name")
    elif [[ $name == snapshot ]]; then
      die "no binary at $SNAPSHOT: run cargo build --release, or name it with --snapshot"
    else
      say "left out: $name, there is no command ${!program} (benches/install-peers.sh $name, or ${name^^}=PROGRAM)"
    fi
  done
  ((${#present[@]})) || die "nothing to measure: none of ${PEERS[*]} is there"
  PEERS=("${present[@]}")
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
  need_space "$WORK" $(((8 + 8 * ${#PEERS[@]}) / SCALE + 1))
  need_space "$TMPFS" $((3 / SCALE + 1))
  trap cleanup EXIT
  trap 'exit 130' INT TERM
  RUN=$(mktemp -d "$WORK/run.XXXXXX")
  OUT=$(mktemp -d "$TMPFS/snapshot-bench.XXXXXX")
  RAW=$RUN/raw.jsonl LIVE=$RUN/live STAGING=$RUN/staging
  if [[ ! -d $DATA ]]; then
    say "making the data set in $DATA"
    MADE_DATA=yes
    python3 "$HERE/make_data.py" make "$DATA" --scale "$SCALE" >&2
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
    "cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "kernel=$(uname -sr | cut -d. -f1,2)" \
    "memory_gib=$(awk '/^MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)" \
    "filesystem=$(df --output=fstype "$RUN" | tail -n 1)" "load=$LOAD" "scale=$SCALE" "rounds=$CHEAP_ROUNDS" \
    "peers=$(IFS=,; echo "${versions[*]}")" "${reading[@]}"
  awk '$1 > 0.5 {print "warning: the machine was busy (load " $1 "): the times will not be worth much"}' <<<"$LOAD" >&2
}

# --- measuring

# record KEY=VALUE...: append a record to the raw results
record() { python3 "$HERE/measure.py" "$RAW" "$RUN/log" "$@"; }

# timed COMMAND...: run and record under the current ROW, PEER and ROUND; row "setup" is not reported. With TOLERATE set
# the command may fail, and its status is recorded.
timed() {
  sync
  python3 "$HERE/measure.py" "$RAW" "$RUN/log" "row=$ROW" "peer=$PEER" "round=$ROUND" \
    ${TOLERATE:+tolerate=yes} -- "$@"
}

# Long enough for a file's times to count as settled: a write right before a snapshot may always be followed by
# another in the same clock tick, so that the next run would have to read the file again.
settle() { sync; sleep 3; }

# warm PATH...: into the page cache, so that nobody pays for being the first to read
warm() { find "$@" -type f -exec cat {} + >/dev/null; }

# Have a virtual machine get its memory from the host now, not during the first restore into it.
warm_tmpfs() { head -c $((2000000000 / SCALE)) /dev/zero >"$OUT/zeros"; rm "$OUT/zeros"; }

# repo_bytes: set BYTES to the sum of the repository's file sizes
repo_bytes() {
  BYTES=$(find "$STATE/repo" -type f -printf '%s\n' | awk '{sum += $1} END {printf "%.0f", sum}')
}

# use PEER: make its state the current one, set PATHS to what it reads
use() {
  local reads=$1_reads
  PEER=$1 STATE=$RUN/state/$1 TOLERATE=
  if [[ ${!reads} == live ]]; then PATHS=("$LIVE/app"); else PATHS=("$STAGING/app/data.db" "$LIVE/app/storage"); fi
}

# common_directory PATH...: the directory that has them all, or the path itself if there is one
common_directory() { python3 -c 'import os, sys; print(os.path.commonpath(sys.argv[1:]))' "$@"; }

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

# Each round begins with the state after the first snapshot: a tool may remember what it has checked.
stage_check() {
  local reason
  ensure_first
  save_states
  for ((ROUND = 1; ROUND <= EXPENSIVE_ROUNDS; ROUND++)); do
    for name in "${PEERS[@]}"; do
      use "$name"
      reason=${name}_lacks_check
      if [[ -n ${!reason-} ]]; then
        ((ROUND > 1)) || record row=check "peer=$name" "reason=${!reason}"
        continue
      fi
      bring_back
      warm "$STATE"
      ROW=b3sum
      reference_b3sum "$STATE/repo"
      for ROW in check check_again; do "${name}_check"; done
    done
  done
  bring_back_all
}

NIGHTS_PASSED=0
GENERATIONS=1

# pass_night KIND ROW: change the application, make the staging copy, let every peer take its snapshot
pass_night() {
  local result pages before
  NIGHTS_PASSED=$((NIGHTS_PASSED + 1)) GENERATIONS=$((GENERATIONS + 1))
  cp "$LIVE/app/data.db" "$RUN/before.db"
  result=$(python3 "$HERE/make_data.py" "$1" "$LIVE" --seed "$NIGHTS_PASSED" --scale "$SCALE")
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
      ((BYTES < before)) || die "$name has freed nothing"
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

# A writer commits 50 transactions a second to a database in WAL mode, and everybody takes snapshots of the live
# directory: the database, its -wal and its -shm. Each is restored, and the copy judged.
stage_live() {
  local name verdict committed writer app=$RUN/writer/app
  for name in "${PEERS[@]}"; do
    use "$name"
    STATE=$RUN/live-state/$name
    rm -rf "$RUN/writer"
    mkdir -p "$app"
    cp "$DATA/app/data.db" "$app/data.db"
    python3 "$HERE/live.py" prepare "$app/data.db"
    ROW=setup ROUND=0
    fresh
    "${name}_create" "$app"
    echo 0 >"$RUN/committed"
    start_writer "$app/data.db"
    for ((ROUND = 1; ROUND <= LIVE_SNAPSHOTS; ROUND++)); do
      committed=$(cat "$RUN/committed")
      ROW=live TOLERATE=yes
      "${name}_create" "$app"
      ROW=setup
      mkdir "$OUT/$PEER"
      "${name}_restore" "$OUT/$PEER"
      verdict=$(python3 "$HERE/live.py" judge "$OUT/$PEER$app/data.db" "$committed")
      record row=live "peer=$name" "round=$ROUND" "$verdict=1"
      rm -rf "${OUT:?}/$PEER"
    done
    stop_writer
    rm -rf "$STATE"
  done
}

# start_writer DATABASE: start it, and wait until it has committed something
start_writer() {
  coproc WRITER { exec python3 "$HERE/live.py" write "$1" "$RUN/committed"; }
  # shellcheck disable=SC2153
  writer=$WRITER_PID
  while [[ $(cat "$RUN/committed") == 0 ]]; do
    kill -0 "$writer" 2>/dev/null || die "the writer has met an error"
    sleep 0.1
  done
}

# stop_writer: end it; nobody may have disturbed it
stop_writer() {
  exec {WRITER[1]}>&-
  wait "$writer" || die "the writer has met an error while $PEER took snapshots"
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
python3 "$HERE/report.py" "$RAW" "$JSON" $ADD "${INTO[@]}"
say "all measurements: $JSON"
