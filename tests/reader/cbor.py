"""Deterministic CBOR (RFC 8949 section 4.2.1), as far as the repository format uses it: integers, byte strings, text,
arrays, maps with small integers as keys, booleans. Anything else, and any other form of these, is refused."""

MAX_DEPTH = 16


class BadCbor(Exception):
    """The bytes are not one item in deterministic form."""


def decode(data):
    """The one item that the bytes are."""
    value, end = _item(memoryview(bytes(data)), 0, 0)
    if end != len(data):
        raise BadCbor("bytes after the end")
    return value


def _head(data, at):
    if at >= len(data):
        raise BadCbor("cut short")
    major, low, at = data[at] >> 5, data[at] & 31, at + 1
    if low < 24:
        return major, low, at
    if low > 27:
        raise BadCbor("an indefinite length, or a reserved number")
    width = 1 << (low - 24)
    if at + width > len(data):
        raise BadCbor("cut short")
    value = int.from_bytes(data[at : at + width], "big")
    if value < (24 if width == 1 else 1 << (4 * width)):
        raise BadCbor("a number that is longer than it must be")
    return major, value, at + width


def _item(data, at, depth):
    if depth > MAX_DEPTH:
        raise BadCbor("nested too deeply")
    if at < len(data) and data[at] in (0xF4, 0xF5):
        return data[at] == 0xF5, at + 1
    major, value, at = _head(data, at)
    if major == 0:
        return value, at
    if major == 1:
        return -1 - value, at
    if major in (2, 3):
        if at + value > len(data):
            raise BadCbor("cut short")
        raw = bytes(data[at : at + value])
        try:
            return (raw if major == 2 else raw.decode("utf-8")), at + value
        except UnicodeDecodeError as error:
            raise BadCbor("text that is not UTF-8") from error
    if major == 4:
        items = []
        for _ in range(value):
            item, at = _item(data, at, depth + 1)
            items.append(item)
        return items, at
    if major == 5:
        result, last = {}, -1
        for _ in range(value):
            kind, key, at = _head(data, at)
            if kind != 0 or key <= last:
                raise BadCbor("map keys that are not rising integers")
            last = key
            result[key], at = _item(data, at, depth + 1)
        return result, at
    raise BadCbor("a tag, a float or null")


def encode(value):
    """The deterministic form of a value."""
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _put(0, value) if value >= 0 else _put(1, -1 - value)
    if isinstance(value, bytes):
        return _put(2, len(value)) + value
    if isinstance(value, str):
        return _put(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _put(4, len(value)) + b"".join(map(encode, value))
    items = sorted((key, item) for key, item in value.items() if item is not None)
    return _put(5, len(items)) + b"".join(encode(key) + encode(item) for key, item in items)


def _put(major, value):
    if value < 24:
        return bytes([major << 5 | value])
    width = next(width for width in (1, 2, 4, 8) if value < 1 << (8 * width))
    return bytes([major << 5 | (23 + width.bit_length())]) + value.to_bytes(width, "big")


class Shape:
    """What a map must look like: each key's check, and which keys may be missing."""

    def __init__(self, fields, optional=()):
        self.fields, self.optional = fields, set(optional)

    def __call__(self, value):
        if not isinstance(value, dict) or set(value) - set(self.fields):
            return False
        if set(self.fields) - set(value) - self.optional:
            return False
        return all(self.fields[key](item) for key, item in value.items())


def uint(bits, low=0):
    """An unsigned number of so many bits."""
    return lambda v: type(v) is int and low <= v < 1 << bits


def integer(bits):
    """A number of so many bits that may be negative."""
    return lambda v: type(v) is int and -(1 << bits - 1) <= v < 1 << bits - 1


def within(low, high):
    """A number in a range, ends included."""
    return lambda v: type(v) is int and low <= v <= high


def raw(size=None, multiple=1):
    """A byte string, of a size or a multiple of one."""
    return lambda v: type(v) is bytes and (size is None or len(v) == size) and len(v) % multiple == 0


def array(item):
    """An array of such items."""
    return lambda v: type(v) is list and all(map(item, v))


def row(*items):
    """An array of exactly these."""
    return lambda v: type(v) is list and len(v) == len(items) and all(check(i) for check, i in zip(items, v))


def text(v):
    """A text string."""
    return type(v) is str


def boolean(v):
    """True or false."""
    return type(v) is bool
