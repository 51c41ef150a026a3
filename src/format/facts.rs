//! What a database said of itself when it was captured: so that a restored one can be compared with it years later, and
//! a look at a snapshot tells what is in its databases.
//!
//! May depend on nothing else. Names of tables come from a file that may be hostile: how many are told, and how long
//! they may be, is bounded, so that a node stays small.

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};

/// Most tables whose rows are recorded; of a database with more, none are.
pub const MAX_TABLES: usize = 4096;
/// Longest name of a table, in bytes of UTF-8; with a longer one, no rows are recorded.
pub const MAX_NAME_BYTES: usize = 1024;
/// All names of one database together, in bytes of UTF-8; above, no rows are recorded.
pub const MAX_NAMES_BYTES: usize = 64 << 10;
/// What a table takes in a record beside its name, in bytes: two heads of maps, two keys, a length, a number.
const TABLE_BYTES: usize = 16;

/// A hash of a schema.
pub type SchemaHash = ByteArray<32>;

/// How many rows a table has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct TableRows {
    /// The table's name, as it stands in the schema.
    #[n(0)]
    pub name: String,
    /// Its rows.
    #[n(1)]
    pub rows: u64,
}

/// What a database said of itself: numbers from its header (see "The Database Header" in SQLite's file format
/// document), its schema, and its rows. Length and number of its pages stand in its page map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Facts {
    /// `PRAGMA user_version`: the application's own number, of its schema mostly.
    #[n(0)]
    pub user_version: i32,
    /// `PRAGMA application_id`: which application the file belongs to.
    #[n(1)]
    pub application_id: i32,
    /// `PRAGMA schema_version`: rises when the schema changes.
    #[n(2)]
    pub schema_version: u32,
    /// Encoding of text: 1 UTF-8, 2 UTF-16le, 3 UTF-16be.
    #[n(3)]
    pub encoding: u32,
    /// Pages in the list of free pages.
    #[n(4)]
    pub free_pages: u32,
    /// Hash of the schema ([`SchemaHasher`]); `None` where it makes no sense, or is too long.
    #[n(5)]
    pub schema_hash: Option<SchemaHash>,
    /// The rows of each table that has pages of its own, which a view or a virtual table has not, sorted by name. `None`
    /// where they could not be counted, or are too many.
    #[n(6)]
    pub tables: Option<Vec<TableRows>>,
}

impl Facts {
    /// Whether names are in order, and within the limits.
    pub fn is_sane(&self) -> bool {
        let Some(tables) = &self.tables else { return true };
        tables.len() <= MAX_TABLES
            && tables.windows(2).all(|pair| pair[0].name < pair[1].name)
            && tables.iter().all(|table| table.name.len() <= MAX_NAME_BYTES)
            && tables.iter().map(|table| table.name.len()).sum::<usize>() <= MAX_NAMES_BYTES
    }

    /// About how long the record is in a node, in bytes: what has no fixed length in it.
    pub fn variable_bytes(&self) -> usize {
        self.tables.iter().flatten().map(|table| table.name.len() + TABLE_BYTES).sum()
    }

    /// The rows of all tables together.
    pub fn rows(&self) -> Option<u64> {
        self.tables.as_ref().map(|tables| tables.iter().fold(0, |sum, table| table.rows.saturating_add(sum)))
    }

    /// The rows of one table.
    pub fn rows_of(&self, name: &str) -> Option<u64> {
        let tables = self.tables.as_ref()?;
        tables.binary_search_by(|table| table.name.as_str().cmp(name)).ok().and_then(|at| Some(tables.get(at)?.rows))
    }

    /// In what another look at the same database differs, in words, up to `most` of them. What only one of the two
    /// tells is no difference.
    pub fn differences(&self, seen: &Self, most: usize) -> Vec<String> {
        let mut out = Vec::new();
        let mut number = |what: &str, recorded: i64, is: i64| {
            if recorded != is {
                out.push(format!("{what} is {is}, and {recorded} was recorded"));
            }
        };
        number("user_version", self.user_version.into(), seen.user_version.into());
        number("application_id", self.application_id.into(), seen.application_id.into());
        number("schema_version", self.schema_version.into(), seen.schema_version.into());
        number("encoding", self.encoding.into(), seen.encoding.into());
        number("the number of free pages", self.free_pages.into(), seen.free_pages.into());
        if let (Some(recorded), Some(is)) = (&self.schema_hash, &seen.schema_hash)
            && recorded != is
        {
            out.push("its schema is not the one that was recorded".into());
        }
        if let (Some(recorded), Some(is)) = (&self.tables, &seen.tables) {
            for table in recorded {
                match seen.rows_of(&table.name) {
                    Some(rows) if rows == table.rows => {}
                    Some(rows) => {
                        out.push(format!("table {} has {rows} rows, and {} were recorded", table.name, table.rows));
                    }
                    None => out.push(format!("table {} was recorded, and is not there", table.name)),
                }
            }
            let more = is.iter().filter(|table| self.rows_of(&table.name).is_none());
            out.extend(more.map(|table| format!("table {} was not recorded", table.name)));
        }
        if let Some(more) = out.len().checked_sub(most).filter(|more| *more > 0) {
            out.truncate(most);
            out.push(format!("and {more} more"));
        }
        out
    }
}

