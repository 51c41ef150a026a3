# bupstash, $BUPSTASH: its own key, zstd at level 3, a send log (without one it reads everything again).

bupstash_reads=staging
bupstash_program=${BUPSTASH:-bupstash}
bupstash_lacks_check="it has no such command"

bupstash_run() {
  local -x BUPSTASH_REPOSITORY=$STATE/repo BUPSTASH_KEY=$STATE/key BUPSTASH_QUERY_CACHE=$STATE/query-cache
  local -x XDG_CACHE_HOME=$STATE/cache
  "$@"
}

bupstash_version() { "$bupstash_program" version | tr - ' '; }

bupstash_init() {
  bupstash_run "$bupstash_program" init
  bupstash_run "$bupstash_program" new-key -o "$STATE/key"
}

# What it stores is relative to what the paths have in common, so that has to be kept for the restore.
bupstash_create() {
  common_directory "$@" >"$STATE/common"
  bupstash_run timed "$bupstash_program" put -q --compression zstd:3 --send-log "$STATE/send-log" :: "$@"
}

bupstash_unchanged() { bupstash_create "$@"; }

# bupstash_ids: of all snapshots, oldest first
bupstash_ids() { bupstash_run "$bupstash_program" list -q --format jsonl1 | sed 's/^{"id":"\([0-9a-f]*\)".*/\1/'; }

bupstash_restore() {
  local into
  into=$1$(cat "$STATE/common")
  mkdir -p "$into"
  bupstash_run timed "$bupstash_program" restore -q --ownership --xattrs --into "$into" "id=$(bupstash_ids | tail -n 1)"
}

bupstash_prune() {
  local id query=()
  for id in $(bupstash_ids | head -n "-$1"); do query+=(or "id=$id"); done
  bupstash_run timed "$bupstash_program" rm -q --allow-many "${query[@]:1}"
  bupstash_run timed "$bupstash_program" gc -q
}
