# borg 1, $BORG: repokey-blake2, zstd at level 3, its own caches.

borg_reads=staging
borg_program=${BORG:-borg}

borg_run() {
  local -x BORG_REPO=$STATE/repo BORG_BASE_DIR=$STATE/base BORG_PASSPHRASE=bench
  "$@"
}

borg_version() { "$borg_program" --version; }

borg_init() { borg_run "$borg_program" init --encryption repokey-blake2 2>/dev/null; }

borg_create() {
  borg_run timed "$borg_program" create --compression zstd,3 '::{now:%Y%m%dT%H%M%S.%f}' "$@"
}

borg_unchanged() { borg_create "$@"; }

borg_restore() {
  local newest
  newest=$(borg_run "$borg_program" list --last 1 --format '{archive}')
  borg_run timed env -C "$1" "$borg_program" extract "::$newest"
}

borg_check() { borg_run timed "$borg_program" check --verify-data; }

borg_prune() {
  borg_run timed "$borg_program" prune --keep-last "$1"
  borg_run timed "$borg_program" compact
}
