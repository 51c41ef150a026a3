//! What a database says of itself, read off its pages as they pass: numbers from the header, a hash of the schema, and
//! how many rows each table has. SQLite is not asked.
//!
//! Of each page four bytes are kept: whether it looks like one of a b-tree, and its number of cells; of those that look
//! like inner pages, also which pages are below. What only looks so (an old page that is free now, the middle of a long
//! text) does no harm, since nothing counts but what is reached from a root that the schema names. May depend on `format`
//! and its neighbours. Pages are hostile: every walk is bounded by the number of pages.

use super::btree::{Columns, FileHeader, PageSet, Payload, TreePage, header_facts, whole_payload};
use crate::format::facts::{Facts, SchemaHasher, TableRows, tables_of};

/// Pages of the largest database whose rows are counted: 32 GiB of 4 KiB each. It takes 4 bytes for each, 32 MiB.
pub const MAX_PAGES: u64 = 1 << 23;
/// Numbers that are kept of what is below inner pages, of 4 bytes each: 64 MiB. A sound database has one for each page
/// and one for each inner page; more come from pages that only look like inner ones. Above, no rows are counted.
const MAX_BELOW: usize = 1 << 24;
/// How much is read for the schema, and how much of it is looked at, in bytes; above, it is left out.
const MAX_SCHEMA_BYTES: usize = 16 << 20;

/// Looks like no page of a b-tree.
const OTHER: u32 = 0;
const LEAF: u32 = 1;
const INNER: u32 = 2;
/// Set if entries are keys alone.
const KEYS: u32 = 4;
/// Above these bits a leaf has its number of cells, and an inner page its place in `below`.
const SHIFT: u32 = 3;

/// Sees the pages of a database one after the other.
pub struct PageObserver {
    page_bytes: usize,
    last: u32,
    /// Of each page; empty if rows aren't counted.
    codes: Vec<u32>,
    /// For each inner page how many are below, and then which.
    below: Vec<u32>,
    counts: bool,
}

impl PageObserver {
    /// For a database of so many pages of `page_bytes`.
    pub fn new(page_bytes: u32, pages: u64) -> Self {
        let counts = pages <= MAX_PAGES;
        let codes = if counts { vec![OTHER; pages as usize] } else { Vec::new() };
        let last = u32::try_from(pages).unwrap_or(u32::MAX);
        Self { page_bytes: page_bytes as usize, last, codes, below: Vec::new(), counts }
    }

    /// Sees pages, from number `first` on, counted from 0.
    pub fn see(&mut self, first: u64, pages: &[u8]) {
        for (at, page) in (first..).zip(pages.chunks_exact(self.page_bytes)) {
            let Some(number) = u32::try_from(at + 1).ok().filter(|_| self.counts) else { return };
            let code = self.code(page, number);
            if let Some(known) = self.codes.get_mut(at as usize) {
                *known = code;
            }
        }
    }

    fn code(&mut self, page: &[u8], number: u32) -> u32 {
        let Some(page) = TreePage::parse(page, number, self.page_bytes) else { return OTHER };
        let keys = if page.is_index() { KEYS } else { 0 };
        if page.is_leaf() {
            return (page.cells() as u32) << SHIFT | keys | LEAF;
        }
        // Most of what only looks like an inner page leads out of the file.
        let below = page.children().filter(|below| below.iter().all(|page| (1..=self.last).contains(page)));
        let Some(below) = below else { return OTHER };
        let at = self.below.len();
        if at + 1 + below.len() > MAX_BELOW {
            (self.counts, self.codes, self.below) = (false, Vec::new(), Vec::new());
            return OTHER;
        }
        self.below.push(below.len() as u32);
        self.below.extend(below);
        (at as u32) << SHIFT | keys | INNER
    }

