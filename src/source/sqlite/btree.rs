//! SQLite's pages: the header of a file, b-tree pages, and rows of the schema. Pure; see "Database File Format" on
//! sqlite.org. Whatever stands in a page may be nonsense: everything is optional and bounded.

use std::borrow::Cow;

use super::HEADER_BYTES;
use crate::format::facts::Facts;

/// What the first page says about the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Bytes of a page that are used: all but a reserved end.
    pub usable: usize,
    /// The first page of the list of free pages; 0 for none.
    pub first_free: u32,
    /// Whether there are pages with pointers to parents.
    pub has_pointer_map: bool,
    encoding: u32,
}

impl FileHeader {
    /// Reads what the first page begins with; `None` if no page can be used.
    pub fn parse(first: &[u8]) -> Option<Self> {
        let reserved = usize::from(*first.get(20)?);
        let usable = first.len().checked_sub(reserved).filter(|usable| *usable >= 480)?;
        Some(Self {
            usable,
            first_free: be32(first, 32)?,
            has_pointer_map: be32(first, 52)? != 0,
            encoding: be32(first, 56)?,
        })
    }
}

/// What the header alone says of a database.
pub fn header_facts(first: &[u8]) -> Facts {
    let number = |at| be32(first, at).unwrap_or(0);
    Facts {
        user_version: number(60).cast_signed(),
        application_id: number(68).cast_signed(),
        schema_version: number(40),
        // A file without a text has none yet, and SQLite takes it for UTF-8.
        encoding: number(56).max(1),
        free_pages: number(36),
        schema_hash: None,
        tables: None,
    }
}

/// Four bytes as a number, as all of SQLite's are.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)))
}

/// A variable-length integer, and its length in bytes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().take(9).enumerate() {
        if n == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, n + 1));
        }
    }
    None
}

/// A page of a b-tree.
pub struct TreePage<'a> {
    bytes: &'a [u8],
    usable: usize,
    start: usize,
    kind: u8,
}

/// What a cell holds: the part in the page, its full length, and where the rest begins.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// The part in the page.
    pub local: &'a [u8],
    /// Full length, in bytes.
    pub bytes: u64,
    /// The first overflow page; 0 if all is in the page.
    pub overflow: u32,
}

const INDEX_INTERIOR: u8 = 2;
const TABLE_INTERIOR: u8 = 5;
const INDEX_LEAF: u8 = 10;
const TABLE_LEAF: u8 = 13;

impl<'a> TreePage<'a> {
    /// `number` counts from 1: the first page begins with the file's header.
    pub fn parse(bytes: &'a [u8], number: u32, usable: usize) -> Option<Self> {
        let start = if number == 1 { HEADER_BYTES } else { 0 };
        let kind = *bytes.get(start)?;
        let known = matches!(kind, INDEX_INTERIOR | TABLE_INTERIOR | INDEX_LEAF | TABLE_LEAF);
        known.then_some(Self { bytes, usable, start, kind })
    }

    /// Whether it is of a tree whose entries are keys alone: an index, or a table WITHOUT ROWID.
    pub fn is_index(&self) -> bool {
        matches!(self.kind, INDEX_INTERIOR | INDEX_LEAF)
    }

    /// Whether no pages are below it.
    pub fn is_leaf(&self) -> bool {
        matches!(self.kind, INDEX_LEAF | TABLE_LEAF)
    }

    /// How many cells there are; a page can't have more than bytes.
    pub fn cells(&self) -> usize {
        be16(self.bytes, self.start + 3).unwrap_or(0).min(self.bytes.len())
    }

