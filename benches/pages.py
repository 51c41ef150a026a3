"""Compare two versions of a SQLite database page by page.

    pages.py OLD NEW --out PREFIX

writes the pages of NEW that differ from OLD, one after the other, to PREFIX.new, and what OLD has at
the same page numbers to PREFIX.old (pages that OLD does not have are missing there). compare.sh
compresses the two for its reference of what a night must cost. Also imported by make_data.py.
"""

import argparse
import json

BATCH_PAGES = 1024


def page_size(path):
    """The page size in the header of the database at `path`."""
    with open(path, "rb") as file:
        header = file.read(100)
    size = int.from_bytes(header[16:18], "big")
    return 65536 if size == 1 else size


def changed_pages(old_path, new_path):
    """Yield (page number, old bytes, new bytes) of each differing page; old is b"" where new grew."""
    size = page_size(new_path)
    number = 1
    with open(old_path, "rb") as old_file, open(new_path, "rb") as new_file:
        while new := new_file.read(size * BATCH_PAGES):
            old = old_file.read(len(new))
            if old != new:
                for at in range(0, len(new), size):
                    if old[at : at + size] != new[at : at + size]:
                        yield number + at // size, old[at : at + size], new[at : at + size]
            number += len(new) // size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--out", required=True, metavar="PREFIX")
    args = parser.parse_args()
    count = total = 0
    with open(args.out + ".old", "wb") as old_out, open(args.out + ".new", "wb") as new_out:
        for _, old, new in changed_pages(args.old, args.new):
            old_out.write(old)
            new_out.write(new)
            count += 1
            total += len(new)
    print(json.dumps({"pages_changed": count, "bytes_changed": total}))


if __name__ == "__main__":
    main()