    /// What all that was seen comes to. `read` gives a page by its number, counted from 1, once more: those of the schema
    /// are read again, the first page at least.
    ///
    /// # Errors
    /// What `read` returns. A database that makes no sense is no error: it has fewer facts.
    pub fn finish<E>(self, mut read: impl FnMut(u32) -> Result<Vec<u8>, E>) -> Result<Facts, E> {
        let first = read(1)?;
        let mut facts = header_facts(&first);
        if let Some(header) = FileHeader::parse(&first)
            && let Some(schema) = Schema::read(&header, self.last, &mut read)?
        {
            facts.schema_hash = schema.is_text.then(|| schema.hasher.finish());
            facts.tables = schema.tables.filter(|_| self.counts).and_then(|tables| self.count(tables));
        }
        Ok(facts)
    }

    fn count(&self, tables: Vec<(String, u32)>) -> Option<Vec<TableRows>> {
        let mut seen = PageSet::new(self.last);
        let rows = |(name, root)| Some(TableRows { name, rows: self.rows(root, &mut seen)? });
        tables_of(tables.into_iter().map(rows).collect::<Option<_>>()?)
    }

    /// The rows of a table; `None` if its pages make no sense. Of a table `WITHOUT ROWID`, inner pages have rows too.
    fn rows(&self, root: u32, seen: &mut PageSet) -> Option<u64> {
        let code_of = |page: u32| self.codes.get((page as usize).checked_sub(1)?).copied();
        let keys = code_of(root)? & KEYS;
        let mut rows = 0;
        let mut open = vec![root];
        while let Some(page) = open.pop() {
            let code = code_of(page)?;
            // A page that is reached twice belongs to two, or leads to itself.
            if code & KEYS != keys || !seen.insert(page) {
                return None;
            }
            match code & !KEYS & ((1 << SHIFT) - 1) {
                LEAF => rows += u64::from(code >> SHIFT),
                INNER => {
                    let at = (code >> SHIFT) as usize;
                    let n = *self.below.get(at)? as usize;
                    open.extend_from_slice(self.below.get(at + 1..)?.get(..n)?);
                    if keys == KEYS {
                        rows += n as u64 - 1;
                    }
                }
                _ => return None,
            }
        }
        Some(rows)
    }
}

/// The schema, as far as it is of interest.
struct Schema {
    hasher: SchemaHasher,
    /// Whether everything hashed was NULL or text.
    is_text: bool,
    /// The tables that have pages, with their roots; `None` if a name makes no sense.
    tables: Option<Vec<(String, u32)>>,
}

