#!/bin/sh
# Makes a golden repository of this release, with what its snapshots must contain:
#
#     tests/golden/make.sh SNAPSHOT_BINARY [DIRECTORY]
#
# DIRECTORY is tests/golden/0.1 by default and must not exist. Afterwards the files are
#
#     repository/     two generations of a small application, tagged and pinned later
#     key-file, password, recovery-code     three secrets that open it
#     expected.json   each generation's tags and pin, and the BLAKE3 and SHA-256 of every file and database in it
#
# Keys and salts are fresh, so each run makes other bytes. A repository of a release that is out is never made again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "$1")
out=${2:-$here/0.1}
[ ! -e "$out" ] || { echo "$out exists" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/golden.XXXXXX")
trap 'rm -rf "$work"' EXIT
export HOME="$work/home"
mkdir -p "$HOME" "$out"
unset SNAPSHOT_REPO SNAPSHOT_PASSWORD SNAPSHOT_PASSWORD_FILE SNAPSHOT_PASSWORD_COMMAND SNAPSHOT_KEY_FILE

repository="$out/repository"
printf 'correct horse battery staple\n' > "$out/password"
# The slot that init makes carries this machine's name; it gives way to one with another label.
"$binary" -q -r "$repository" --key-file "$work/first-key" init
first=$(ls "$repository/keys")
export SNAPSHOT_KEY_FILE="$work/first-key"
"$binary" -q -r "$repository" key add --new-key-file "$out/key-file" --label golden
export SNAPSHOT_KEY_FILE="$out/key-file"
"$binary" -q -r "$repository" key add --new-password-file "$out/password" --label golden --kdf-memory 19 --kdf-time 1
"$binary" -r "$repository" key recovery-code | grep -Eo '([0-9A-Z]{4}-){9}[0-9A-Z]{4}' > "$out/recovery-code"
"$binary" -q -r "$repository" key remove "$first"

python3 "$here/make_app.py" "$binary" "$repository" "$work/app" "$out/expected.json"
"$binary" -r "$repository" check --read-data --databases
find "$repository" -type d -empty -delete
du -sh "$repository"
