# restic, $RESTIC: repository version 2, its default compression (zstd at its library's default level, which stands for
# 3), its own cache.

restic_reads=staging
restic_program=${RESTIC:-restic}

restic_run() {
  local -x RESTIC_REPOSITORY=$STATE/repo RESTIC_CACHE_DIR=$STATE/cache RESTIC_PASSWORD=bench
  "$@"
}

restic_version() { "$restic_program" version | awk '{print $1, $2}'; }

restic_init() { restic_run "$restic_program" init -q >/dev/null; }

restic_create() { restic_run timed "$restic_program" backup -q --host bench "$@"; }

restic_unchanged() { restic_create "$@"; }

restic_restore() { restic_run timed "$restic_program" restore -q latest --target "$1"; }

restic_check() { restic_run timed "$restic_program" check -q --read-data; }

restic_prune() { restic_run timed "$restic_program" forget -q --keep-last "$1" --prune; }
