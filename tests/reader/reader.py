#!/usr/bin/env python3
"""An independent reader of repositories, written from repo-format.md alone.

    reader.py -r REPOSITORY (--key-file F | --password P | --password-file F | --recovery-code C) COMMAND

    list              the snapshots
    ls SNAPSHOT       everything in one (an id, the start of one, or "latest")
    cat SNAPSHOT PATH > out      one file or database; PATH as ls prints it, percent-encoded where not plain
    verify            everything in every snapshot, and every frame of every pack

With --no-index the packs' own directories are used. Every id, hash and seal on the way is verified; the first thing
that is wrong ends the program with status 1. Needs the Python modules blake3, zstandard, cryptography, argon2-cffi.
"""

import argparse
import os
import sys
import urllib.parse

from blobs import key_file_secret, recovery_secret
from common import DATABASE, FILE, KINDS, Bad, need
from contents import Repository


def show(path, node):
    size = node.get(8, "")
    target = " -> " + urllib.parse.quote(node[10]) if 10 in node else ""
    return f"{KINDS[node[1]]:<12} {node[2]:04o} {size:>10} {node[5][0]} {urllib.parse.quote(path)}{target}"


def verify(repository):
    known = set()
    for name, snapshot in repository.snapshots():
        for path, node in repository.walk(snapshot[7]):
            if node[1] in (FILE, DATABASE):
                what = node[15][0] if node[1] == DATABASE else (node[9][0], node[9][1], *node.get(13, []), node[8])
                if what not in known:
                    repository.contents(node)
                    known.add(what)
        print(f"{name[:8]} verified")
    repository.verify_packs()
    print(f"{len(repository.pack_paths())} packs verified")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--repo", required=True)
    secret = parser.add_mutually_exclusive_group(required=True)
    for name in ("key-file", "password", "password-file", "recovery-code"):
        secret.add_argument("--" + name)
    parser.add_argument("--no-index", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("ls").add_argument("snapshot")
    cat = commands.add_parser("cat")
    cat.add_argument("snapshot")
    cat.add_argument("path")
    commands.add_parser("verify")
    return parser.parse_args()


def secrets_of(args):
    if args.key_file:
        return [(1, key_file_secret(args.key_file))]
    if args.recovery_code:
        return [(2, recovery_secret(args.recovery_code) or b"")]
    password = args.password
    if args.password_file:
        with open(args.password_file, "rb") as file:
            password = file.readline().removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
    code = recovery_secret(password)
    return [(0, os.fsencode(password))] + ([(2, code)] if code else [])


def main():
    args = arguments()
    repository = Repository(args.repo, secrets_of(args), not args.no_index)
    if args.command == "list":
        for name, s in repository.snapshots():
            tags, pinned = repository.said(name, s)
            pin = "  pinned" if pinned else ""
            print(f"{name}  generation {s[3]}  {s[0][0]}  {s[1]}:{s[2]}  {','.join(tags)}  {s[8][4]} bytes{pin}")
    elif args.command == "ls":
        for path, node in repository.walk(repository.snapshot(args.snapshot)[1][7]):
            print(show(path, node))
    elif args.command == "cat":
        wanted = urllib.parse.unquote_to_bytes(args.path)
        for path, node in repository.walk(repository.snapshot(args.snapshot)[1][7]):
            if path == wanted:
                need(node[1] in (FILE, DATABASE), "that is neither a file nor a database")
                sys.stdout.buffer.write(repository.contents(node))
                return
        raise Bad("there is no such path in that snapshot")
    else:
        verify(repository)


if __name__ == "__main__":
    try:
        main()
    except (Bad, OSError) as problem:
        sys.exit(f"error: {problem}")
