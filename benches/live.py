"""A database that is written to while snapshots are taken of it, and the judge of what comes back.

    live.py prepare DB                    make the table that every transaction changes
    live.py write DB COMMITTED            commit 50 transactions a second in WAL mode until standard input ends; the
                                          number of the last one is kept in the file COMMITTED
    live.py judge DB COMMITTED            print what a restored copy is: sound, or why not

Each transaction inserts a post, edits three others (all with their indexes) and moves an amount between two of
100 accounts. A copy is sound if SQLite opens it with what lies beside it, `PRAGMA integrity_check` finds nothing, no
amount was made or lost, and the transactions are there that had been committed when the snapshot began.
"""

import os
import sqlite3
import sys
import threading
import time

from make_data import INSERT_POST, Rows, edit, stamp, EPOCH

TRANSACTIONS_PER_SECOND = 50
EDITS = 3
ACCOUNTS = 100
AMOUNT = 1000


def prepare(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE ledger (account INTEGER PRIMARY KEY, amount INTEGER NOT NULL)")
        db.executemany("INSERT INTO ledger VALUES (?, ?)", [(account, AMOUNT) for account in range(ACCOUNTS)])
        db.execute("CREATE TABLE last (number INTEGER NOT NULL)")
        db.execute("INSERT INTO last VALUES (0)")
    db.close()


def transact(db, rows, number, author, last_row):
    rng = rows.rng
    pick = "SELECT rowid, body FROM posts WHERE rowid >= ? ORDER BY rowid LIMIT 1"
    # A writer in WAL mode waits for nobody.
    db.execute("BEGIN IMMEDIATE")
    db.execute(INSERT_POST, rows.post(author, EPOCH))
    for _ in range(EDITS):
        row, body = db.execute(pick, (rng.randint(1, last_row),)).fetchone()
        db.execute("UPDATE posts SET body = ?, updated = ? WHERE rowid = ?", (edit(rows, body), stamp(EPOCH), row))
    source, target = rng.sample(range(ACCOUNTS), 2)
    db.execute("UPDATE ledger SET amount = amount - ? WHERE account = ?", (number % 9, source))
    db.execute("UPDATE ledger SET amount = amount + ? WHERE account = ?", (number % 9, target))
    db.execute("UPDATE last SET number = ?", (number,))
    db.execute("COMMIT")


def write(path, committed):
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    rows = Rows("live")
    author, = db.execute("SELECT id FROM users LIMIT 1").fetchone()
    last_row, = db.execute("SELECT max(rowid) FROM posts").fetchone()
    number, = db.execute("SELECT number FROM last").fetchone()
    ended = threading.Event()

    def wait():
        while os.read(0, 4096):
            pass
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    out = os.open(committed, os.O_WRONLY | os.O_CREAT)
    due = time.monotonic()
    while not ended.is_set():
        number += 1
        transact(db, rows, number, author, last_row)
        os.pwrite(out, b"%020d\n" % number, 0)
        due = max(due + 1 / TRANSACTIONS_PER_SECOND, time.monotonic() - 1)
        ended.wait(max(0, due - time.monotonic()))
    db.close()


def judge(path, committed):
    """In one word: sound, absent, malformed, torn or old."""
    if not os.path.exists(path):
        return "absent"
    try:
        db = sqlite3.connect(path)
        if db.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return "malformed"
        if db.execute("SELECT sum(amount) FROM ledger").fetchone() != (ACCOUNTS * AMOUNT,):
            return "torn"
        return "sound" if db.execute("SELECT number FROM last").fetchone()[0] >= int(committed) else "old"
    except sqlite3.DatabaseError:
        return "malformed"


def main():
    command, *args = sys.argv[1:]
    if command == "judge":
        print(judge(*args))
    else:
        {"prepare": prepare, "write": write}[command](*args)


if __name__ == "__main__":
    main()
