//! The longer help that `--help` adds: examples, and what the options can't say in a line. Text only.

pub const TOP_SHORT: &str = "`snapshot --help` says more, `snapshot COMMAND --help` shows examples.";

pub const TOP: &str = "\
Begin:
  snapshot create ~/app           take a snapshot; the first makes a repository in your data directory
  snapshot list                   see what there is
  snapshot restore latest --target /tmp/out

A repository on the same disk is no backup of that disk. Put one elsewhere, on another disk, a server or in a bucket \
(sftp://user@host/srv/backup, s3://bucket/prefix; see \"Off-site\" in the README for keys and settings):
  export SNAPSHOT_REPO=/mnt/backup/app SNAPSHOT_KEY_FILE=~/.config/snapshot/app.key
  snapshot init
  snapshot key recovery-code      a code to write down, for when the key file is gone

Where the password or key comes from, the first that is there: the options --key-file, --password-file, \
--password-command; the variables SNAPSHOT_KEY_FILE, SNAPSHOT_PASSWORD_FILE, SNAPSHOT_PASSWORD_COMMAND, \
SNAPSHOT_PASSWORD; the key file of the default repository; a question on the terminal. A recovery code works \
wherever a password does.

Exit status:
  0 done                          10 no repository there
  1 failed, nothing half-done     11 a lock could not be had
  2 wrong usage                   12 wrong password or key
  3 snapshot made, but some of the source could not be read
  4 check found damage            130 interrupted
  5 restore incomplete; what is there is exact
`list`, `ls`, `find`, `diff`, `stats`, `tag`, `prune` and `repair` end with 1 if something could not be read, after \
doing all the rest.

With --json, standard output is one document; \"version\" in it (1 now) rises when a field goes or changes its \
meaning. Standard error has one object a line: \"type\" is progress, problem, note or error. \
Commands that read or write much of a repository on a network add storage: requests (put, get, list, delete, other), \
bytes_up, bytes_down, retries.";

pub const INIT: &str = "\
The repository opens with a password (asked for twice on a terminal) or a key file. With --key-file, a new key file is \
written there; one that exists is never overwritten. Without --repo, this makes the default repository and its key \
file in your own directories, as the first `snapshot create` does.

Examples:
  snapshot -r /mnt/backup/app init
  snapshot -r /mnt/backup/app --key-file ~/.config/snapshot/app.key init
  snapshot -r /mnt/backup/app --password-file /etc/app.password init --kdf-memory 256
  snapshot -r sftp://backup@nas.example:2222/srv/app --key-file ~/.config/snapshot/app.key init
  snapshot -r sftp://backup@nas.example/~/app --key-file ~/.config/snapshot/app.key init
  AWS_ENDPOINT_URL=https://s3.example.com snapshot -r s3://bucket/app --key-file ~/.config/snapshot/app.key init

In an sftp:// URL the path is absolute; /~/ begins one in the user's home. ssh makes the connection, and asks nothing. An \
S3 bucket must exist; account, region and endpoint come from the usual AWS_ variables or the profile.";

pub const CREATE: &str = "\
SQLite databases are found by their content and stored as of one moment, while programs go on writing. All of them are \
captured before any file is read, so that what their rows refer to is in the snapshot; a file that vanishes in between \
is named. A file that can't be read is named on standard error, and the rest is saved; the status is 3 then.

The directories of PocketBase, Vaultwarden, Gitea and Directus are recognised, as the path given or right below it: \
then what the application makes anew by itself, such as thumbnails, is left out, and said. `--preset NAME` also leaves \
out its own backups (pocketbase) and sessions (gitea); `--exclude '!PATTERN'` takes something back in; `--preset none` \
recognises nothing. The snapshot says which preset was used. With --check-references the files that its rows refer to \
are looked for in the snapshot, which takes rebuilding its database; if one is missing, the status is 3.

Examples:
  snapshot create ~/app
  snapshot create --preset pocketbase --exclude 'auxiliary.db*' pb_data
  snapshot create --tag nightly --exclude '*.log' --exclude /app/tmp/ ~/app
  snapshot create --source app --host web1 /srv/app
  pg_dump app | snapshot create --stdin --stdin-name app.sql
  snapshot create --stdin-from-command --stdin-name app.sql -- mysqldump app
  snapshot create --postgres postgresql://backup@db.example/app /srv/app

With --stdin-from-command no snapshot is made if the command fails.

--postgres dumps a PostgreSQL database into postgres/NAME.dump of the snapshot (an archive for pg_restore), and the \
server's roles into postgres/globals.sql, before any file is read; it may be repeated, also with several servers. It \
needs pg_dump, no older than the server. A dump that fails makes no snapshot. Give the password in ~/.pgpass or \
PGPASSWORD rather than in the URL, where others on this machine can see it while this program runs. It is never \
stored, shown or put on another command line.

With --json: snapshot_id (null for --dry-run), generation, host, source, time, files, directories, databases, bytes, \
bytes_read, bytes_new, bytes_stored, seconds, skipped, unverified, preset (null if none), references (an array, as of \
`check`), dry_run; with --cost, cost, an object like storage.";

pub const LIST: &str = "\
Times are in this machine's time zone. A mark at the end says what to know of a snapshot: `!` some databases are stored \
as plain files, unverified; `~` some of the source could not be read; `pinned` no rule of `prune` drops it; `proven` and a day: it was restored then, \
for trial, and nothing was wrong (`snapshot check --restore-drill`). With -v, presets of known applications are shown.

Examples:
  snapshot list
  snapshot list --source /srv/app --latest 5
  snapshot list --tag nightly --json

With --json: an array of objects with id, generation, time, host, source, paths, tags, pinned, preset (null if none), \
proven (null, or time, program, by), previous, program, \
files, directories, databases, bytes, bytes_read, bytes_new, bytes_stored, seconds, skipped, unverified. If a path is not \
UTF-8, paths_hex has the bytes of all paths.";

pub const LS: &str = "\
Owners are shown by the names they had where the snapshot was taken. After the permissions, `*` marks a database, `+` \
access control lists, `@` other extended attributes.

Examples:
  snapshot ls latest
  snapshot ls -l latest app/storage
  snapshot ls --tree latest
  snapshot ls --no-recursive latest~2:app

With --json: snapshot_id and nodes, an array of objects with path (and path_hex if it is not UTF-8), type, mode, uid, \
gid, mtime, and where they apply user, group, ctime, inode, size, target, device (major, minor), hard_link (a number \
that other names of the same file have, too), xattrs (name and value, in hex if they are not UTF-8), extents (offset \
and length of each stretch of data of a sparse file), database (page_bytes, pages, wal_mode, captured, facts), \
dump (of a PostgreSQL database, or the roles of its server: kind, database, server_version, tool_version, hash), \
unverified. facts is what the database said of itself when it was captured: user_version, application_id, \
schema_version, encoding (1 UTF-8, 2 UTF-16le, 3 UTF-16be), free_pages, schema_hash, and tables: name and rows of each \
that has pages of its own, or null where they could not be counted or are more than 4,096.";

pub const FIND: &str = "\
A pattern without a slash is compared with names, one with a slash with paths in the snapshots: `/app/*.db` is right \
below app, `**/cache/*` in any directory called cache. `!*.tmp` after others takes names out again. Something that \
several generations in a row have unchanged is shown once, with the range of their numbers and ids. The status is 0 \
also when nothing is found, and 1 if something could not be searched.

Examples:
  snapshot find invoice.pdf
  snapshot find -i '*.PDF' --newer 30d
  snapshot find -l --type database '*' --latest 1
  snapshot find --snapshot latest:app/storage '*.png'

With --json: snapshots_searched, and matches, an array of objects as of `ls` with also host, source, count, first and \
last (each with id, generation, time), and snapshots (the ids of all that have it). Databases come without pages.";

pub const DIFF: &str = "\
Each line begins with what happened: `+` new, `-` gone, `M` another content, `T` another kind of thing, and with \
--metadata `U` other permissions, owner, time or attributes only. For a database, the tables and indexes that the \
changed pages belong to follow, with the number of rows as it was recorded, or where it can be counted by reading \
little.

Examples:
  snapshot diff latest~1 latest
  snapshot diff 1a2b3c4d latest --metadata
  snapshot diff latest~7:app/storage latest:app/storage

With --json: before and after (id, generation, time), summary (added, removed, changed, metadata), and changes, an \
array of objects with path, change (added, removed, changed), type, size, type_before, size_before, aspects (of kind, \
content, mode, owner, mtime, xattrs) and for a database, database (page_bytes, pages, pages_before, pages_changed, \
tables, free, overflow, pointer_map, lock, header, tables_unknown). A table has type, name, table, change, pages, \
pages_left, and where counted rows_more, rows, rows_before.";

pub const STATS: &str = "\
SIZE is the length of all files and databases, ADDED what the snapshot made the repository grow by when it was taken, \
ALONE what no other snapshot needs: that much is freed by forgetting this one alone, once a prune has run. Pages of \
databases are stored and counted by the segment, which may hold older pages, too. Only metadata is read.

Examples:
  snapshot stats
  snapshot stats --source /srv/app --latest 7
  snapshot stats latest
  snapshot stats latest:app/storage

With --json: sources (host, source, snapshots, …), whole, and overhead (total, packs, directories, padding, unused, \
condemned, unknown_packs, index, other); `stats SNAP`: snapshot_id, path, files, directories, databases, logical, \
unique and alone. Sizes of blobs (unique, alone) have blobs, plain (their length) and stored (compressed), in bytes.";

pub const CAT: &str = "\
An id is given by as many digits as make it unique.

Examples:
  snapshot cat config
  snapshot cat snapshot latest
  snapshot cat tree latest:app
  snapshot cat map latest:app/data.db
  snapshot cat index                what all index files hold
  snapshot cat index 5e6f           one of them, whole
  snapshot cat pack 9a0b1c
  snapshot cat blob 1a2b3c4d > bytes

All but blob is JSON, for people without --json and on one line with it. Fields are those of repo-format.md; bytes that \
are not UTF-8 are in hex, under a name that ends with _hex.";

pub const DUMP: &str = "\
A database is written as of its capture, complete in one file. A directory becomes a tar archive in the pax format, with \
owners, times to the nanosecond, extended attributes, hard links and holes; names in it begin with the path given. If \
something can't be read, the status is 1 and the archive ends there, cut off, so that no reader takes it for complete; \
with --output there is no file then.

Examples:
  snapshot dump latest app/storage/1.pdf > 1.pdf
  snapshot dump latest~1 app/data.db -o data.db
  snapshot dump latest app | tar x -C /tmp/out --xattrs --xattrs-include='*'
  snapshot dump latest:app -o app.tar
  snapshot dump latest | zstd > all.tar.zst

With --json and --output: snapshot_id, path, output, archive, bytes.";

pub const RESTORE: &str = "\
Paths go below the target as they were given to `create`, without a leading slash: after `create data`, \
`restore latest --target out` gives out/data/…, and `restore latest:data --target out` gives its contents in out/. \
What can't be restored is named and left out, and the status is 5; what is there is exact.

What happens to files that are there, in a target that is not empty:
  --overwrite always      every file is written anew
  --overwrite if-changed  files with the same size and time, and databases with the same content, stay; their other \
attributes are set
  --overwrite never       what is there stays; only what is missing is restored
  --in-place              as if-changed; of files that differ, only the parts that differ are fetched, and what is of \
another kind is replaced. With --overwrite always too, every file is written, from what is there as far as that is the \
same
Whichever it is, a file is written beside and gets its name when it is complete. --verify-content doesn't trust size \
and time, and compares the content of files that are there.

A database that is replaced is written beside, checked by its hashes and by SQLite, and then gets its name; with \
--in-place only its pages that differ are written, under a journal of SQLite's own kind. Its old log and journal are \
first brought into it and never blend into the new one. Killed at any moment, the old database is there or the new one. \
If another process has a database open, nothing is restored at all, unless --force is given.

Before anything that is there is replaced or deleted, it is kept in a snapshot with the tag before-restore and a source \
named before-restore: and the target (--no-safety leaves that out). `latest` never means it, unless --source or --tag \
does. If no snapshot can be taken, the files get further names in a directory .snapshot-before-restore-… in the target. \
`restore --undo --target DIR` takes the last restore into DIR that replaced or deleted something back: what it replaced \
or deleted returns, what it made goes. That is kept in the same way, so a second --undo takes the first one back. It \
takes the newest of both, and needs no repository for the files in the target.

--delete removes what the snapshot doesn't have: only below the paths that were given to `create`, only what the \
patterns select, never what is excluded or mounted, and only after everything was restored. What was left out when \
the snapshot was taken is not in it either: exclude it here too. It is refused where it would remove more than half, \
and with a snapshot that is incomplete, unless --force is given; see with --dry-run what would go.

A restore that was killed goes on where it stopped when the same command is run again. Until it ends there is a file \
.snapshot-restore in the target.

As root, files get the owner of the same name here, or else of the same number. Others own what they restore, and \
set-user-id bits are dropped with the owner.

Examples:
  snapshot restore latest --target /tmp/out
  snapshot restore 1a2b3c4d:app/storage --target /srv/app/storage --in-place
  snapshot restore latest:srv/app --target /srv/app --delete --exclude /srv/app/cache --dry-run
  snapshot restore latest --source /srv/app --include '*.db' --target /tmp/db --verify
  snapshot restore --undo --target /srv/app
  snapshot restore latest:srv/app --target /srv/app --map-user www-data=app --map-group www-data=app
  snapshot restore latest --postgres postgresql://postgres@localhost/app_copy --create
  snapshot restore latest:postgres/app.dump --postgres postgresql://postgres@localhost/app --clean

With --postgres a dump goes to pg_restore, in one transaction: the database has all of it then, or is as it was. Without \
--clean it must be empty. If the snapshot has several databases, the one with the name in the URL is meant, or that of \
--postgres-database, or the path behind the colon. --globals makes the roles and tablespaces first, as far as they \
aren't there; with --owner none everything belongs to the user in the URL.

With --json: snapshot_id, target, files, directories, databases, others, bytes (of which bytes_fetched, bytes_reused), \
skipped, metadata, deleted, resumed, verified_files, verified_databases, seconds, dry_run, kept (null, or an object with \
snapshot_id, or copy), and with --dry-run planned: \
objects with path, type, bytes and action, which is create, replace, keep, metadata, delete or omit. With --undo from \
files in the target: target, copy, files, deleted, kept, seconds. With --postgres: snapshot_id, path, postgres (server \
and database), bytes, created, globals, seconds, dry_run.";

pub const GUARD: &str = "\
Takes a snapshot of the sources, as `create` does and with its options, tagged `guard`; then runs the command, with \
this terminal, and ends with its status. If the command fails, a terminal is asked whether everything is to be put \
back; with --rollback it is put back without a question: files and databases get the content they had, what the command \
made is deleted, what was excluded is left alone. What a rollback replaces is kept first, as by `restore`. No preset is \
applied: the snapshot has all that is not excluded.

A snapshot that can't be taken, or not whole, keeps the command from running. How to go back is said before the \
command runs, so that it is known even if this process is killed; `snapshot list --tag guard` shows the snapshots.

Ctrl-C at the terminal reaches the command; other signals are passed on to it as a request to end where there is no \
terminal. Either counts as a failure. Stop the application first: a database that is open is not put back.

Exit status: that of the command (128 and the number after a signal), 130 after Ctrl-C, and
  124 the command failed, and not everything could be put back
  125 no snapshot, or an incomplete one: the command was not run
  126 the command can't be run
  127 there is no such command

Examples:
  snapshot guard /srv/app -- ./migrate.sh
  snapshot guard --rollback --exclude '*.log' /srv/app -- sqlite3 /srv/app/data.db '.read v12.sql'
  snapshot guard --rollback pb_data -- ./pocketbase migrate up

With --json, standard error has objects of \"type\": \"guard\" with event (snapshot, done, failed, rolled-back, \
not-rolled-back), snapshot_id and message. Standard output is the command's.";

pub const TAG: &str = "\
A tag is a label to choose snapshots by (--tag, and --keep-tag of `prune`). A pinned snapshot is dropped by no rule, \
and `forget` refuses it. Both can be changed at any time, from several machines at once; the snapshots themselves never \
change.

Examples:
  snapshot tag latest --add release,2.0 --pin
  snapshot tag 1a2b3c4d 5e6f7a8b --remove nightly
  snapshot tag --source /srv/app --tag nightly --set daily
  snapshot tag 1a2b3c4d --unpin

With --json: snapshots, an array of objects with id, tags, pinned, changed.";

pub const FORGET: &str = "\
The data stays until a prune reclaims it; until then `snapshot undo-forget` takes a snapshot back. A pinned snapshot \
is refused: `snapshot tag --unpin` first.

Examples:
  snapshot forget 1a2b3c4d
  snapshot forget 1a2b3c4d 5e6f7a8b && snapshot prune";

pub const UNDO_FORGET: &str = "\
Examples:
  snapshot undo-forget 1a2b3c4d";

pub const PRUNE: &str = "\
The rules count for each source (host and source) alone, by the snapshots' own times. Without a rule no snapshot is \
dropped, and only the space of what was forgotten is reclaimed. Rules that would drop everything of a source are \
refused. Pinned snapshots stay. Data is deleted in two steps: a prune marks it, and a prune after the grace time \
deletes it, unless something needs it by then.

Packs of which little is needed are rewritten without the rest, worst first, until what stays unused is below \
--max-unused, a share of what remains (0% to 100%) or a size; `unlimited` rewrites only small packs, to merge them. \
--max-repack bounds the work of one run, in bytes of packs rewritten: a pack larger than what is left of it waits, and \
0 rewrites nothing. --dry-run prints what would be kept, deleted, marked and rewritten, and the requests it takes, even \
with --quiet.

Times are in s, min, h, d, w, mo (30 d) and y (365 d).

Examples:
  snapshot prune --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  snapshot prune --keep-within 30d --keep-tag release
  snapshot prune --source /srv/app --keep-last 3
  snapshot prune --instant          on a full disk, when nothing else is running

With --json: snapshots with reasons, forgotten, packs_ and bytes_ deleted, condemned and repacked, bytes_rewritten, \
bytes_unused_kept, over_budget, free_after, waiting_for, and plan: data and metadata (each with total, used, \
partly_used, unused, young, condemned, delete, repack), index, requests.";

pub const CHECK: &str = "\
Without an option this looks at the structure: snapshots, directories, page maps, and whether all data they need is \
there. Each problem is named with what it costs, and what mends it; the last line says what to do, in order. The status is 4 if there was any.

--databases rebuilds each database page by page, has SQLite check it (integrity_check, foreign_key_check), and compares \
it with what was recorded at its capture: user_version, application_id, schema, and the rows of each table.

--restore-drill restores whole snapshots, one after the other, to a scratch directory: by default the newest of each \
source. Everything is read back and compared, SQLite checks the databases, and the scratch directory is removed, \
also when the drill is interrupted; what a killed one leaves, the next removes. It needs as much room as the snapshot \
is long. If nothing is wrong, the snapshot is marked as proven, which `snapshot list` shows; else what is wrong is \
named, and the status is 4. A database that SQLite can't check for lack of something that only the application has \
is noted, and keeps no snapshot from being proven. Owners are left out: nothing there needs to belong to anybody else.

--read-data decodes every pack once and remembers it; the next time a pack whose hash is still its name need not be \
decoded again, since the same bytes decode to the same. With --no-cache all is decoded.

--references rebuilds the databases of known applications (PocketBase, Vaultwarden, Gitea, Directus) and looks in the \
snapshot for each file that a row refers to. One that is missing is a problem; files that no row refers to are only \
counted.

Examples:
  snapshot check
  snapshot check --read-data
  snapshot check --read-data-subset 1/7     each day another seventh
  snapshot check --databases
  snapshot check --restore-drill
  snapshot check --restore-drill latest~1 1a2b3c4d --scratch /mnt/large
  snapshot check --references               in the newest snapshot of each source
  snapshot check --references latest~7

With --json: damaged, what_to_do (commands, in order), problems (an array), snapshots, trees, blobs, packs, bytes_read, bytes_decoded, \
databases, databases_rebuilt, drills (an array of objects with snapshot_id, proven, files, databases, bytes, \
verified_files, verified_databases, seconds), references (an array: snapshot_id, path, preset, references, dangling, \
orphans, elsewhere), seconds.";

pub const REPAIR: &str = "\
`snapshot check` says which of these helps. None of them deletes what can still be read, and each may be cut off at any \
moment and run again.

Examples:
  snapshot repair index       an index file is damaged or lost: writes the index anew from the packs
  snapshot repair packs       packs are damaged: reads all data, and saves what is left of them
  snapshot create ~/app       stores anew what the source still has, for the old snapshots too
  snapshot repair snapshots   makes the best of snapshots that still lack something

A damaged pack stays, marked for deletion by a later prune. The status is 1 if something is lost.

With --json: packs, blobs, index_files_replaced, config_repaired, slots_repaired, missing_packs, unreadable_packs, \
damaged_blobs, salvaged_blobs, packs_condemned, next.";

pub const REPAIR_SNAPSHOTS: &str = "\
Each snapshot that lost something gets another one beside it, of the same source, time and generation and with the tag \
`salvaged`, without the files and databases that can't be had whole. What is missing is listed: files, directories, and \
for databases the numbers of the lost pages, as SQLite counts them. What is identical in any pack is no loss; \
lost pages that are the same in another generation, one taken after the damage included, are put back first. Run `snapshot \
repair packs` and `snapshot create` first: they find damaged data, and bring back what the source still has. The \
damaged snapshots stay, and hold up prunes, until they are forgotten; then `snapshot undo-forget` takes them back as long \
as their data is there.

A database that lost pages is not sound, whatever stands in their place. --keep-databases keeps it nevertheless, as a \
plain file NAME.salvaged: for `sqlite3 NAME.salvaged .recover`, never for the application.

Examples:
  snapshot repair snapshots --dry-run
  snapshot repair snapshots
  snapshot repair snapshots --keep-databases other-generations
  snapshot repair snapshots --forget

With --json: examined, healed_pages, affected (an array: snapshot_id, host, source, generation, time, salvaged_id, forgotten, lost: an \
array with path, kind and, for databases, pages, lost_pages, kept_as), unreadable, mended, dry_run, next.";

pub const KEY: &str = "\
`list` shows what opens the repository, with * at the key it was run with. LAST SNAPSHOT OR TAG is when the newest \
snapshot or change of tags that is still there was made with a key; who only reads leaves no trace. COST is what one \
guess of a password takes: memory, and how many times over it. `passwd` puts a new password in the place of the one it \
was run with; until the new one is proved to open the repository, the old one stays. With --json, last_wrote and cost \
are null where there is none.

Examples:
  snapshot key list
  snapshot key add --new-key-file ~/.config/snapshot/laptop.key --label laptop
  snapshot key add                  asks for a new password
  snapshot key passwd               replaces the password it was run with
  snapshot key recovery-code
  snapshot key remove 1a2b3c4d";

pub const COPY: &str = "\
Copies into the repository named by --repo what it does not have, oldest first. Everything is verified on the way. The \
two have different keys, so ids differ; a snapshot counts as there if one of the same host, source and moment is. What is \
copied becomes the newest generation of its source there. Interrupted, it goes on where it stopped.

The secret of the source: --from-key-file, --from-password-file, --from-password-command, then SNAPSHOT_FROM_KEY_FILE, \
SNAPSHOT_FROM_PASSWORD_FILE, SNAPSHOT_FROM_PASSWORD_COMMAND, SNAPSHOT_FROM_PASSWORD; with none of these, what opens the \
target is tried.

Examples:
  snapshot -r /mnt/usb/app copy                                all of the default repository
  snapshot -r /mnt/usb/app copy --from-repo /mnt/backup/app    all of another one
  snapshot -r /mnt/usb/app copy --from-repo /mnt/backup/app latest --source /srv/app

With --json: copied (an array of from, to, generation), skipped, bytes_new, bytes_stored, seconds.";

pub const UNLOCK: &str = "\
No command waits for a lock to create, list or restore. But a run that was killed leaves a note that it was running, and a \
prune does not delete anything while it may be. The next run on the same machine clears it away; those of other machines \
count as running for a day. This does it now.

Examples:
  snapshot unlock
  snapshot unlock --remove-all      also those of machines that are gone for good

With --json: removed, running (arrays of descriptions).";

pub const COMPLETIONS: &str = "\
Examples:
  snapshot completions bash > ~/.local/share/bash-completion/completions/snapshot
  snapshot completions zsh > ~/.zfunc/_snapshot
  snapshot completions fish > ~/.config/fish/completions/snapshot.fish";