    fn cell(&self, n: usize) -> Option<&'a [u8]> {
        let pointers = self.start + if self.is_leaf() { 8 } else { 12 };
        self.bytes.get(be16(self.bytes, pointers + 2 * n)?..)
    }

    /// The pages below, in order; none for a leaf.
    pub fn children(&self) -> Option<Vec<u32>> {
        if self.is_leaf() {
            return Some(Vec::new());
        }
        let mut out = (0..self.cells()).map(|n| be32(self.cell(n)?, 0)).collect::<Option<Vec<_>>>()?;
        out.push(be32(self.bytes, self.start + 8)?);
        Some(out)
    }

    /// What a cell holds; `None` for those of a table's interior, which hold nothing, and for nonsense.
    pub fn payload(&self, n: usize) -> Option<Payload<'a>> {
        let mut cell = self.cell(n)?;
        if self.kind == TABLE_INTERIOR {
            return None;
        }
        if self.kind == INDEX_INTERIOR {
            cell = cell.get(4..)?;
        }
        let (bytes, n) = varint(cell)?;
        cell = cell.get(n..)?;
        if self.kind == TABLE_LEAF {
            cell = cell.get(varint(cell)?.1..)?;
        }
        // How much of it stays in the page is fixed by the file format.
        let usable = self.usable as u64;
        let most = if self.kind == TABLE_LEAF { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
        if bytes <= most {
            return Some(Payload { local: cell.get(..bytes as usize)?, bytes, overflow: 0 });
        }
        let least = (usable - 12) * 32 / 255 - 23;
        let fill = least + (bytes - least) % (usable - 4);
        let local = if fill <= most { fill } else { least } as usize;
        Some(Payload { local: cell.get(..local)?, bytes, overflow: be32(cell, local)? })
    }
}

/// Reads a payload, with what lies in overflow pages, up to `most` bytes of it; more may come. A chain that breaks off
/// gives less. `read` is asked for pages from 1 to `last` only.
///
/// # Errors
/// What `read` returns.
pub fn whole_payload<E>(
    payload: &Payload<'_>,
    most: usize,
    usable: usize,
    last: u32,
    mut read: impl FnMut(u32) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let mut out = payload.local.to_vec();
    let wanted = payload.bytes.min(most as u64) as usize;
    let mut next = payload.overflow;
    while out.len() < wanted && (1..=last).contains(&next) {
        let page = read(next)?;
        // A page without an end would be read for ever.
        let Some(more) = page.get(4..usable).filter(|more| !more.is_empty()) else { break };
        out.extend_from_slice(more);
        next = be32(&page, 0).unwrap_or(0);
    }
    out.truncate(usize::try_from(payload.bytes).unwrap_or(usize::MAX));
    Ok(out)
}

/// A value in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    serial: u64,
    bytes: &'a [u8],
}

