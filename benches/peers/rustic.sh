# rustic, $RUSTIC: restic's format, zstd at level 3, its own cache.

rustic_reads=staging
rustic_program=${RUSTIC:-rustic}

rustic_run() {
  local -x RUSTIC_REPOSITORY=$STATE/repo RUSTIC_CACHE_DIR=$STATE/cache RUSTIC_PASSWORD=bench
  local -x RUSTIC_NO_PROGRESS=true RUSTIC_LOG_LEVEL=warn XDG_CONFIG_HOME=$STATE/config
  "$@"
}

rustic_version() { "$rustic_program" --version; }

rustic_init() { rustic_run "$rustic_program" init --set-compression 3 >/dev/null; }

rustic_create() { rustic_run timed "$rustic_program" backup --host bench "$@"; }

rustic_unchanged() { rustic_create "$@"; }

rustic_restore() { rustic_run timed "$rustic_program" restore latest "$1"; }

rustic_check() { rustic_run timed "$rustic_program" check --read-data; }

# The options free the space in one run; else it waits for 23 hours.
rustic_prune() {
  rustic_run timed "$rustic_program" forget --keep-last "$1" --prune --instant-delete --keep-delete 0s --keep-pack 0s
}