/// Sorts what was counted, if it is within the limits; `None` if it isn't, or if two tables have one name.
pub fn tables_of(mut tables: Vec<TableRows>) -> Option<Vec<TableRows>> {
    tables.sort_unstable();
    let facts = Facts { tables: Some(tables), ..Facts::default() };
    facts.is_sane().then_some(facts.tables).flatten()
}

/// Hashes a schema: for each row of `sqlite_schema`, in the order of their numbers, the columns type, name, tbl_name and
/// sql, each as a byte 1, its length as a `u64` and its bytes in UTF-8, or as a byte 0 if it is NULL. BLAKE3, no key.
#[derive(Default)]
pub struct SchemaHasher(blake3::Hasher);

impl SchemaHasher {
    /// Takes the next column.
    pub fn column(&mut self, value: Option<&[u8]>) {
        match value {
            None => drop(self.0.update(&[0])),
            Some(text) => {
                self.0.update(&[1]).update(&(text.len() as u64).to_le_bytes()).update(text);
            }
        }
    }

    /// The hash of all columns so far.
    pub fn finish(&self) -> SchemaHash {
        (*self.0.finalize().as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor;

    fn facts(tables: &[(&str, u64)]) -> Facts {
        let tables = tables.iter().map(|(name, rows)| TableRows { name: (*name).into(), rows: *rows }).collect();
        Facts { user_version: -3, schema_hash: Some([7; 32].into()), tables: Some(tables), ..Facts::default() }
    }

    #[test]
    fn limits_and_order() {
        let sane = |names: Vec<String>| {
            let tables = names.into_iter().map(|name| TableRows { name, rows: 1 }).collect();
            Facts { tables: Some(tables), ..Facts::default() }.is_sane()
        };
        let many = |n: usize, bytes: usize| (0..n).map(|i| format!("{i:0bytes$}")).collect::<Vec<_>>();
        assert!(Facts::default().is_sane() && sane(many(MAX_TABLES, 8)) && sane(many(64, MAX_NAME_BYTES)));
        assert!(!sane(many(MAX_TABLES + 1, 8)) && !sane(many(1, MAX_NAME_BYTES + 1)) && !sane(many(65, 1024)));
        assert!(!sane(vec!["b".into(), "a".into()]) && !sane(vec!["a".into(), "a".into()]));
        let row = |name: &str| TableRows { name: name.into(), rows: 2 };
        assert_eq!(tables_of(vec![row("b"), row("a")]).unwrap(), [row("a"), row("b")]);
        assert_eq!(tables_of(vec![row("a"), row("a")]), None);
    }

    #[test]
    fn they_are_read_as_they_were_written() {
        for facts in [facts(&[("a", 0), ("b", u64::MAX)]), Facts::default()] {
            let bytes = cbor::encode(&facts);
            assert_eq!(cbor::decode::<Facts>(&bytes).unwrap(), facts);
            let estimate = 6 + 5 * 5 + 35 + 4 + facts.variable_bytes();
            assert!(bytes.len() <= estimate, "{} of {estimate}", bytes.len());
        }
    }

    #[test]
    fn differences_are_named() {
        let recorded = facts(&[("a", 1), ("b", 2)]);
        assert_eq!(recorded.differences(&recorded, 9), Vec::<String>::new());
        assert_eq!(recorded.differences(&Facts { user_version: -3, ..Facts::default() }, 9), Vec::<String>::new());
        let seen = Facts { user_version: 4, schema_hash: Some([8; 32].into()), ..facts(&[("b", 3), ("c", 0)]) };
        let expected = [
            "user_version is 4, and -3 was recorded",
            "its schema is not the one that was recorded",
            "table a was recorded, and is not there",
            "table b has 3 rows, and 2 were recorded",
            "table c was not recorded",
        ];
        assert_eq!(recorded.differences(&seen, 9), expected);
        assert_eq!(recorded.differences(&seen, 2)[2], "and 3 more");
        let other = Facts { application_id: 1, schema_version: 2, encoding: 3, free_pages: 4, ..recorded.clone() };
        assert_eq!(recorded.differences(&other, 9).len(), 4);
        assert_eq!((recorded.rows(), recorded.rows_of("b"), recorded.rows_of("c")), (Some(3), Some(2), None));
    }

    #[test]
    fn a_schema_has_one_hash() {
        let hash = |columns: &[Option<&[u8]>]| {
            let mut hasher = SchemaHasher::default();
            columns.iter().for_each(|column| hasher.column(*column));
            hasher.finish()
        };
        let all = [hash(&[]), hash(&[None]), hash(&[Some(b"")]), hash(&[Some(b"ab")]), hash(&[Some(b"a"), Some(b"b")])];
        assert!((1..all.len()).all(|n| !all[..n].contains(&all[n])));
    }
}
