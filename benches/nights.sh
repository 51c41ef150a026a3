#!/usr/bin/env bash
# Thirty nights of the workload of make_data.py: what they add, what a night takes, how long the first and the last
# generation take to restore, and what is left after pruning to two generations, beside a fresh repository with those
# two. Prints a Markdown table; progress goes to stderr.
#
#   benches/nights.sh [--snapshot BINARY] [--nights N] [--data DIR] [--work DIR] [--tmpfs DIR] [--peer restic]
#
# --data is a data set of make_data.py, made when absent, never modified. --peer adds restic (which reads the database
# as it lies, closed). Needs 8 GB below --work (12 with restic), and 2 GB of memory in --tmpfs (/dev/shm).
set -euo pipefail
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SNAPSHOT=${CARGO_TARGET_DIR:-$HERE/../target}/release/snapshot
NIGHTS=30 WORK=${TMPDIR:-/tmp}/snapshot-nights DATA= TMPFS=/dev/shm PEER=

while (($#)); do
  case $1 in
    --snapshot) SNAPSHOT=$2 ;;
    --nights) NIGHTS=$2 ;;
    --data) DATA=$2 ;;
    --work) WORK=$2 ;;
    --tmpfs) TMPFS=$2 ;;
    --peer) PEER=$2 ;;
    *) sed -n '2,/^set -e/s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift 2
done

say() { echo "$(date +%T) $*" >&2; }
bytes() { find "$1" -type f -printf '%s\n' | awk '{sum += $1} END {printf "%.0f", sum}'; }

# took COMMAND...: its wall time in seconds and its peak memory in MiB
took() {
  : >"$RUN/raw"
  python3 "$HERE/measure.py" "$RUN/raw" "$RUN/log" row=x -- "$@"
  python3 -c 'import json, sys; r = json.loads(sys.stdin.read()); print(r["wall"], r["maxrss_kib"] // 1024)' <"$RUN/raw"
}

mkdir -p "$WORK"
RUN=$(mktemp -d "$WORK/run.XXXXXX")
OUT=$(mktemp -d "$TMPFS/snapshot-nights.XXXXXX")
trap 'rm -rf "$RUN" "$OUT"' EXIT
if [[ -z $DATA ]]; then
  DATA=$RUN/data
  say "making the data set"
  python3 "$HERE/make_data.py" make "$DATA" >&2
fi
cp -a "$DATA/app" "$RUN/app"
cd "$RUN"

ours() { "$SNAPSHOT" -q -r "$RUN/$1" --key-file "$RUN/$1.key" --cache-dir "$RUN/cache" "${@:2}"; }
theirs() { RESTIC_PASSWORD=x restic -q -r "$RUN/restic" --cache-dir "$RUN/restic-cache" "$@"; }
OPTIONS=(-q -r "$RUN/repo" --key-file "$RUN/repo.key" --cache-dir "$RUN/cache")
ours repo init
sleep 3
ours repo create app
first=$(bytes repo)
if [[ $PEER == restic ]]; then theirs init && theirs backup app && theirs_first=$(bytes restic); fi

walls=() peak=0
for ((night = 1; night < NIGHTS; night++)); do
  python3 "$HERE/make_data.py" night "$RUN" --seed "$night" >/dev/null
  sync && sleep 3
  read -r wall memory < <(took "$SNAPSHOT" "${OPTIONS[@]}" create app)
  walls+=("$wall") peak=$((memory > peak ? memory : peak))
  [[ $PEER != restic ]] || theirs backup app
  say "night $night: $wall s, $(($(bytes repo) - first)) bytes in all"
done
grown=$(($(bytes repo) - first))
night_wall=$(printf '%s\n' "${walls[@]}" | sort -n | awk '{w[NR] = $1} END {print w[int((NR + 1) / 2)]}')

restores() {
  local best=
  for _ in 1 2 3; do
    rm -rf "$OUT/out"
    read -r wall memory < <(took "$SNAPSHOT" "${OPTIONS[@]}" restore "$1" --target "$OUT/out")
    best=$(printf '%s\n' "$wall" ${best:+"$best"} | sort -n | head -n 1)
  done
  echo "$best $memory"
}
read -r restore_first _ < <(restores "latest~$((NIGHTS - 1))")
read -r restore_last restore_peak < <(restores latest)
cmp "$OUT/out/app/data.db" app/data.db
rm -rf "$OUT/out"

say "pruning to two generations, and a fresh repository with them"
ours repo prune --keep-last 2 --max-unused 0 --instant >/dev/null
pruned=$(bytes repo)
ours fresh init
for generation in latest~1 latest; do
  rm -rf "$RUN/again"
  ours repo restore "$generation" --target "$RUN/again"
  sleep 3
  (cd again && ours fresh create --source app app)
done
# The files weigh the same in both, and would hide what becomes of the database.
ours files init
ours files create app/storage
files=$(bytes files)
pruned=$((pruned - files)) fresh=$(($(bytes fresh) - files))

mb() { awk -v b="$1" 'BEGIN {printf "%.1f MB", b / 1e6}'; }
per() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f", a / b}'; }
echo "| $NIGHTS nights | snapshot${PEER:+ | $PEER} |"
echo "|---|---${PEER:+|---}|"
echo "| growth after the first | $(mb "$grown")${PEER:+ | $(mb $(($(bytes restic) - theirs_first)))} |"
echo "| a night, wall (median); peak memory | $night_wall s; $peak MiB${PEER:+ | – } |"
echo "| restore of the first / the last generation; peak memory | $restore_first / $restore_last s ($(per "$restore_last" "$restore_first")); $restore_peak MiB${PEER:+ | – } |"
echo "| pruned to 2 generations / a fresh repository with them, without the files | $(mb "$pruned") / $(mb "$fresh") ($(per "$pruned" "$fresh"))${PEER:+ | – } |"
