"""From a directory of objects to verified blobs: unlocking, index, packs, segments (repo-format.md, 7 to 11)."""

import os
import sys
from collections import namedtuple

import argon2.low_level
from blake3 import blake3

from common import (
    CHUNK,
    CONFIG,
    DATA_PACK,
    HEADER,
    INDEX,
    METADATA_PACK,
    MIB,
    NO_BASE,
    SEGMENT,
    SLOT,
    TAG,
    Bad,
    Cursor,
    Header,
    Keys,
    derive,
    keyed,
    need,
    object_key,
    shaped,
    unseal,
    unzstd,
)
from schema import CONFIG_SHAPE, SLOT_SHAPE

Frame = namedtuple("Frame", "number offset stored_bytes plain_bytes encoding entries bases slots")
Pack = namedtuple("Pack", "id kind header frames")
Place = namedtuple("Place", "pack frame offset type plain_bytes")


def recovery_secret(code):
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    digits = "".join(code.split()).replace("-", "").upper().replace("O", "0").replace("I", "1").replace("L", "1")
    if len(digits) != 40 or any(d not in alphabet for d in digits):
        return None
    number = 0
    for digit in digits:
        number = number << 5 | alphabet.index(digit)
    data = number.to_bytes(25, "big")
    check = derive("snapshot 2026 v1 recovery code check", data[:20])[:5]
    return data[:20] if check == data[20:] else None


def key_file_secret(path):
    with open(path, encoding="ascii") as file:
        head, _, digits = file.read().strip().partition(" ")
    need(head == "snapshot-key-1" and len(digits) == 64, "no key file")
    return bytes.fromhex(digits)


