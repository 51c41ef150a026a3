"""A small writer of the format, from repo-format.md alone: what this release reads and doesn't write yet.

Adds packs, an index file and a snapshot to a repository that is open. Used by the tests, on copies.
"""

import os

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import cbor
from common import CHUNK, DATA_PACK, INDEX, METADATA_PACK, NO_BASE, SEGMENT, SNAPSHOT, derive, keyed, object_key

DIRECTORY_STEP = 512


def little(value, width):
    """An unsigned little-endian number."""
    return value.to_bytes(width, "little")


def padme(n):
    """The Padmé length at or above n."""
    exponent = n.bit_length() - 1
    step = 1 << (exponent - exponent.bit_length())
    return -(-n // step) * step


def header(kind, first_bytes):
    """A header with a fresh salt."""
    return b"SNAP" + bytes([1, kind, 1, 0]) + little(0, 4) + little(first_bytes, 4) + os.urandom(32)


def seal(key, position, aad, plain):
    """Seals a message."""
    return ChaCha20Poly1305(key).encrypt(little(position, 4) + bytes(8), plain, aad)


def varint(n):
    """LEB128."""
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


class Writer:
    """Collects frames; `commit` stores them, an index, and a snapshot."""

    def __init__(self, repository):
        self.repository, self.keys = repository, repository.keys
        self.frames = {DATA_PACK: [], METADATA_PACK: []}

    def put(self, kind, plain):
        """A blob in a frame of its own, compressed if that helps."""
        blob = keyed(self.keys.ids[kind], plain)
        packed = zstandard.compress(plain)
        encoding, body = (1, packed) if len(packed) < len(plain) else (0, plain)
        frames = self.frames[DATA_PACK if kind == CHUNK else METADATA_PACK]
        frames.append((encoding, len(plain), [(blob, kind, len(plain))], [], body, b""))
        return blob

    def put_cbor(self, kind, value):
        """A tree or a part of a map."""
        return self.put(kind, cbor.encode(value))

    def put_segment(self, pages, bases=None, absent=()):
        """Pages as a segment. `bases`: for each page (segment, slot, page there) or None, for a delta. Slots in
        `absent` are left out."""
        size, present = len(pages[0]), [n for n in range(len(pages)) if n not in absent]
        hashes = [self.keys.page_hash(page) for page in pages]
        blob = keyed(self.keys.ids[SEGMENT], little(size, 4) + b"".join(hashes))
        bits = sum(1 << n for n in present)
        body = little(size, 4) + little(len(pages), 2) + bytes([2 if bases else 1, 0])
        body += little(bits, (len(pages) + 7) // 8) + b"".join(hashes[n] for n in absent)
        plain, names, dictionary = b"".join(pages[n] for n in present), [], None
        if bases:
            names = sorted({base[0] for base in bases if base})
            for base in (bases[n] for n in present):
                body += little(names.index(base[0]) if base else NO_BASE, 2) + little(base[1] if base else NO_BASE, 2)
            prefix = b"".join(bases[n][2] for n in present if bases[n])
            used = [(name, sorted({bases[n][1] for n in present if bases[n] and bases[n][0] == name})) for name in names]
            dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        body += zstandard.ZstdCompressor(dict_data=dictionary).compress(plain)
        slots = little(bits, 32) if absent else b""
        described = [name + bytes([len(slots) - 1] + slots) for name, slots in used] if bases else []
        self.frames[DATA_PACK].append((2, len(plain), [(blob, SEGMENT, len(plain))], described, body, slots))
        return [(blob, slot, page_hash) for slot, page_hash in enumerate(hashes)]

    def leaf(self, entries, parent=None, depth=0, pages=None):
        """A leaf of a page map from (page, (segment, slot, hash)), rising; with a parent a patch of it."""
        segments, gaps, which, slots, hashes = [], b"", b"", b"", b""
        page_expected = slot_expected = 0
        for page, (segment, slot, page_hash) in entries:
            gaps, page_expected = gaps + varint(page - page_expected), page + 1
            if segment not in segments:
                segments.append(segment)
                slot_expected = 0
            which += little(segments.index(segment), 2)
            slots, slot_expected = slots + little((slot - slot_expected) % 256, 1), (slot + 1) % 256
            hashes += page_hash
        columns = (gaps if parent else b"") + which + slots + hashes
        chain = len(columns) + 32 * len(segments) if parent else 0
        return {0: parent, 1: depth, 2: chain, 3: pages or len(entries), 4: b"".join(segments), 5: columns}

    def _store(self, path, data):
        path = os.path.join(self.repository.root, path, blake3(data).hexdigest())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return bytes.fromhex(os.path.basename(path))

    def _pack(self, kind):
        """Stores the frames of a kind as one pack and returns what an index says of it."""
        frames, directory = self.frames[kind], little(len(self.frames[kind]), 4)
        for encoding, plain_bytes, entries, bases, body, slots in frames:
            directory += little(len(body) + 16, 4) + little(plain_bytes, 4) + bytes([encoding, bool(slots)])
            directory += little(len(bases), 2) + little(len(entries), 4)
            for blob, blob_kind, length in entries:
                directory += blob + bytes([blob_kind, 0, 0, 0]) + little(length, 4)
            directory += b"".join(bases) + slots
        directory += bytes(-len(directory) % DIRECTORY_STEP)
        start = header(kind, len(directory) + 16)
        class_key = self.keys.seal[kind]
        key = object_key(class_key, start)
        data = start + seal(key, 0, start, directory)
        for position, (encoding, plain_bytes, _, _, body, _) in enumerate(frames, 1):
            data += seal(key, position, start + bytes([encoding]) + little(plain_bytes, 4), body)
        padding = derive("snapshot 2026 v1 padding", class_key + start)
        data += blake3(key=padding).digest(length=padme(len(data)) - len(data))
        folder = "packs/d" if kind == DATA_PACK else "packs/m"
        name = self._store(f"{folder}/{blake3(data).hexdigest()[:2]}", data)
        return name, len(data), start, frames

    def _index(self, packs):
        described, records = b"", []
        for number, (name, length, start, frames) in enumerate(packs):
            described += name + little(length, 8) + start + little(len(frames), 4)
            for frame, (encoding, plain_bytes, entries, bases, body, slots) in enumerate(frames):
                described += little(len(body) + 16, 4) + little(plain_bytes, 4) + bytes([encoding, bool(slots)])
                described += little(len(bases), 2) + b"".join(bases) + slots
                for blob, kind, size in entries:
                    records.append((blob, number, frame, kind, size))
        block = b""
        for blob, number, frame, kind, size in sorted(records):
            block += blob + little(number, 4) + little(frame, 4) + little(0, 3) + bytes([kind]) + little(size, 4)
        table = little(1, 4) * 2 + little(len(described) + 16, 4) + little(len(block) + 16, 4) + block[:32]
        start = header(INDEX, len(table) + 16)
        key = object_key(self.keys.seal[INDEX], start)
        self._store("index", start + b"".join(seal(key, n, start, m) for n, m in enumerate((table, described, block))))

    def commit(self, snapshot):
        """Stores everything, in the order that the format asks for, and returns the snapshot's id in hex."""
        self._index([self._pack(kind) for kind, frames in self.frames.items() if frames])
        plain = cbor.encode(snapshot)
        start = header(SNAPSHOT, len(plain) + 16)
        return self._store("snapshots", start + seal(object_key(self.keys.control, start), 0, start, plain)).hex()
