"""The CDDL of repo-format.md, 17, as checks."""

from cbor import Shape, array, boolean, integer, raw, row, text, uint, within
from common import LEAF_PAGES

u32, u64, ident = uint(32), uint(64), raw(32)
ids = raw(multiple=32)
time = row(integer(64), within(0, 999_999_999))
KDF = Shape({0: within(19456, 4194304), 1: within(1, 64), 2: within(1, 16)})
SLOT_SHAPE = Shape({0: within(0, 2), 1: KDF, 2: raw(32), 3: raw(48), 4: time, 5: text}, [1])
CHUNKER = Shape({0: text, 1: u32, 2: u32, 3: u32})
CONFIG_SHAPE = Shape({0: raw(16), 1: u32, 2: u32, 3: array(text), 4: CHUNKER})
WAL = Shape({0: u64, 1: u64, 2: time, 3: time, 4: u64})
TABLE = Shape({0: text, 1: u64})
FACTS = Shape({0: integer(32), 1: integer(32), 2: u32, 3: u32, 4: u32, 5: raw(32), 6: array(TABLE)}, [5, 6])
DB = Shape({0: ident, 1: time, 2: u64, 3: WAL, 4: boolean, 5: u64, 6: FACTS}, [3, 6])
DUMP = Shape({0: text, 1: text, 2: raw(), 3: text, 4: raw(32), 5: u32}, [1, 2, 3, 5])
CONTENT = Shape({0: within(0, 4), 1: ids})
NODE = Shape(
    {0: raw(), 1: within(0, 7), 2: within(0, 0o7777), 3: u32, 4: u32, 5: time, 6: time, 7: u64, 8: u64, 9: CONTENT,
     10: raw(), 11: u64, 12: array(row(raw(), raw())), 13: array(u64), 14: ident, 15: DB, 16: u64, 17: text,
     18: DUMP},
    range(6, 19),
)
TREE_SHAPE = Shape({0: array(NODE), 1: array(ident)}, [1])
ROOT = Shape({0: u32, 1: within(1, 0xFFFFFFFE), 2: raw(32), 3: within(0, 4), 4: ids})
INNER = Shape({0: ids})
LEAF = Shape({0: ident, 1: u32, 2: u32, 3: within(1, LEAF_PAGES), 4: ids, 5: raw()}, [0])
COUNTS = Shape({n: u64 for n in range(11)})
OWNER = row(u32, text)
SNAPSHOT_SHAPE = Shape(
    {0: time, 1: text, 2: text, 3: u64, 4: ident, 5: array(raw()), 6: array(text), 7: ident, 8: COUNTS, 9: text,
     10: array(OWNER), 11: array(OWNER), 12: time, 13: ident, 14: boolean, 15: text},
    [4, 13, 15],
)
PROOF = Shape({0: time, 1: text, 2: within(0, 0)})
MARK_SHAPE = Shape({0: time, 1: ident, 2: array(text), 3: array(text), 4: boolean, 5: ident, 6: PROOF}, [4, 5, 6])
