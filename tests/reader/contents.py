"""From blobs to snapshots, directories, files and databases (repo-format.md, 12 to 14)."""

import os

from blake3 import blake3

from blobs import Blobs
from common import (
    CHUNK,
    DATABASE,
    DIRECTORY,
    FILE,
    HEADER,
    LEAF_PAGES,
    LIST,
    MAP,
    MARK,
    MIB,
    SNAPSHOT,
    SYMLINK,
    TREE,
    Cursor,
    Header,
    need,
    object_key,
    shaped,
    unseal,
    unzstd,
)
from schema import INNER, LEAF, MARK_SHAPE, ROOT, SNAPSHOT_SHAPE, TREE_SHAPE


class Repository(Blobs):
    """Adds what blobs mean."""

    def _control(self, folder, kind, shape):
        found = []
        for path in self.list(folder):
            data = self.get_named(path, 16 * MIB)
            header = Header(data, {kind}, path)
            need(len(data) == HEADER + header.first_bytes, f"{path}: of another length than stated")
            plain = unseal(object_key(self.keys.control, header.bytes), 0, header.bytes, data[HEADER:], path)
            found.append((os.path.basename(path), shaped(plain, shape, path)))
        return found

    def snapshots(self):
        found = self._control("snapshots", SNAPSHOT, SNAPSHOT_SHAPE)
        return sorted(found, key=lambda s: (s[1][0], s[1][3], s[0]))

    def marks(self):
        """All marks, in the order in which they count."""
        return sorted(self._control("marks", MARK, MARK_SHAPE), key=lambda m: (m[1][0], m[0]))

    def said(self, name, snapshot):
        """The tags that a snapshot has by now, and whether it is pinned."""
        tags, pinned = list(snapshot[6]), snapshot[14]
        for _, mark in self.marks():
            if mark[1].hex() == name:
                tags = [tag for tag in tags if tag not in mark[3]]
                tags += [tag for tag in dict.fromkeys(mark[2]) if tag not in tags]
                pinned = mark.get(4, pinned)
        return tags, pinned

    def snapshot(self, text):
        found = self.snapshots()
        found = found[-1:] if text == "latest" else [s for s in found if s[0].startswith(text)]
        need(len(found) == 1, f"{text!r} names {len(found)} snapshots")
        return found[0]

    def nodes(self, tree):
        value = shaped(self.blob(tree, TREE), TREE_SHAPE, f"tree {tree.hex()}")
        nodes = value[0]
        if 1 in value:
            need(not nodes, f"tree {tree.hex()} has both nodes and parts")
            for part in value[1]:
                below = shaped(self.blob(part, TREE), TREE_SHAPE, f"tree {part.hex()}")
                need(1 not in below, f"part {part.hex()} has parts")
                nodes = nodes + below[0]
        need(all(a[0] < b[0] for a, b in zip(nodes, nodes[1:])), f"tree {tree.hex()}: names out of order")
        for node in nodes:
            check_node(node)
        return nodes

    def walk(self, tree, path=b"", depth=0):
        need(depth <= 4096, "directories are nested too deeply")
        for node in self.nodes(tree):
            here = path + node[0]
            yield here, node
            if node[1] == DIRECTORY:
                yield from self.walk(node[14], here + b"/", depth + 1)

    def chunks(self, content):
        level = split(content[1])
        for _ in range(content[0]):
            level = [below for item in level for below in split(self.blob(item, LIST))]
        return level

    def file(self, node):
        if 18 in node:
            data = self.dump(node)
            need(len(data) == node[8] and blake3(data).digest() == node[18][4], "a dump is not what was dumped")
            return data
        data = b"".join(self.blob(chunk, CHUNK) for chunk in self.chunks(node[9]))
        if 13 not in node:
            need(len(data) == node[8], "the chunks don't add up to the file")
            return data
        out, at = bytearray(node[8]), 0
        for offset, length in zip(node[13][::2], node[13][1::2]):
            out[offset : offset + length] = data[at : at + length]
            at += length
        need(at == len(data) and len(out) == node[8], "the chunks don't add up to the extents")
        return bytes(out)

    def dump(self, node):
        chunks, lists = [self.blob(chunk, CHUNK) for chunk in self.chunks(node[9])], node[18].get(5, 0)
        if not lists:
            return b"".join(chunks)
        need(lists <= len(chunks), "a list of layers is longer than the content")
        pieces, layers = layer_list(b"".join(chunks[:lists]), len(chunks) - lists)
        decoded = []
        for (plain_bytes, bases, wanted), chunk in zip(layers, chunks[lists:]):
            if bases:
                chunk = rows(chunk, b"".join(decoded[base] for base in bases))
                need(blake3(chunk).digest() == wanted, "a layer does not decode to what it stands for")
            need(len(chunk) == plain_bytes, "a layer has another length than stated")
            decoded.append(chunk)
        return b"".join(decoded[piece] for piece in pieces)

    # Databases

    def leaf(self, blob):
        """The entries (segment, slot, hash) of a leaf's pages, and how many patches lie over the full leaf."""
        chain, at = [], blob
        while at is not None:
            need(len(chain) <= 64, "a leaf patches a longer chain than allowed")
            leaf = shaped(self.blob(at, MAP), LEAF, f"leaf {at.hex()}")
            chain.append(leaf)
            at = leaf.get(0)
            need((at is not None) == (leaf[1] > 0), "a leaf's depth does not fit")
        pages = []
        for depth, leaf in enumerate(reversed(chain)):
            need(leaf[1] == depth, "a leaf's depth does not fit")
            pages = (pages + [None] * leaf[3])[: leaf[3]]
            for page, entry in leaf_entries(leaf):
                pages[page] = entry
        need(None not in pages, "a page is nowhere")
        return pages, len(chain) - 1

    def leaves(self, map_id):
        root = shaped(self.blob(map_id, MAP), ROOT, "page map")
        level = split(root[4])
        for _ in range(root[3]):
            level = [c for node in level for c in split(shaped(self.blob(node, MAP), INNER, "inner node")[0])]
        need(len(level) == -(-root[1] // LEAF_PAGES), "a map has another number of leaves than pages need")
        return root, level

    def database(self, node):
        root, leaves = self.leaves(node[15][0])
        page_bytes, count = root[0], root[1]
        need(node[8] == page_bytes * count, "the pages don't add up to the database")
        pages, segments = [], {}
        for number, leaf in enumerate(leaves):
            entries, _ = self.leaf(leaf)
            need(len(entries) == min(LEAF_PAGES, count - LEAF_PAGES * number), "a leaf has another number of pages")
            for segment, slot, wanted in entries:
                if segment not in segments:
                    segments[segment] = self.segment(segment)
                size, slots = segments[segment]
                need(size == page_bytes and slot < len(slots), "a page is in a slot that is not there")
                found, page = slots[slot]
                need(found == wanted and page is not None, "a page is not in its slot")
                pages.append(page)
        data = b"".join(pages)
        need(blake3(data).digest() == root[2], "the pages don't make the file that was captured")
        return data

    def contents(self, node):
        return self.file(node) if node[1] == FILE else self.database(node)


def split(data):
    need(len(data) % 32 == 0, "a list of ids is cut short")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def layer_list(data, count):
    """The pieces of a stream as numbers of layers, and what is said of each layer."""
    cursor = Cursor(data)
    need(cursor.number(4) == count, "a list of layers is for another number of them")
    pieces, layers, costs = cursor.number(4), [], []
    for number in range(count):
        plain_bytes, bases = cursor.number(4), cursor.number(1)
        need(bases <= 4, "a layer leans on more than four others")
        bases = [cursor.number(4) for _ in range(bases)]
        need(all(base < number for base in bases), "a layer leans on a later one")
        costs.append(1 + sum(costs[base] for base in bases) if bases else 0)
        need(costs[-1] <= 64, "a layer takes too many others")
        layers.append((plain_bytes, bases, cursor.take(32) if bases else None))
    pieces = [cursor.number(4) for _ in range(pieces)]
    need(not cursor.left and all(piece < count for piece in pieces), "a list of layers makes no sense")
    return pieces, layers


def rows(body, base):
    """Decodes a delta of rows."""
    old, cursor = row_list(base), Cursor(body)
    script_bytes, packed_bytes, new_bytes = (cursor.number(4) for _ in range(3))
    script = Cursor(unzstd(cursor.take(packed_bytes), script_bytes))
    count = script.number(4)
    need(3 * count <= script_bytes, "a script has fewer entries than stated")
    steps, copied, new = ([script.varint() for _ in range(count)] for _ in range(3))
    need(not script.left, "a script is longer than its entries")
    at, ranges = 0, []
    for step, length in zip(steps, copied):
        at += step >> 1 ^ -(step & 1)
        need(0 <= at and at + length <= len(old), "a copy of rows that are not there")
        ranges.append((at, at + length))
        at += length
    used = {row for first, end in ranges for row in range(first, end)}
    prefix = b"".join(row for number, row in enumerate(old) if number not in used)
    fresh, out, taken = row_list(unzstd(cursor.take(cursor.left), new_bytes, prefix)), [], 0
    for (first, end), length in zip(ranges, new):
        out += old[first:end] + fresh[taken : taken + length]
        taken += length
    need(taken == len(fresh), "a script takes another number of new rows than there are")
    return b"".join(out)


def row_list(text):
    parts = text.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]


def check_node(node):
    name, kind = node[0], node[1]
    need(name not in (b"", b".", b"..") and not set(name) & {0, 0x2F}, f"the name {name!r} can't be")
    wanted = {FILE: (8, 9), DIRECTORY: (14,), SYMLINK: (10,), DATABASE: (8, 15), 5: (11,), 6: (11,)}.get(kind, ())
    need(all(key in node for key in wanted), f"{name!r} lacks what its kind needs")
    extents, end = node.get(13, []), 0
    need(len(extents) % 2 == 0, f"{name!r} has half an extent")
    for offset, length in zip(extents[::2], extents[1::2]):
        need(end <= offset and offset + length <= node.get(8, 0), f"{name!r} has extents out of order")
        end = offset + length
    names = [table[0].encode() for table in node.get(15, {}).get(6, {}).get(6, [])]
    need(names == sorted(set(names)), f"{node[0]!r} has tables out of order")
    sizes = [len(name) for name in names]
    need(len(sizes) <= 4096 and max(sizes, default=0) <= 1024 and sum(sizes) <= 65536, "more tables than allowed")


def leaf_entries(leaf):
    cursor, segments = Cursor(leaf[5]), split(leaf[4])
    numbers, expected = list(range(leaf[3])), 0
    if 0 in leaf:
        numbers = []
        while cursor.left > 19 * len(numbers):
            numbers.append(cursor.varint() + expected)
            need(numbers[-1] < leaf[3], "a patch of a page that is not there")
            expected = numbers[-1] + 1
    count = len(numbers)
    which = [cursor.number(2) for _ in range(count)]
    gaps = [cursor.number(1) for _ in range(count)]
    hashes = [cursor.take(16) for _ in range(count)]
    need(not cursor.left, "columns are longer than they must be")
    entries, seen, slot = [], 0, 0
    for number, gap, page_hash in zip(which, gaps, hashes):
        need(number <= seen and number < len(segments), "segments are not in the order of their mention")
        if number == seen:
            seen, slot = seen + 1, 0
        slot = (slot + gap) % 256
        entries.append((segments[number], slot, page_hash))
        slot = (slot + 1) % 256
    need(seen == len(segments), "a leaf lists a segment that it does not use")
    return zip(numbers, entries)