impl Schema {
    /// Reads all rows of the schema; `None` if it makes no sense or is too long.
    fn read<E>(
        header: &FileHeader,
        last: u32,
        read: &mut impl FnMut(u32) -> Result<Vec<u8>, E>,
    ) -> Result<Option<Self>, E> {
        let mut schema = Self { hasher: SchemaHasher::default(), is_text: true, tables: Some(Vec::new()) };
        let mut left = MAX_SCHEMA_BYTES;
        let mut open = vec![1];
        while let Some(number) = open.pop() {
            let bytes = read(number)?;
            let Some(rest) = left.checked_sub(bytes.len()) else { return Ok(None) };
            left = rest;
            let page = TreePage::parse(&bytes, number, header.usable).filter(|page| !page.is_index());
            let Some((page, below)) = page.and_then(|page| page.children().map(|below| (page, below))) else {
                return Ok(None);
            };
            if below.iter().any(|page| !(1..=last).contains(page)) {
                return Ok(None);
            }
            open.extend(below.iter().rev());
            for n in 0..if page.is_leaf() { page.cells() } else { 0 } {
                let Some(payload) = page.payload(n) else { return Ok(None) };
                let Some(record) = whole(&payload, left, header.usable, last, read)? else { return Ok(None) };
                left -= record.len();
                if schema.row(&record, header).is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(schema))
    }

    /// Takes a row: type, name, table, root page, SQL.
    fn row(&mut self, record: &[u8], header: &FileHeader) -> Option<()> {
        let mut columns = Columns::of(record)?;
        let (kind, name, table) = (columns.next()?, columns.next()?, columns.next()?);
        let (root, sql) = (columns.next()?.page(), columns.next()?);
        for column in [&kind, &name, &table, &sql] {
            let text = column.text().and_then(|text| header.utf8(text));
            self.is_text &= text.is_some() || column.is_null();
            self.hasher.column(text.as_deref());
        }
        let kind = kind.text().and_then(|kind| header.utf8(kind));
        if root > 0 && kind.is_some_and(|kind| *kind == b"table"[..]) {
            let name = name.text().and_then(|name| String::from_utf8(header.utf8(name)?.into_owned()).ok());
            // SQLite itself can't be asked for a name with a NUL in it.
            match name.filter(|name| !name.contains('\0')) {
                Some(name) => self.tables.as_mut().into_iter().for_each(|tables| tables.push((name.clone(), root))),
                None => self.tables = None,
            }
        }
        Some(())
    }
}

/// A whole payload of up to `most` bytes; `None` if it is longer, or breaks off.
fn whole<E>(
    payload: &Payload<'_>,
    most: usize,
    usable: usize,
    last: u32,
    read: &mut impl FnMut(u32) -> Result<Vec<u8>, E>,
) -> Result<Option<Vec<u8>>, E> {
    if payload.bytes > most as u64 {
        return Ok(None);
    }
    let out = whole_payload(payload, most, usable, last, read)?;
    Ok((out.len() as u64 == payload.bytes).then_some(out))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::super::examine::{Finding, examine};
    use super::*;
    use crate::error::Error;
    use crate::report::{Problem, Reporter, Sink};

    /// What is read off the pages of a file, which are seen in pieces of some pages.
    fn observe(file: &[u8], page_bytes: usize, step: usize) -> Facts {
        let mut observer = PageObserver::new(page_bytes as u32, (file.len() / page_bytes) as u64);
        for (at, pages) in file.chunks(page_bytes * step).enumerate() {
            observer.see((at * step) as u64, pages);
        }
        let page = |number: u32| {
            let at = (number as usize).checked_sub(1).ok_or(number)? * page_bytes;
            file.get(at..at + page_bytes).map(<[u8]>::to_vec).ok_or(number)
        };
        observer.finish(page).expect("no page is asked for that isn't there")
    }

    /// What SQLite says of a sound file.
    fn asked(path: &Path) -> Facts {
        let examined = examine(path, &Reporter::silent()).unwrap();
        assert!(examined.is_sound(), "{examined:?}");
        examined.facts.unwrap()
    }

    fn in_a_file(page_bytes: usize, fill: impl FnOnce(&Connection)) -> (Vec<u8>, Facts) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b%?#.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!("PRAGMA page_size={page_bytes}")).unwrap();
        fill(&db);
        drop(db);
        (fs::read(&path).unwrap(), asked(&path))
    }