class Blobs:
    """A repository that is unlocked."""

    def __init__(self, root, secrets, use_index=True):
        """`secrets`: pairs of slot kind (0 password, 1 key file, 2 recovery code) and bytes."""
        self.root = root
        self.keys = self._unlock(secrets)
        self.places, self._frames = {}, {}
        self.packs = {}
        if not (use_index and self._load_index()):
            self._load_directories()

    def list(self, folder):
        found = []
        for at, _, names in os.walk(os.path.join(self.root, folder)):
            found += [os.path.relpath(os.path.join(at, name), self.root) for name in names]
        return sorted(found)

    def get(self, path, limit, offset=0, length=None):
        with open(os.path.join(self.root, path), "rb") as file:
            need(os.fstat(file.fileno()).st_size <= limit, f"{path}: larger than allowed")
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def get_named(self, path, limit):
        data = self.get(path, limit)
        need(blake3(data).hexdigest() == os.path.basename(path), f"{path}: not what its name says")
        return data

    # Keys

    def _unlock(self, secrets):
        problem = Bad("no config")
        for name in ("config", "config.bak"):
            try:
                data = self.get(name, MIB)
                header = Header(data, {CONFIG}, name)
                need(len(data) == HEADER + header.first_bytes + 32, f"{name}: of another length than stated")
                self.config = shaped(data[HEADER:-32], CONFIG_SHAPE, name)
                need(self.config[1] <= 1 and self.config[2] <= 1, "the repository is newer than this reader")
                need(not self.config[3], f"the repository uses the features {self.config[3]}")
                for master in self._masters(secrets):
                    keys = Keys(master)
                    if keyed(keys.config, data[:-32]) == data[-32:]:
                        return keys
                problem = Bad("wrong password or key, or the config is not authentic")
            except (Bad, OSError) as error:
                problem = error
        raise problem

    def _masters(self, secrets):
        for path in self.list("keys")[:32]:
            data = self.get(path, 64 << 10)
            try:
                header = Header(data, {SLOT}, path)
                slot = shaped(data[HEADER:], SLOT_SHAPE, path)
            except Bad as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            for kind, secret in secrets:
                if slot[0] != kind or (1 in slot) != (kind == 0):
                    continue
                if kind == 0:
                    cost = slot[1]
                    base = argon2.low_level.hash_secret_raw(
                        secret, header.salt, cost[1], cost[0], cost[2], 32, argon2.low_level.Type.ID, 0x13
                    )
                else:
                    base = derive("snapshot 2026 v1 slot secret", secret)
                if derive("snapshot 2026 v1 slot commitment", base + header.salt) == slot[2]:
                    kek = derive("snapshot 2026 v1 slot key", base + header.salt)
                    yield unseal(object_key(kek, b""), 0, header.bytes, slot[3], path)

    # Packs and index

    def _add_pack(self, pack):
        if pack.id not in self.packs:
            self.packs[pack.id] = pack
            return True
        return False

    def _add_place(self, blob, place):
        known = self.places.setdefault(blob, [])
        if place not in known:
            known.append(place)

    def _load_index(self):
        complete = True
        for path in self.list("index"):
            try:
                self._open_index(self.get_named(path, 1 << 30), path)
            except Bad as error:
                print(f"warning: {error}; packs are read instead", file=sys.stderr)
                complete = False
        return complete

    def _open_index(self, data, what):
        header = Header(data, {INDEX}, what)
        key, file = object_key(self.keys.seal[INDEX], header.bytes), Cursor(data[HEADER:])
        blocks = iter(range(1 << 32))

        def block(length):
            return Cursor(unseal(key, next(blocks), header.bytes, file.take(length), what))

        table = block(header.first_bytes)
        packs, records = table.number(4), table.number(4)
        need(table.left == 4 * packs + 36 * records, f"{what}: its table has another length than stated")
        pack_lengths = [table.number(4) for _ in range(packs)]
        record_blocks = [(table.number(4), table.take(32)) for _ in range(records)]
        numbered, found, last = [], [], b""
        for length in pack_lengths:
            cursor = block(length)
            while cursor.left:
                numbered.append(self._indexed_pack(cursor, what))
        for length, first in record_blocks:
            cursor = block(length)
            need(cursor.data[:32] == first, f"{what}: a block does not begin as the table says")
            while cursor.left:
                blob, pack, frame = cursor.take(32), cursor.number(4), cursor.number(4)
                offset, kind, plain = cursor.number(3), cursor.number(1), cursor.number(4)
                need(pack < len(numbered) and frame < len(numbered[pack].frames), f"{what}: a record leads nowhere")
                of = numbered[pack].frames[frame]
                need((kind in (CHUNK, SEGMENT)) == (numbered[pack].kind == DATA_PACK), f"{what}: a type out of place")
                need((kind == SEGMENT) == (of.encoding == 2), f"{what}: a segment out of place")
                need(offset + plain <= of.plain_bytes, f"{what}: a record beyond the end of its frame")
                order = (blob, pack, frame, offset, plain)
                need(not last or last <= order, f"{what}: its records are not sorted")
                last = order
                found.append((blob, Place(numbered[pack].id, frame, offset, kind, plain)))
        need(not file.left, f"{what}: bytes after the end")
        for pack in numbered:
            self._add_pack(pack)
        for blob, place in found:
            self._add_place(blob, place)

    def _indexed_pack(self, cursor, what):
        pack, length = cursor.take(32), cursor.number(8)
        header = Header(cursor.take(HEADER), {DATA_PACK, METADATA_PACK}, what)
        frames, at = [], HEADER + header.first_bytes
        for number in range(cursor.number(4)):
            stored, plain, encoding, partial = (cursor.number(n) for n in (4, 4, 1, 1))
            bases = take_bases(cursor, cursor.number(2))
            need(partial <= (encoding == 2) and encoding <= 2 and plain <= 16 * MIB, f"{what}: a frame makes no sense")
            need(TAG <= stored <= 32 * MIB and (encoding == 2 or not bases), f"{what}: a frame makes no sense")
            cursor.take(32 * partial)
            frames.append(Frame(number, at, stored, plain, encoding, None, bases, None))
            at += stored
        need(at <= length <= 256 * MIB, f"{what}: frames beyond the end of a pack")
        return Pack(pack, header.kind, header, frames)

    def pack_paths(self):
        return [path for kind in "dm" for path in self.list(f"packs/{kind}")]

    def _load_directories(self):
        for path in self.pack_paths():
            pack = self.open_pack(path)
            if self._add_pack(pack):
                for frame in pack.frames:
                    offset = 0
                    for blob, kind, plain in frame.entries:
                        self._add_place(blob, Place(pack.id, frame.number, offset, kind, plain))
                        offset += plain

    def open_pack(self, path):
        kind = DATA_PACK if path.startswith("packs/d/") else METADATA_PACK
        header = Header(self.get(path, 256 * MIB, 0, HEADER), {kind}, path)
        need(header.first_bytes <= 16 * MIB, f"{path}: its directory is larger than allowed")
        key = object_key(self.keys.seal[kind], header.bytes)
        sealed = self.get(path, 256 * MIB, HEADER, header.first_bytes)
        cursor = Cursor(unseal(key, 0, header.bytes, sealed, path))
        frames, at = [], HEADER + header.first_bytes
        for number in range(cursor.number(4)):
            stored, plain, encoding, partial, bases, count = (cursor.number(n) for n in (4, 4, 1, 1, 2, 4))
            entries = []
            for _ in range(count):
                blob, entry_kind, zeros, length = cursor.take(32), cursor.number(1), cursor.take(3), cursor.number(4)
                need(zeros == bytes(3) and 1 <= entry_kind <= 5, f"{path}: an entry makes no sense")
                entries.append((blob, entry_kind, length))
            bases = take_bases(cursor, bases)
            need(partial <= (encoding == 2) and encoding <= 2 and entries, f"{path}: a frame makes no sense")
            need(TAG <= stored <= 32 * MIB and plain <= 16 * MIB, f"{path}: a frame makes no sense")
            slots = cursor.take(32) if partial else None
            if encoding == 2:
                need(len(entries) == 1 and entries[0][1] == SEGMENT, f"{path}: a segment's frame has other blobs")
                need(kind == DATA_PACK and entries[0][2] == plain, f"{path}: a segment makes no sense")
            else:
                need(sum(e[2] for e in entries) == plain and not bases, f"{path}: blobs don't add up to their frame")
                need(all((e[1] == CHUNK) == (kind == DATA_PACK) for e in entries), f"{path}: a blob of the wrong type")
                need(all(e[1] != SEGMENT for e in entries), f"{path}: a segment where other blobs are expected")
                need(plain < 16 * MIB or entries[-1][2], f"{path}: a blob that begins at 16 MiB")
            frames.append(Frame(number, at, stored, plain, encoding, entries, bases, slots))
            at += stored
        need(not any(cursor.data[cursor.at :]), f"{path}: bytes after the directory")
        need(at <= os.path.getsize(os.path.join(self.root, path)), f"{path}: frames beyond the end")
        return Pack(bytes.fromhex(os.path.basename(path)), kind, header, frames)

    # Blobs

    def frame_body(self, pack, frame):
        name = pack.id.hex()
        path = f"packs/{'d' if pack.kind == DATA_PACK else 'm'}/{name[:2]}/{name}"
        key = object_key(self.keys.seal[pack.kind], pack.header.bytes)
        aad = pack.header.bytes + bytes([frame.encoding]) + frame.plain_bytes.to_bytes(4, "little")
        sealed = self.get(path, 256 * MIB, frame.offset, frame.stored_bytes)
        return unseal(key, frame.number + 1, aad, sealed, f"frame {frame.number} of pack {name[:8]}")

    def decode_frame(self, pack, frame):
        if (pack.id, frame.number) not in self._frames:
            body = self.frame_body(pack, frame)
            need(frame.encoding != 2, "a segment where other blobs are expected")
            plain = unzstd(body, frame.plain_bytes) if frame.encoding == 1 else body
            need(len(plain) == frame.plain_bytes, "a frame has another length than is stated")
            while len(self._frames) >= 8:
                self._frames.pop(next(iter(self._frames)))
            self._frames[pack.id, frame.number] = plain
        return self._frames[pack.id, frame.number]

    def _anywhere(self, blob, read):
        problem = Bad(f"blob {blob.hex()} is missing")
        for place in self.places.get(blob, []):
            try:
                pack = self.packs[place.pack]
                return read(place, pack, pack.frames[place.frame])
            except (Bad, OSError) as error:
                problem = error
        raise problem

    def blob(self, blob, kind):
        def read(place, pack, frame):
            need(place.type == kind, f"blob {blob.hex()} is of another type")
            data = self.decode_frame(pack, frame)[place.offset :][: place.plain_bytes]
            need(keyed(self.keys.ids[kind], data) == blob, f"blob {blob.hex()} is not what its id says")
            return data

        return self._anywhere(blob, read)

    def segment(self, blob, depth=0):
        """The page size, and for each slot its hash and its page or None."""
        need(depth <= 16, "too many segments lean on each other")
        found = None

        def read(place, pack, frame):
            nonlocal found
            need(place.type == SEGMENT and frame.encoding == 2, f"segment {blob.hex()} is of another type")
            bases = [(told, self.segment(base, depth + 1)[1]) for base, told in frame.bases]
            size, slots = decode_segment(self.keys, blob, self.frame_body(pack, frame), bases)
            if found:
                slots = [(known, page or older) for (known, page), (_, older) in zip(slots, found[1])]
            found = size, slots
            need(all(page for _, page in slots), f"segment {blob.hex()} has pages that are in no other copy, either")

        try:
            self._anywhere(blob, read)
        except (Bad, OSError):
            if not found:
                raise
        return found

    def verify_packs(self):
        """Every frame of every pack, from the packs' own directories."""
        for path in self.pack_paths():
            self.get_named(path, 256 * MIB)
            pack = self.open_pack(path)
            for frame in pack.frames:
                if frame.encoding == 2:
                    bases = [(told, self.segment(base, 1)[1]) for base, told in frame.bases]
                    _, slots = decode_segment(self.keys, frame.entries[0][0], self.frame_body(pack, frame), bases)
                    bits = sum(1 << n for n, (_, page) in enumerate(slots) if page is not None)
                    told = int.from_bytes(frame.slots, "little") if frame.slots else (1 << len(slots)) - 1
                    need(told == bits, f"{path}: the directory tells of other slots than are there")
                    continue
                plain, at = self.decode_frame(pack, frame), 0
                for blob, kind, length in frame.entries:
                    need(keyed(self.keys.ids[kind], plain[at : at + length]) == blob, f"{path}: a blob is damaged")
                    at += length


