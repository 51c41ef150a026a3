"""Make the application that the golden repository holds, take its snapshots, and say what they must contain.

    make_app.py SNAPSHOT_BINARY REPOSITORY WORK_DIRECTORY EXPECTED_JSON

Contents are the same in every run, but for times and inode numbers. The key comes from SNAPSHOT_KEY_FILE. What is
expected is taken from the files themselves; for the database in WAL mode after a checkpoint, which writes into the main
file just what the log has.
"""

import hashlib
import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import urllib.parse

from blake3 import blake3

MTIME = 1_790_000_000


def text(lines):
    """Lines that differ in few bytes: long enough to be cut, small when compressed."""
    return b"".join(b"entry %06d all work and no play makes a dull but compressible line of text\n" % n for n in lines)


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def set_times(app):
    for folder, folders, files in os.walk(app, topdown=False):
        for number, name in enumerate(sorted(folders + files)):
            if not name.endswith((b"-wal", b"-shm")):
                os.utime(os.path.join(folder, name), ns=(MTIME * 10**9 + number,) * 2, follow_symlinks=False)


def first_files(app):
    noise = random.Random(1)
    write(app + b"/storage/large.txt", text(range(120_000)))
    write(app + b"/storage/noise.bin", noise.randbytes(70_000))
    write(app + b"/storage/caf\xe9.txt", "not UTF-8 in its name\n".encode())
    write(app + b"/storage/empty", b"")
    write(app + b"/config.toml", b"name = 'golden'\n")
    os.chmod(app + b"/config.toml", 0o640)
    os.link(app + b"/config.toml", app + b"/storage/same-config")
    os.setxattr(app + b"/config.toml", "user.origin", b"golden\xff")
    os.setxattr(app + b"/config.toml", "user.another", b"")
    os.symlink(b"storage/large.txt", app + b"/link")
    os.symlink(b"nowhere/\xff", app + b"/dangling")
    os.mkfifo(app + b"/pipe")
    with open(app + b"/storage/sparse.bin", "wb") as file:
        for at in (256 << 10, 2 << 20):
            file.seek(at)
            file.write(text(range(at, at + 1500))[: 64 << 10])
        file.truncate(3 << 20)
    # Enough names for a directory in two parts: one could end the first part too early, one ends it as early as can be.
    names = [b"item-%03d" % n for n in range(120)]
    for before in (b"item-010-%d", b"item-061-%d"):
        names.append(next(before % n for n in range(10_000) if blake3(before % n).digest()[0] == 0))
    for name in names:
        write(app + b"/items/" + name, b"contents of " + name)
    os.setxattr(app + b"/items", "user.note", b"of a directory")


def next_files(app):
    os.remove(app + b"/storage/noise.bin")
    write(app + b"/storage/large.txt", text(range(20_000)) + b"inserted\n" + text(range(20_000, 120_000)))
    write(app + b"/storage/new.txt", b"new in the second generation\n")
    write(app + b"/items/item-010", b"changed")


def first_rows(db, rows):
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, body TEXT)")
    db.execute("CREATE INDEX by_name ON t (name)")
    body = random.Random(2)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    for n in range(rows):
        row = (n, f"name {n * 7919 % 1009}", " ".join(body.choices(words, k=20)))
        db.execute("INSERT INTO t VALUES (?, ?, ?)", row)
    db.commit()


def describe(path):
    meta = os.lstat(path)
    out = {"mode": stat.S_IMODE(meta.st_mode)}
    if stat.S_ISREG(meta.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        out |= {"kind": "file", "size": len(data)}
        out |= {"sha256": hashlib.sha256(data).hexdigest(), "blake3": blake3(data).hexdigest()}
    elif stat.S_ISDIR(meta.st_mode):
        out["kind"] = "directory"
    elif stat.S_ISLNK(meta.st_mode):
        out |= {"kind": "symlink", "target": urllib.parse.quote(os.readlink(path))}
    else:
        out["kind"] = "fifo"
    if not path.endswith(b".db"):
        out["mtime"] = meta.st_mtime_ns
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    out["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)}
    return out


def mark(binary, repository):
    """Changes tags and pins in several steps, and says what comes of it, for each generation."""
    for words in ("latest~1 --add release,nightly --pin", "latest~1 --remove generation-1,nightly",
                  "latest --add second --pin", "latest --set b,a --unpin"):
        subprocess.run([binary, "-r", repository, "-q", "tag"] + words.split(), check=True)
    return [{"tags": ["release"], "pinned": True}, {"tags": ["b", "a"], "pinned": False}]


def snapshot(binary, repository, work, generation):
    command = [binary, "-r", repository, "--json", "-q", "create", "app", "--host", "golden", "--source", "app"]
    command += ["--time", f"2026-09-0{generation}T03:00:00Z", "--tag", f"generation-{generation}"]
    done = subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["snapshot_id"]


def main():
    binary, repository, work, expected = (os.path.abspath(path) for path in sys.argv[1:])
    app = os.fsencode(os.path.join(work, "app"))
    os.makedirs(app)
    live = sqlite3.connect(app + b"/data.db")
    live.executescript("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;")
    old = sqlite3.connect(app + b"/legacy.db")
    old.execute("PRAGMA page_size = 512")
    generations = []
    for generation in (1, 2):
        if generation == 1:
            first_files(app)
            first_rows(live, 3000)
            first_rows(old, 900)
        else:
            next_files(app)
            live.execute("UPDATE t SET body = 'changed' WHERE id % 1000 = 17")
            live.execute("INSERT INTO t VALUES (100000, 'new', 'row')")
            live.commit()
            old.execute("UPDATE t SET body = 'changed' WHERE id = 450")
            old.commit()
        set_times(app)
        # The rows just written are in the log only, and a connection holds the database open.
        taken = snapshot(binary, repository, work, generation)
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        files = {}
        for folder, folders, names in os.walk(app):
            for name in folders + names:
                path = os.path.join(folder, name)
                if not name.endswith((b"-wal", b"-shm")):
                    files[urllib.parse.quote(os.path.relpath(path, os.fsencode(work)))] = describe(path)
        for name in (b"data.db", b"legacy.db"):
            files["app/" + name.decode()]["kind"] = "database"
        generations.append({"snapshot": taken, "generation": generation, "files": dict(sorted(files.items()))})
    for generation, said in zip(generations, mark(binary, repository)):
        generation |= said
    with open(expected, "w") as file:
        json.dump({"generations": generations}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
