"""What all parts share: errors, fixed records, zstd, headers, keys and seals (repo-format.md, 3, 5, 6)."""

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import cbor

HEADER, TAG = 48, 16
MIB = 1 << 20
CONFIG, SLOT, DATA_PACK, METADATA_PACK, INDEX, SNAPSHOT, MARK = 1, 2, 3, 4, 5, 6, 9
CHUNK, SEGMENT, TREE, LIST, MAP = 1, 2, 3, 4, 5
TYPES = ("chunk", "segment", "tree", "list", "map")
FILE, DIRECTORY, SYMLINK, DATABASE = 0, 1, 2, 3
KINDS = ("file", "directory", "symlink", "database", "fifo", "char device", "block device", "socket")
NO_BASE = 0xFFFF
LEAF_PAGES = 4096


class Bad(Exception):
    """Something in the repository is not as it must be."""


def need(condition, why):
    if not condition:
        raise Bad(why)


def shaped(data, shape, what):
    try:
        value = cbor.decode(data)
    except cbor.BadCbor as error:
        raise Bad(f"{what}: {error}") from error
    need(shape(value), f"{what}: its fields are not those of the schema")
    return value


def derive(context, material):
    return blake3(material, derive_key_context=context).digest()


def keyed(key, data):
    return blake3(data, key=key).digest()


class Cursor:
    """Reads fixed little-endian records."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        need(self.at + n <= len(self.data), "a record is cut short")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, width):
        return int.from_bytes(self.take(width), "little")

    def varint(self):
        n = 0
        for shift in range(0, 35, 7):
            byte = self.number(1)
            n |= (byte & 0x7F) << shift
            if byte < 0x80:
                need(n < 1 << 32 and (byte or not shift), "a number is too large, or longer than it must be")
                return n
        raise Bad("a number is too long")

    @property
    def left(self):
        return len(self.data) - self.at


class Header:
    def __init__(self, data, kinds, what):
        need(len(data) >= HEADER, f"{what}: shorter than a header")
        self.bytes = bytes(data[:HEADER])
        need(self.bytes[:4] == b"SNAP", f"{what}: no object of a repository")
        need(self.bytes[4] == 1 and self.bytes[6] == 1, f"{what}: of another version or suite")
        need(self.bytes[5] in kinds and self.bytes[7] == 0, f"{what}: of the wrong kind")
        self.kind = self.bytes[5]
        self.first_bytes = int.from_bytes(self.bytes[12:16], "little")
        self.salt = self.bytes[16:]


def unseal(key, position, aad, sealed, what):
    try:
        return ChaCha20Poly1305(key).decrypt(position.to_bytes(4, "little") + bytes(8), bytes(sealed), aad)
    except (InvalidTag, ValueError) as error:
        raise Bad(f"{what}: not authentic") from error


def object_key(class_key, header):
    return derive("snapshot 2026 v1 object", class_key + header)


class Keys:
    def __init__(self, master):
        def key(name):
            return derive("snapshot 2026 v1 " + name, master)

        self.ids = {n: key("id " + name) for n, name in enumerate(TYPES, 1)}
        self.page, self.config, self.chunker = key("id page"), key("config"), key("chunker")
        self.seal = {DATA_PACK: key("seal data"), METADATA_PACK: key("seal metadata"), INDEX: key("seal index")}
        self.control = key("seal control")

    def page_hash(self, page):
        return keyed(self.page, page)[:16]


def unzstd(data, plain_bytes, prefix=None):
    dictionary = None
    if prefix:
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        need(zstandard.frame_content_size(data) == plain_bytes, "a frame has another length than is stated")
        decoder = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=16 * MIB)
        return decoder.decompress(data, max_output_size=plain_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Bad(f"a frame can't be decompressed: {error}") from error
