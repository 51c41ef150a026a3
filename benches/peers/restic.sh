# restic at its defaults: repository version 2 (zstd), its own cache. It cannot read a live database: it gets
# the `.backup` copy of it.

restic_reads=staging
restic_packages="restic=restic"

restic_run() {
  local -x RESTIC_REPOSITORY=$STATE/repo RESTIC_CACHE_DIR=$STATE/cache RESTIC_PASSWORD=bench
  "$@"
}

restic_version() { restic version | awk '{print $1, $2}'; }

restic_init() { restic_run restic init -q >/dev/null; }

restic_create() { restic_run timed restic backup -q --host bench "$@"; }

restic_unchanged() { restic_create "$@"; }

restic_restore() { restic_run timed restic restore -q latest --target "$1"; }

restic_check() { restic_run timed restic check -q --read-data; }

restic_prune() { restic_run timed restic forget -q --keep-last "$1" --prune; }