def take_bases(cursor, count):
    """The segments that a frame leans on, and which slots of each."""
    bases = []
    for _ in range(count):
        base, slots = cursor.take(32), list(cursor.take(cursor.number(1) + 1))
        need(all(a < b for a, b in zip(slots, slots[1:])), "slots of a base are out of order")
        bases.append((base, slots))
    return bases


def decode_segment(keys, blob, body, bases):
    cursor = Cursor(body)
    page_bytes, count, method, zero = (cursor.number(n) for n in (4, 2, 1, 1))
    need(page_bytes in [1 << n for n in range(9, 17)], "a segment of an impossible page size")
    need(1 <= count <= min(256, MIB // page_bytes) and method <= 2 and zero == 0, "a segment makes no sense")
    bits = int.from_bytes(cursor.take((count + 7) // 8), "little")
    need(bits < 1 << count, "a slot that is not there is marked as present")
    present = [bits >> slot & 1 for slot in range(count)]
    hashes = [None if there else cursor.take(16) for there in present]
    prefix = b""
    if method == 2:
        for _ in range(sum(present)):
            base, slot = cursor.number(2), cursor.number(2)
            need(base != NO_BASE or slot == NO_BASE, "half a base")
            if base != NO_BASE:
                need(base < len(bases) and slot in bases[base][0], "a base that the directory does not name")
                need(slot < len(bases[base][1]), "a base that is not there")
                page = bases[base][1][slot][1]
                need(page is not None, "a base page that is not there")
                prefix += page
    plain = cursor.take(cursor.left)
    if method:
        plain = unzstd(plain, sum(present) * page_bytes, prefix)
    need(len(plain) == sum(present) * page_bytes, "a segment has another length than its pages")
    slots, at = [], 0
    for known in hashes:
        page = None
        if known is None:
            page, at = plain[at : at + page_bytes], at + page_bytes
            known = keys.page_hash(page)
        slots.append((known, page))
    named = keyed(keys.ids[SEGMENT], page_bytes.to_bytes(4, "little") + b"".join(known for known, _ in slots))
    need(named == blob, "a segment's pages are not those that its id stands for")
    return page_bytes, slots
