#!/usr/bin/env python3
"""Make the benchmark's workload, and let nights pass over it. Deterministic: a seed, a result.

    make_data.py make  DIR [--seed N] [--scale S]      DIR/app/data.db, DIR/app/storage/…, DIR/tiny/…
    make_data.py night DIR [--seed N] [--scale S]      a night of a busy application
    make_data.py quiet DIR [--seed N] [--scale S]      a quiet night

`make` writes what an application in the manner of PocketBase leaves behind:

- app/data.db: 512 MiB of SQLite in WAL mode, 4 KiB pages, three tables with random 15-character
  keys, text, JSON and secondary indexes; zstd -3 makes about a third of it;
- app/storage/COLLECTION/RECORD/FILE: 1 GiB in 3,000 attachments, log-normal, 280 KB in the middle, half of
  the bytes incompressible (.jpg), the other half text (.txt);
- tiny/: 20,000 files under 4 KiB in 200 directories.

`night` and `quiet` change DIR/app in place, leave no -wal behind, and print one line of JSON that says
what they did; with --count-pages OLD also how many pages differ from OLD, a copy of the database made
before. With --scale S there is 1/S of everything, to try things out. Python's standard library only.
"""

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import time
from array import array
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pages import changed_pages

MIB = 1 << 20
PAGE_BYTES = 4096
DB_BYTES = 512 * MIB
STORAGE_BYTES = 1024 * MIB
STORAGE_FILES = 3000
TINY_FILES = 20_000
TINY_DIRS = 200
TINY_MAX_BYTES = 4095
USERS = 10_000
EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)

# What happens in a night: row updates, inserts, deletes; files added (and their bytes in all) and removed.
NIGHTS = {
    "night": {"updates": 2000, "inserts": 1000, "deletes": 200, "add": 6, "add_bytes": 1_100_000, "remove": 2},
    "quiet": {"updates": 100, "inserts": 60, "deletes": 10, "add": 0, "add_bytes": 0, "remove": 0},
}

SCHEMA = """
CREATE TABLE users (id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL UNIQUE, name TEXT, profile JSON,
                    created TEXT, updated TEXT);
CREATE TABLE posts (id TEXT PRIMARY KEY NOT NULL, author TEXT REFERENCES users(id), slug TEXT NOT NULL,
                    title TEXT, body TEXT, meta JSON, status TEXT, created TEXT, updated TEXT);
CREATE TABLE events (id TEXT PRIMARY KEY NOT NULL, post TEXT, kind TEXT, data JSON, created TEXT);
CREATE INDEX posts_author  ON posts (author, created);
CREATE INDEX posts_status  ON posts (status, author);
CREATE INDEX posts_created ON posts (created);
CREATE INDEX posts_updated ON posts (updated);
CREATE INDEX events_post   ON events (post);
"""


