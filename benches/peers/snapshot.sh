# The project's own binary, $SNAPSHOT, with a key file. It reads the live directory.

snapshot_reads=live
snapshot_program=$SNAPSHOT

snapshot_run() {
  local -x SNAPSHOT_REPO=$STATE/repo SNAPSHOT_KEY_FILE=$STATE/key
  local -x XDG_CACHE_HOME=$STATE/cache XDG_CONFIG_HOME=$STATE/config XDG_DATA_HOME=$STATE/share
  "$@"
}

snapshot_version() { "$SNAPSHOT" --version; }

snapshot_init() { snapshot_run "$SNAPSHOT" init -q --repo "$STATE/repo" --key-file "$STATE/key" >/dev/null; }

snapshot_create() { snapshot_run timed "$SNAPSHOT" create -q "$@"; }

snapshot_unchanged() { snapshot_create "$@"; }

snapshot_restore() { snapshot_run timed "$SNAPSHOT" restore -q latest --target "$1"; }

snapshot_check() { snapshot_run timed "$SNAPSHOT" check -q --read-data; }

# --instant frees the space in one run, as the peers do; without it a prune only condemns and a later one deletes.
snapshot_prune() { snapshot_run timed "$SNAPSHOT" prune -q --keep-last "$1" --instant; }
