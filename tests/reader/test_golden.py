#!/usr/bin/env python3
"""Reads every golden repository with the independent reader, and compares it with what it must contain.

    python3 tests/reader/test_golden.py [SNAPSHOT_BINARY]

Also checks that the rules for writing in repo-format.md are those that the repository was written by (chunker, cuts,
padding), and adds to a copy what this release reads but doesn't write: deltas, absent slots, lists, inner nodes. With
a binary, that reads the addition too. Exit status 0 if all is as it must be.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

from blake3 import blake3

import cbor
from blobs import key_file_secret, recovery_secret
from common import CHUNK, DATABASE, DIRECTORY, FILE, HEADER, KINDS, LIST, MAP, MIB, SYMLINK, TREE, Bad, derive, keyed
from contents import Repository, split
from writer import Writer, padme

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
WRITTEN = "0.1"


def equal(got, wanted, what):
    """Fails unless both are equal."""
    if got != wanted:
        raise Bad(f"{what}: {got!r:.300} where {wanted!r:.300} is expected")


def read_text(path):
    with open(path, "rb") as file:
        return file.read().rstrip(b"\n")


def describe(repository, node):
    """A node as expected.json has it."""
    out = {"mode": node[2], "kind": KINDS[node[1]]}
    if node[1] in (FILE, DATABASE):
        data = repository.contents(node)
        out |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "blake3": blake3(data).hexdigest()}
    if node[1] == SYMLINK:
        out["target"] = urllib.parse.quote(node[10])
    if node[1] != DATABASE:
        out["mtime"] = node[5][0] * 10**9 + node[5][1]
    names = [name for name, _ in node.get(12, [])]
    equal(names, sorted(set(names)), "order of attributes")
    out["xattrs"] = {name.decode(): value.hex() for name, value in node.get(12, []) if name.startswith(b"user.")}
    return out


def check_contents(repository, expected):
    """Every file and database of every generation; the chain."""
    previous = None
    equal(len(repository.snapshots()), len(expected["generations"]), "number of snapshots")
    for generation in expected["generations"]:
        name, snapshot = repository.snapshot(generation["snapshot"])
        equal((snapshot[3], snapshot.get(4)), (generation["generation"], previous), "generation and chain")
        previous = bytes.fromhex(name)
        equal(repository.said(name, snapshot), (generation["tags"], generation["pinned"]), "tags and pin")
        equal(snapshot[6], [f"generation-{snapshot[3]}"], "tags that it was made with")
        found = {}
        links = {}
        for path, node in repository.walk(snapshot[7]):
            found[urllib.parse.quote(path)] = describe(repository, node)
            if 16 in node:
                links.setdefault(node[16], []).append(path)
        found.pop("app")
        equal(sorted(found), sorted(generation["files"]), "names")
        for path, wanted in generation["files"].items():
            equal(found[path], wanted, f"{name[:8]}:{path}")
        equal(list(links.values()), [[b"app/config.toml", b"app/storage/same-config"]], "hard links")


def check_slots(repository):
    """Snapshots and marks name the slot that opened the repository: there, that of the key file."""
    made = [snapshot[13] for _, snapshot in repository.snapshots()] + [mark[5] for _, mark in repository.marks()]
    slots = {blake3(repository.get(path, MIB)).digest() for path in repository.list("keys")}
    equal((len(made), len(set(made)), set(made) <= slots, len(slots)), (6, 1, True, 3), "slots in use")


def check_shapes(repository):
    """What the golden repository is there to hold."""
    deepest, parts, extents = 0, 0, 0
    for _, snapshot in repository.snapshots():
        for _, node in repository.walk(snapshot[7]):
            if node[1] == DATABASE:
                deepest = max([deepest] + [repository.leaf(leaf)[1] for leaf in repository.leaves(node[15][0])[1]])
            if node[1] == DIRECTORY:
                parts = max(parts, len(cbor.decode(repository.blob(node[14], TREE)).get(1, [])))
            extents = max(extents, len(node.get(13, [])))
    equal((deepest, parts, extents), (1, 2, 4), "patches, parts of a directory, extents")
    equal(len(repository.marks()), 4, "marks")


# The rules for writing


def cuts(chunker, key, data):
    """Where gear-1 cuts."""
    table = blake3(key=key).digest(length=2048)
    gear = [int.from_bytes(table[at : at + 8], "little") for at in range(0, 2048, 8)]
    bits, low, desired, high = chunker[2].bit_length() - 1, chunker[1], chunker[2], chunker[3]
    every = (1 << 64) - 1
    strict, loose = every << (63 - bits) & every, every << (65 - bits) & every
    at = 0
    while at < len(data):
        end, value = min(len(data), at + high), 0
        length = end - at
        for i in range(at + low, end):
            value = (value << 1) + gear[data[i]] & every
            if not value & (strict if i - at < desired else loose):
                length = i + 1 - at
                break
        yield data[at : at + length]
        at += length


def check_chunker(repository):
    for _, snapshot in repository.snapshots():
        for path, node in repository.walk(snapshot[7]):
            if path in (b"app/storage/large.txt", b"app/storage/sparse.bin"):
                data = repository.file(node)
                if 13 in node:
                    data = b"".join(data[o : o + n] for o, n in zip(node[13][::2], node[13][1::2]))
                chunks = cuts(repository.config[4], repository.keys.chunker, data)
                made = [keyed(repository.keys.ids[CHUNK], chunk) for chunk in chunks]
                equal(split(node[9][1]), made, f"chunks of {path!r}")


def check_parts(repository):
    for _, snapshot in repository.snapshots():
        for path, node in repository.walk(snapshot[7]):
            if path == b"app/items":
                parts, part = [], []
                for below in repository.nodes(node[14]):
                    part.append(below)
                    if len(part) >= 64 and blake3(below[0]).digest()[0] == 0 or len(part) == 1024:
                        parts, part = parts + [part], []
                made = [keyed(repository.keys.ids[TREE], cbor.encode({0: p})) for p in parts + [part] if p]
                equal(cbor.decode(repository.blob(node[14], TREE))[1], made, "parts of app/items")


def check_padding(repository):
    for path in repository.pack_paths():
        pack, size = repository.open_pack(path), os.path.getsize(os.path.join(repository.root, path))
        end = HEADER + pack.header.first_bytes + sum(f.stored_bytes for f in pack.frames)
        equal(size, padme(end), f"{path}: its length")
        key = derive("snapshot 2026 v1 padding", repository.keys.seal[pack.kind] + pack.header.bytes)
        found = repository.get(path, 1 << 30, end)
        equal(found, blake3(key=key).digest(length=size - end) if size > end else b"", f"{path}: its padding")


# What is read and not written


def add_all(repository):
    """Adds a snapshot, and returns its id and the contents of its files."""
    noise, writer = random.Random(3), Writer(repository)
    chunks = [noise.randbytes(100 + n) for n in range(9)]
    ids = [writer.put(CHUNK, chunk) for chunk in chunks]
    lists = [writer.put(LIST, b"".join(ids[n : n + 3])) for n in (0, 3, 6)]
    tops = [writer.put(LIST, b"".join(lists[:2])), writer.put(LIST, lists[2])]
    listed = {0: b"listed", 8: sum(map(len, chunks)), 9: {0: 2, 1: b"".join(tops)}}

    size = 512
    old = [noise.randbytes(size) for _ in range(10)]
    at = writer.put_segment(old)
    middle = [page[:-1] + b"x" for page in old[:4]]
    at_middle = writer.put_segment(middle, [at[n][:2] + (old[n],) for n in range(4)])
    new = [page[:-2] + b"yz" for page in middle] + [noise.randbytes(size)]
    at_new = writer.put_segment(new, [at_middle[n][:2] + (middle[n],) for n in range(4)] + [None])
    partial = [noise.randbytes(size) for _ in range(9)]
    # Two copies, neither of which has all that is needed.
    writer.put_segment(partial, absent=(0, 7, 8))
    at_partial = writer.put_segment(partial, absent=(0, 1, 7))

    # Two full leaves below an inner node; the second is patched twice, shrinking and growing.
    where = [at[n % 10] for n in range(4096)]
    first = writer.put_cbor(MAP, writer.leaf(list(enumerate(where))))
    second = writer.put_cbor(MAP, writer.leaf(list(enumerate(at))))
    patch = writer.put_cbor(MAP, writer.leaf([(0, at_middle[3]), (3, at_partial[8])], second, 1, 5))
    changes = list(zip((1, 2, 4, 5, 6), at_new[1:] + at_partial[1:2]))
    second = writer.put_cbor(MAP, writer.leaf(changes, patch, 2, 7))
    pages = [old[n % 10] for n in range(4096)] + [middle[3], new[1], new[2], partial[8], new[3], new[4], partial[1]]
    inner = writer.put_cbor(MAP, {0: first + second})
    data = b"".join(pages)
    root = writer.put_cbor(MAP, {0: size, 1: len(pages), 2: blake3(data).digest(), 3: 1, 4: inner})
    database = {0: root, 1: [0, 0], 2: 0, 4: False, 5: len(data)}
    nodes = [{0: b"database", 1: DATABASE, 8: len(data), 15: database}, {**listed, 1: FILE}]
    nodes = [{2: 0o644, 3: 0, 4: 0, 5: [-1, 5], **node} for node in nodes]
    snapshot = {0: [1_800_000_000, 0], 1: "golden", 2: "made by hand", 3: 1, 5: [b"x"], 6: [], 12: [1_800_000_000, 0]}
    snapshot |= {7: writer.put_cbor(TREE, {0: nodes}), 8: {n: 0 for n in range(11)}, 9: "writer.py", 10: [], 11: []}
    snapshot[14] = False
    return writer.commit(snapshot), {b"database": data, b"listed": b"".join(chunks)}


def check_additions(golden, secrets, binary):
    with tempfile.TemporaryDirectory() as work:
        copy = os.path.join(work, "repository")
        shutil.copytree(os.path.join(golden, "repository"), copy)
        name, wanted = add_all(Repository(copy, secrets))
        for use_index in (True, False):
            repository = Repository(copy, secrets, use_index)
            for path, node in repository.walk(repository.snapshot(name)[1][7]):
                equal(repository.contents(node) == wanted[path], True, f"contents of {path!r}")
            repository.verify_packs()
        if binary:
            run = [binary, "-r", copy, "--key-file", os.path.join(golden, "key-file"), "-q"]
            for path, data in wanted.items():
                done = subprocess.run(run + ["dump", name, path], check=True, stdout=subprocess.PIPE)
                equal(done.stdout == data, True, f"{path!r} as the program reads it")
            subprocess.run(run + ["check", "--read-data"], check=True, stdout=subprocess.DEVNULL)


def check_golden(golden, binary):
    with open(os.path.join(golden, "expected.json"), encoding="utf-8") as file:
        expected = json.load(file)
    root = os.path.join(golden, "repository")
    key = [(1, key_file_secret(os.path.join(golden, "key-file")))]
    password = [(0, read_text(os.path.join(golden, "password")))]
    code = [(2, recovery_secret(read_text(os.path.join(golden, "recovery-code")).decode()))]
    check_contents(Repository(root, key), expected)
    check_contents(Repository(root, password, use_index=False), expected)
    check_contents(Repository(root, code), expected)
    repository = Repository(root, key)
    repository.verify_packs()
    check_shapes(repository)
    check_slots(repository)
    if os.path.basename(golden) == WRITTEN:
        check_chunker(repository)
        check_parts(repository)
        check_padding(repository)
    check_additions(golden, key, binary)
    print(f"{os.path.basename(golden)}: {sum(len(g['files']) for g in expected['generations'])} names as expected")


def main():
    binary = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else None
    releases = sorted(name for name in os.listdir(GOLDEN) if os.path.isdir(os.path.join(GOLDEN, name)))
    equal(bool(releases), True, "a golden repository")
    for release in releases:
        check_golden(os.path.join(GOLDEN, release), binary)


if __name__ == "__main__":
    try:
        main()
    except (Bad, OSError, subprocess.CalledProcessError) as problem:
        sys.exit(f"error: {problem}")