class Words:
    """Text out of made-up words that are as unevenly used as those of a language.

    65,536 slots are dealt out among the words by Zipf's law, so that two random bytes draw a word: tens of
    millions of words a second, and no passage repeats. More words and a flatter law compress less.
    """

    def __init__(self, rng, count, exponent):
        weights = [1 / (rank + 2.7) ** exponent for rank in range(count)]
        scale = 65536 / sum(weights)
        self.rng, self.slots, due = rng, [], 0.0
        for word, weight in zip(self._vocabulary(rng, count), weights):
            due += weight * scale
            while len(self.slots) < round(due):
                self.slots.append(word + rng.choices((" ", ", ", ". ", ".\n"), (88, 6, 4, 2))[0])
        self.raw = [slot.encode() for slot in self.slots]

    @staticmethod
    def _vocabulary(rng, count):
        ends = ("", "", "n", "r", "s", "t", "l", "nd", "rt", "ng")
        words = {}
        while len(words) < count:
            # The most used words are the short ones.
            syllables = rng.choice((1, 1, 2, 2, 3)) if len(words) < count // 8 else rng.choice((2, 2, 3, 3, 4))
            word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))
            words[word + rng.choice(ends)] = None
        return list(words)

    def draw(self, count):
        """A list of `count` words, each with what follows it."""
        return list(map(self.slots.__getitem__, array("H", self.rng.randbytes(2 * count))))

    def text(self, count):
        return "".join(self.draw(count)).rstrip()

    def fill(self, size):
        """Exactly `size` bytes of text."""
        out = b""
        while len(out) < size:
            numbers = array("H", self.rng.randbytes(2 * ((size - len(out)) // 6 + 16)))
            out += b"".join(map(self.raw.__getitem__, numbers))
        return out[:size]


def identifier(rng):
    """15 characters, as PocketBase's schema makes them: 'r' || lower(hex(randomblob(7)))."""
    return f"r{rng.getrandbits(56):014x}"


def stamp(moment):
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


class Rows:
    """Makes rows of the three tables; used by `make` and by the nights alike."""

    def __init__(self, seed):
        self.rng = random.Random(f"rows {seed}")
        # The vocabulary is the same on every night.
        self.words = Words(random.Random("vocabulary"), 8000, 1.0)
        self.words.rng = self.rng
        self.tags = [word.strip(" ,.\n") for word in self.words.slots[::331]]

    def user(self, moment):
        rng = self.rng
        key, name = identifier(rng), self.words.text(2).title().replace(".", "").replace(",", "")
        profile = {"avatar": identifier(rng)[:11] + ".png", "locale": rng.choice(("en-GB", "de-DE", "fr-FR")),
                   "notify": {"mail": rng.random() < 0.5, "push": rng.random() < 0.2}, "bio": self.words.text(12)}
        email = f"{name.split()[0].lower()}.{identifier(rng)[:7]}@example.org"
        return key, email, name, json.dumps(profile), stamp(moment), stamp(moment)

    def meta(self):
        rng = self.rng
        return {"views": int(rng.expovariate(1 / 900)), "likes": int(rng.expovariate(1 / 40)),
                "tags": rng.choices(self.tags, k=rng.randint(1, 4)),
                "lang": rng.choice(("en", "en", "de", "fr")),
                "editor": {"name": "blocks", "version": rng.choice(("2.4.1", "2.4.2", "2.5.0")), "format": "markdown"},
                "flags": {"pinned": rng.random() < 0.02, "comments": rng.random() < 0.9, "draft": False},
                "files": [identifier(rng)[:11] + ".jpg"] if rng.random() < 0.3 else []}

    def post(self, author, moment):
        rng = self.rng
        title = self.words.text(rng.randint(3, 8)).replace("\n", " ")
        slug = "-".join(title.lower().replace(",", "").replace(".", "").split()[:3]) + "-" + identifier(rng)[:5]
        body = self.words.text(60 + int(rng.expovariate(1 / 162)))
        edited = moment + timedelta(seconds=rng.expovariate(1 / 600_000))
        status = rng.choices(("published", "draft", "archived"), (85, 10, 5))[0]
        return (identifier(rng), author, slug, title, body, json.dumps(self.meta()), status,
                stamp(moment), stamp(edited))

    def event(self, post, moment):
        rng = self.rng
        data = {"ip": f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}",
                "agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/" + str(rng.randint(118, 134)),
                "ms": rng.randint(2, 900), "ok": rng.random() < 0.99}
        kind = rng.choice(("post.view", "post.view", "post.like", "post.edit", "post.share"))
        return identifier(rng), post, kind, json.dumps(data), stamp(moment)


INSERT_USER = "INSERT INTO users VALUES (?,?,?,?,?,?)"
INSERT_POST = "INSERT INTO posts VALUES (?,?,?,?,?,?,?,?,?)"
INSERT_EVENT = "INSERT INTO events VALUES (?,?,?,?,?)"


def connect(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={PAGE_BYTES}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-700000")
    return db


def close(db, path):
    """Checkpoint everything into the main file and leave nothing beside it."""
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    db.close()
    if busy or os.path.exists(f"{path}-wal"):
        sys.exit(f"{path}: the WAL could not be checkpointed; is the database open elsewhere?")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def make_database(path, seed, scale):
    """Rows in the order in which an application would have written them, so that the indexes have grown too."""
    rows = Rows(seed)
    rng, moment = rows.rng, EPOCH
    db = connect(path)
    db.executescript(SCHEMA)
    users = [rows.user(EPOCH - timedelta(minutes=i)) for i in range(max(10, USERS // scale))]
    authors = [user[0] for user in users]
    db.execute("BEGIN")
    db.executemany(INSERT_USER, users)
    pages, wanted = 0, DB_BYTES // scale // PAGE_BYTES
    while pages < wanted:
        # Smaller steps towards the end, so that the size comes out to within a few pages.
        count = max(1, min(10_000, wanted - pages))
        posts, events = [], []
        for _ in range(count):
            moment += timedelta(seconds=rng.expovariate(1 / 170))
            posts.append(rows.post(rng.choice(authors), moment))
            if rng.random() < 0.5:
                events.append(rows.event(rng.choice(posts)[0], moment))
        db.executemany(INSERT_POST, posts)
        db.executemany(INSERT_EVENT, events)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute("COMMIT")
    close(db, path)


def storage_sizes(rng, scale):
    """STORAGE_FILES log-normal sizes that add up to STORAGE_BYTES."""
    wanted = STORAGE_BYTES // scale
    raw = [rng.lognormvariate(0, 0.7) for _ in range(max(10, STORAGE_FILES // scale))]
    factor = wanted / sum(raw)
    sizes = [int(size * factor) for size in raw]
    sizes[0] += wanted - sum(sizes)
    return sizes


def write_file(path, data, rng):
    """Write a file with a modification time somewhere in the two years before EPOCH + 2 years."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    when = EPOCH.timestamp() + rng.randrange(2 * 365 * 86400) + rng.random()
    os.utime(path, (when, when))


def make_storage(root, seed, scale):
    rng = random.Random(f"storage {seed}")
    words = Words(rng, 60_000, 0.46)
    written = {"jpg": 0, "txt": 0}
    for size in storage_sizes(rng, scale):
        suffix = min(written, key=written.get)
        written[suffix] += size
        name = Path(rng.choice(("photos", "documents")), identifier(rng), f"file_{identifier(rng)[:11]}.{suffix}")
        write_file(root / name, rng.randbytes(size) if suffix == "jpg" else words.fill(size), rng)


def make_tiny(root, seed, scale):
    rng = random.Random(f"tiny {seed}")
    words = Words(rng, 8000, 1.0)
    for number in range(TINY_FILES // scale):
        name = f"d{number % TINY_DIRS:03d}/{identifier(rng)[:9]}.txt"
        write_file(root / name, words.fill(rng.randint(1, TINY_MAX_BYTES)), rng)


def make(directory, seed, scale):
    started = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    for part in ("app", "tiny"):
        if (directory / part).exists():
            sys.exit(f"{directory / part} exists already; remove it first")
    (directory / "app").mkdir()
    make_database(directory / "app/data.db", seed, scale)
    make_storage(directory / "app/storage", seed, scale)
    make_tiny(directory / "tiny", seed, scale)
    return {"kind": "make", "seed": seed, "scale": scale, "database_bytes": (directory / "app/data.db").stat().st_size,
            "storage_bytes": STORAGE_BYTES // scale, "tiny_files": TINY_FILES // scale,
            "seconds": round(time.monotonic() - started, 1)}


def edit(rows, body):
    """An author's change: a few words of the text replaced, now and then a sentence added."""
    words = body.split(" ")
    at = rows.rng.randrange(len(words))
    words[at : at + 3] = rows.words.text(3).split(" ")
    if rows.rng.random() < 0.3:
        words.append(rows.words.text(12))
    return " ".join(words)


def change_rows(db, rows, plan):
    """The night's updates, inserts and deletes in random order, one virtual night after the last change."""
    rng = rows.rng
    last_row, latest = db.execute("SELECT max(rowid), max(updated) FROM posts").fetchone()
    moment = datetime.strptime(latest, "%Y-%m-%d %H:%M:%S.%fZ").replace(tzinfo=timezone.utc) + timedelta(hours=1)
    authors = [row[0] for row in db.execute("SELECT id FROM users ORDER BY rowid")]
    pick = "SELECT rowid, body, meta FROM posts WHERE rowid >= ? ORDER BY rowid LIMIT 1"
    steps = [kind for kind in ("updates", "inserts", "deletes") for _ in range(plan[kind])]
    rng.shuffle(steps)
    db.execute("BEGIN")
    for step in steps:
        moment += timedelta(seconds=rng.expovariate(1 / 10))
        row, body, meta = db.execute(pick, (rng.randint(1, last_row),)).fetchone()
        if step == "inserts":
            db.execute(INSERT_POST, rows.post(rng.choice(authors), moment)[:8] + (stamp(moment),))
        elif step == "deletes":
            db.execute("DELETE FROM posts WHERE rowid = ?", (row,))
        else:
            meta = json.loads(meta)
            meta["views"] += rng.randint(1, 50)
            db.execute("UPDATE posts SET body = ?, meta = ?, updated = ? WHERE rowid = ?",
                       (edit(rows, body), json.dumps(meta), stamp(moment), row))
    db.execute("COMMIT")


def change_files(root, rng, plan):
    """Remove some attachments with their record's directory, add photos."""
    present = sorted(root.glob("*/*/*"))
    for victim in rng.sample(present, plan["remove"]):
        shutil.rmtree(victim.parent)
    for number in range(plan["add"]):
        size = plan["add_bytes"] * 2 * (number + 1) // (plan["add"] * (plan["add"] + 1))
        path = root / "photos" / identifier(rng) / f"file_{identifier(rng)[:11]}.jpg"
        path.parent.mkdir()
        path.write_bytes(rng.randbytes(size))


def night(kind, directory, seed, scale, old):
    plan = {what: -(-count // scale) for what, count in NIGHTS[kind].items()}
    path = directory / "app/data.db"
    rows = Rows(f"{kind} {seed}")
    db = connect(path)
    change_rows(db, rows, plan)
    close(db, path)
    change_files(directory / "app/storage", rows.rng, plan)
    result = {"kind": kind, "seed": seed, **plan, "database_bytes": path.stat().st_size}
    if old:
        result["pages_changed"] = sum(1 for _ in changed_pages(old, path))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "night", "quiet"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--count-pages", metavar="OLD", help="a copy of the database to compare with")
    args = parser.parse_args()
    if args.command == "make":
        result = make(args.directory, args.seed, args.scale)
    else:
        result = night(args.command, args.directory, args.seed, args.scale, args.count_pages)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