    /// A database with everything in it that may confuse.
    fn motley(db: &Connection) {
        db.execute_batch(
            "PRAGMA user_version=-17; PRAGMA application_id=0x7fffffff;
             CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX i ON t(a); CREATE INDEX j ON t(b) WHERE a > 5;
             CREATE TABLE w(a, b, PRIMARY KEY(a, b)) WITHOUT ROWID;
             CREATE TABLE \"odd \"\" name; --\"(x); CREATE TABLE \"größe\"(x PRIMARY KEY);
             CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, x); CREATE TABLE void(x);
             CREATE TABLE gone(x); CREATE VIEW v AS SELECT a FROM t; CREATE VIRTUAL TABLE f USING fts5(body);
             CREATE TRIGGER g AFTER INSERT ON void BEGIN DELETE FROM void; END;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
               INSERT INTO t SELECT i, i * 7919 % 1000, randomblob(i % 1400) FROM n;
             INSERT INTO w SELECT a, id FROM t; INSERT INTO w VALUES(randomblob(9000), 1), (randomblob(70000), 2);
             INSERT INTO gone SELECT b FROM t; INSERT INTO \"größe\" SELECT id FROM t; INSERT INTO auto(x) SELECT a FROM t;
             INSERT INTO f SELECT 'word' || id FROM t; INSERT INTO \"odd \"\" name; --\" VALUES (1), (2);
             DELETE FROM t WHERE id % 3 = 0; DELETE FROM w WHERE b % 5 = 0; DROP TABLE gone; ANALYZE;",
        )
        .unwrap();
    }

    #[test]
    fn they_are_what_sqlite_says() {
        for page_bytes in [512, 1024, 4096, 65536] {
            for before in ["", "PRAGMA auto_vacuum=1", "PRAGMA auto_vacuum=2", "PRAGMA encoding='UTF-16be'"] {
                let (file, asked) = in_a_file(page_bytes, |db| {
                    db.execute_batch(before).unwrap();
                    motley(db);
                });
                let tables = asked.tables.as_ref().unwrap();
                assert!(tables.len() >= 11, "sqlite_sequence, sqlite_stat1 and what FTS5 keeps, too: {tables:?}");
                assert_eq!(
                    (asked.rows_of("t"), asked.rows_of("void"), asked.rows_of("v")),
                    (Some(2000), Some(0), None)
                );
                assert_eq!((asked.user_version, asked.application_id), (-17, 0x7fff_ffff));
                assert_eq!(observe(&file, page_bytes, 7), asked, "{page_bytes} {before}");
                let (vacuumed, asked) = in_a_file(page_bytes, |db| {
                    motley(db);
                    db.execute_batch("VACUUM").unwrap();
                });
                assert_eq!(observe(&vacuumed, page_bytes, 1000), asked);
                assert!(file != vacuumed);
            }
        }
    }

    #[test]
    fn a_schema_of_many_pages() {
        let (file, asked) = in_a_file(512, |db| {
            for n in 0..700 {
                // Some statements take several overflow pages.
                let long = "x".repeat(n * 13 % 3000);
                db.execute_batch(&format!("CREATE TABLE t{n}(a /* {long} */); INSERT INTO t{n} VALUES ({n})")).unwrap();
            }
        });
        assert_eq!(asked.tables.as_ref().unwrap().len(), 700);
        assert_eq!(observe(&file, 512, 64), asked);
    }

    #[test]
    fn too_many_tables_and_too_large_a_file() {
        let (file, asked) = in_a_file(512, |db| {
            let all: String = (0..=4096).map(|n| format!("CREATE TABLE t{n}(a);")).collect();
            db.execute_batch(&format!("BEGIN; {all} COMMIT")).unwrap();
        });
        assert!(asked.tables.is_none() && asked.schema_hash.is_some());
        assert_eq!(observe(&file, 512, 64), asked);

        let (file, asked) = in_a_file(512, motley);
        let mut observer = PageObserver::new(512, MAX_PAGES + 1);
        observer.see(0, &file);
        let facts = observer.finish(|page| Ok::<_, ()>(file[(page as usize - 1) * 512..][..512].to_vec())).unwrap();
        assert_eq!(facts, Facts { tables: None, ..asked });
    }

    #[test]
    fn a_tree_that_leads_to_itself_or_elsewhere_is_not_counted() {
        let (file, asked) = in_a_file(512, |db| {
            db.execute_batch(
                "CREATE TABLE t(a); CREATE TABLE u(a);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) INSERT INTO t SELECT i FROM n;",
            )
            .unwrap();
        });
        assert_eq!(observe(&file, 512, 3), asked);
        // The root of `t` is page 2, that of `u` page 3; the last child of an inner page stands at 8.
        assert_eq!(file[512], 5);
        for child in [0u32, 1, 2, 3, 60_000, u32::MAX] {
            let mut bad = file.clone();
            bad[512 + 8..512 + 12].copy_from_slice(&child.to_be_bytes());
            let facts = observe(&bad, 512, 3);
            // An empty leaf of another table is one that SQLite would find; the schema's own page has rows as well.
            let counted = facts.tables.is_some();
            assert_eq!(counted, child == 1, "{child}");
            assert_eq!(facts.schema_hash, asked.schema_hash);
        }
    }

    #[test]
    fn nonsense_harms_nothing() {
        let (file, asked) = in_a_file(512, motley);
        let mut dice = crate::repo::testing::noise(3, 1 << 16).into_iter().cycle();
        let mut roll = move || u32::from_le_bytes([(); 4].map(|()| dice.next().unwrap())) as usize;
        let mut differ = 0;
        for n in 0..400 {
            let mut bad = file.clone();
            for _ in 0..1 + n % 20 {
                let at = if n % 2 == 0 { roll() % 12 + roll() % 40 * 512 } else { roll() % bad.len() };
                bad[at] = roll() as u8;
            }
            differ += usize::from(observe(&bad, 512, 9) != asked);
        }
        assert!(differ > 20);
        for kind in [2u8, 5, 10, 13] {
            let mut all = vec![kind; 512 * 200];
            all[..file.len().min(512)].copy_from_slice(&file[..512]);
            assert!(observe(&all, 512, 9).tables.is_none());
        }
    }

    #[test]
    fn what_sqlite_finds_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let db = Connection::open(&path).unwrap();
        motley(&db);
        db.execute_batch(
            "PRAGMA foreign_keys=OFF; CREATE TABLE child(t REFERENCES t(id)); INSERT INTO child VALUES (1), (3), (6);",
        )
        .unwrap();
        drop(db);
        let examined = examine(&path, &Reporter::silent()).unwrap();
        assert_eq!((examined.findings.as_slice(), examined.is_sound()), (&[Finding::Orphans(2)][..], true));
        let mut file = fs::read(&path).unwrap();
        for page in file.chunks_mut(4096).skip(20).step_by(9) {
            page[..8].fill(0x5a);
        }
        fs::write(&path, file).unwrap();
        let examined = examine(&path, &Reporter::silent()).unwrap();
        assert!(matches!(&examined.findings[..], [Finding::Unsound(_)]) && examined.facts.is_none(), "{examined:?}");
        fs::write(&path, b"no database at all").unwrap();
        assert!(matches!(&examine(&path, &Reporter::silent()).unwrap().findings[..], [Finding::Unsound(_)]));
        // What only the application has is no damage.
        fs::remove_file(&path).unwrap();
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "CREATE TABLE t(x PRIMARY KEY); INSERT INTO t VALUES ('a'), ('b'); PRAGMA writable_schema=ON;
             UPDATE sqlite_schema SET sql = 'CREATE TABLE t(x COLLATE own PRIMARY KEY)' WHERE type = 'table'",
        )
        .unwrap();
        drop(db);
        let examined = examine(&path, &Reporter::silent()).unwrap();
        assert!(matches!(&examined.findings[..], [Finding::CantTell(_)]) && !examined.is_sound(), "{examined:?}");
    }

    #[test]
    fn an_interrupt_ends_it() {
        struct Nowhere;
        impl Sink for Nowhere {
            fn problem(&self, _: &Problem) {}
        }
        static STOP: AtomicBool = AtomicBool::new(true);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        motley(&Connection::open(&path).unwrap());
        let reporter = Reporter::new(Box::new(Nowhere), &STOP);
        assert!(matches!(examine(&path, &reporter), Err(Error::Interrupted)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn random_databases(
            page_bytes in prop::sample::select(vec![512usize, 1024, 2048, 8192]),
            auto_vacuum in 0..3,
            steps in prop::collection::vec((0..8u32, 0..6u32, 1..900u32), 1..24),
        ) {
            let (file, asked) = in_a_file(page_bytes, |db| {
                db.execute_batch(&format!("PRAGMA auto_vacuum={auto_vacuum}")).unwrap();
                for (what, table, n) in &steps {
                    let rows = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {n})");
                    // Some of them fail, as where there is no such table.
                    let _ = db.execute_batch(&match what {
                        0 => format!("CREATE TABLE t{table}(a, b)"),
                        1 => format!("CREATE TABLE t{table}(a PRIMARY KEY, b) WITHOUT ROWID"),
                        2 | 3 => format!("{rows} INSERT OR IGNORE INTO t{table} SELECT i * {n}, randomblob({n} % 700) FROM n"),
                        4 => format!("DELETE FROM t{table} WHERE a % 7 < {n} % 7"),
                        5 => format!("DROP TABLE t{table}"),
                        6 => format!("CREATE INDEX i{n} ON t{table}(b); PRAGMA user_version={n}"),
                        _ => "VACUUM".to_owned(),
                    });
                }
            });
            prop_assume!(!file.is_empty());
            prop_assert_eq!(observe(&file, page_bytes, 5), asked);
        }
    }
}
