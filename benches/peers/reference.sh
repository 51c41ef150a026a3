# The references: what the plain tools take for the same work. The peer functions (see ../compare.sh) where a
# reference has the shape of one, then those that belong to one row only.

reference_reads=live
reference_tools="tar zstd sqlite3 b3sum find"

reference_version() { echo reference; }

reference_init() { mkdir "$STATE/repo"; }

# tar | zstd -3 -T2 into a file of the same file system
reference_create() {
  timed bash -c 'set -o pipefail; tar -C / -cf - "${@:2}" | zstd -q -3 -T2 -f -o "$1"' - \
    "$STATE/repo/app.tar.zst" "${@#/}"
}

# A walk that reads every name and stat
reference_unchanged() { timed find "$@" -printf '%p %s %T@ %C@ %i %m %U %G\n'; }

reference_restore() {
  timed bash -c 'set -o pipefail; zstd -q -d -c "$1" | tar -C "$2" -xf -' - "$STATE/repo/app.tar.zst" "$1"
}

# reference_bytes PATH...: the size of tar | zstd -3, single-threaded
reference_bytes() { tar -C / -cf - "${@#/}" | zstd -q -3 -c | wc -c; }

# reference_b3sum REPO: hash all bytes of a peer's repository, on all cores
reference_b3sum() { timed bash -c 'set -o pipefail; find "$1" -type f -print0 | xargs -0 b3sum' - "$1"; }

# reference_backup DATABASE COPY: the copy that every peer needs which cannot read a live database
reference_backup() {
  rm -f "$2.new"
  timed sqlite3 "$1" ".backup '$2.new'"
  mv "$2.new" "$2"
}

# reference_pages OLD NEW: prints as key=value the pages that differ, their bytes, and what they come to
# compressed together, alone and against the old ones.
reference_pages() {
  local out=$RUN/pages
  python3 "$HERE/pages.py" "$1" "$2" --out "$out" |
    python3 -c 'import json, sys; print(*(f"{k}={v}" for k, v in json.load(sys.stdin).items()))'
  echo "pages_zstd=$(zstd -q -3 -c "$out.new" | wc -c)"
  echo "pages_patch=$(zstd -q -3 -c --patch-from="$out.old" "$out.new" 2>/dev/null | wc -c)"
  rm "$out.new" "$out.old"
}
