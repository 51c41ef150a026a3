#!/usr/bin/env bash
# Fuzzes every parser for some seconds each, from the seeds in fuzz/seeds and what earlier runs found.
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# FUZZ_SEED=N makes a run repeat another's choices; 0, the default, takes new ones.
# Stops at the first input that makes a target fail; cargo-fuzz prints where it kept it and how to run it again.
set -euo pipefail
(($# >= 1)) && [[ $1 =~ ^[1-9][0-9]*$ ]] || { echo "usage: fuzz/run.sh SECONDS [TARGET...]" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=$1
shift

command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --debug
# The sanitizer's flags are unstable; this lets a stable compiler take them.
export RUSTC_BOOTSTRAP=1
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo fuzz list)
cargo fuzz build

for target in "${targets[@]}"; do
  echo "== fuzz $target"
  mkdir -p "fuzz/corpus/$target"
  cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -seed="${FUZZ_SEED:-0}" -max_total_time="$seconds" -timeout=20 -verbosity=0 -print_final_stats=1
done
echo "fuzz: ${#targets[@]} targets, $seconds s each, nothing found"