impl<'a> Column<'a> {
    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        self.serial == 0
    }

    /// The bytes of a text, in the encoding of the database.
    pub fn text(&self) -> Option<&'a [u8]> {
        (self.serial >= 13 && self.serial % 2 == 1).then_some(self.bytes)
    }

    /// The number of a page; 0 for what is none.
    pub fn page(&self) -> u32 {
        match self.serial {
            9 => 1,
            1..=6 => {
                self.bytes.iter().try_fold(0u32, |n, b| n.checked_mul(256)?.checked_add(u32::from(*b))).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

/// The values in a row, in order; ends where it makes no sense.
pub struct Columns<'a> {
    record: &'a [u8],
    at: usize,
    body: &'a [u8],
}

impl<'a> Columns<'a> {
    /// The values of a record, which may be cut short.
    pub fn of(record: &'a [u8]) -> Option<Self> {
        let (head_bytes, at) = varint(record)?;
        Some(Self { record, at, body: record.get(usize::try_from(head_bytes).ok()?..)? })
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    fn next(&mut self) -> Option<Column<'a>> {
        let (serial, n) = varint(self.record.get(self.at..)?)?;
        self.at += n;
        let bytes = match serial {
            1..=4 => serial as usize,
            5 => 6,
            6 | 7 => 8,
            0 | 8..=11 => 0,
            n => usize::try_from((n - 12) / 2).ok()?,
        };
        let (value, rest) = self.body.split_at_checked(bytes)?;
        self.body = rest;
        Some(Column { serial, bytes: value })
    }
}

/// A table or index, as the schema names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRow {
    /// Whether it is an index.
    pub is_index: bool,
    /// Its name.
    pub name: String,
    /// The table that it is or belongs to.
    pub table: String,
    /// The page that its tree begins with.
    pub root: u32,
}

/// Reads a row of the schema: type, name, table, root page, SQL. `None` for what has no pages.
pub fn schema_row(record: &[u8], header: &FileHeader) -> Option<SchemaRow> {
    let mut columns = Columns::of(record)?;
    let mut text = || columns.next().map(|column| header.text(column.bytes));
    let (kind, name, table) = (text()?, text()?, text()?);
    let root = columns.next()?.page();
    let is_index = kind == "index";
    ((is_index || kind == "table") && root > 0).then_some(SchemaRow { is_index, name, table, root })
}

impl FileHeader {
    /// A text in UTF-8, as SQLite hands it out: what is in UTF-8 as it is, sound or not. `None` for UTF-16 that is not
    /// sound, of which SQLite makes something of its own.
    pub fn utf8<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let units = |read: fn([u8; 2]) -> u16| {
            let (pairs, rest) = bytes.as_chunks::<2>();
            let units = pairs.iter().map(|pair| read(*pair));
            let text = char::decode_utf16(units).collect::<Result<String, _>>().ok()?;
            rest.is_empty().then(|| Cow::Owned(text.into_bytes()))
        };
        match self.encoding {
            2 => units(u16::from_le_bytes),
            3 => units(u16::from_be_bytes),
            _ => Some(Cow::Borrowed(bytes)),
        }
    }

    /// A text for people.
    fn text(&self, bytes: &[u8]) -> String {
        let units = |read: fn([u8; 2]) -> u16| {
            let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| read(*pair)).collect();
            String::from_utf16_lossy(&units)
        };
        match self.encoding {
            2 => units(u16::from_le_bytes),
            3 => units(u16::from_be_bytes),
            _ => String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

/// Numbers of pages, counted from 1.
pub struct PageSet(Vec<u64>);

impl PageSet {
    /// An empty set of pages up to this one: others are never in it.
    pub fn new(last: u32) -> Self {
        Self(vec![0; last as usize / 64 + 1])
    }

    /// Adds a page, and says whether it was not in it.
    pub fn insert(&mut self, page: u32) -> bool {
        let is_new = !self.has(page);
        if let Some(word) = self.0.get_mut(page as usize / 64) {
            *word |= 1 << (page % 64);
        }
        is_new
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u32) -> bool {
        self.0.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader = FileHeader { usable: 4096, first_free: 0, has_pointer_map: false, encoding: 1 };

    #[test]
    fn integers_of_variable_length() {
        assert_eq!(varint(&[5]), Some((5, 1)));
        assert_eq!(varint(&[0x81, 0]), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0x80]), None);
    }

    #[test]
    fn rows_of_the_schema() {
        let record = |kind: &str, root: &[u8]| {
            let name = "t1";
            let serial = |text: &str| (13 + 2 * text.len()) as u8;
            let mut out = vec![6, serial(kind), serial(name), serial(name), root.len() as u8, 0];
            for part in [kind.as_bytes(), name.as_bytes(), name.as_bytes(), root] {
                out.extend_from_slice(part);
            }
            out
        };
        let row = schema_row(&record("index", &[1, 0]), &HEADER).unwrap();
        assert_eq!((row.is_index, row.name.as_str(), row.root), (true, "t1", 256));
        assert_eq!(schema_row(&record("view", &[]), &HEADER), None);
        let whole = record("table", &[0xff; 4]);
        assert_eq!(schema_row(&whole, &HEADER).unwrap().root, u32::MAX);
        for cut in 0..whole.len() {
            assert_eq!(schema_row(&whole[..cut], &HEADER), None, "cut at {cut}");
        }
        let wide = FileHeader { encoding: 2, ..HEADER };
        assert_eq!(wide.text(&[b'a', 0, b'b', 0]), "ab");
    }

    #[test]
    fn nonsense_is_refused() {
        for kind in [2, 5, 10, 13] {
            let mut page = vec![0xff; 512];
            page[0] = kind;
            let parsed = TreePage::parse(&page, 2, 512).unwrap();
            assert!(parsed.cells() <= 512 && parsed.payload(0).is_none() && parsed.payload(600).is_none());
            assert!(parsed.is_leaf() || parsed.children().is_none());
        }
        assert!(TreePage::parse(&[0; 512], 2, 512).is_none());
        assert!(TreePage::parse(&[13], 1, 512).is_none());
        assert!(FileHeader::parse(&[0xff; 512]).is_none() && FileHeader::parse(&[]).is_none());
    }
}
