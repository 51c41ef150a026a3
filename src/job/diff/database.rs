//! What differs between two versions of a database: pages by the hashes in their maps, then tables by the owners of
//! those pages, then rows as they were recorded, or where counting them is cheap.

use std::collections::{BTreeMap, HashMap};

use super::owners::{self, Owners, Remembered, Use};
use super::pages::Pages;
use crate::error::Result;
use crate::format::facts::Facts;
use crate::format::pagemap::{LEAF_PAGES, PageRef};
use crate::format::tree::Database as Record;
use crate::repo::Repository;
use crate::report::Reporter;
use crate::source::sqlite::HEADER_BYTES;
use crate::source::sqlite::btree::{FileHeader, PageSet, TreePage, be32};

/// Most pages that are read to count rows, and to find whose long rows changed; above, neither is told.
const MAX_READ_PAGES: usize = 65_536;
/// Most leaves of a table that are all read, to tell how many rows it has and not only how many more.
const MAX_COUNTED_LEAVES: usize = 256;

/// Table or index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableKind {
    /// A table.
    Table,
    /// An index.
    Index,
}

/// What differs in one table or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    /// Table or index.
    pub kind: TableKind,
    /// Its name.
    pub name: String,
    /// The table that it is or belongs to.
    pub table: String,
    /// Whether it was there before.
    pub was_there: bool,
    /// Whether it is there now.
    pub is_there: bool,
    /// Pages with other contents than before, or new, that belong to it now.
    pub pages: u64,
    /// Pages that belonged to it before and don't now. Those of long rows are not counted.
    pub pages_left: u64,
    /// How many rows more it has now; `None` for an index, and where counting is not cheap.
    pub rows_more: Option<i64>,
    /// Rows before and after, where they are few enough to be counted.
    pub rows: Option<(u64, u64)>,
}

/// What differs between two versions of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseChange {
    /// Length of a page before and after, in bytes.
    pub page_bytes: (u32, u32),
    /// Pages before and after.
    pub pages: (u64, u64),
    /// Pages that are in both, with other contents.
    pub pages_changed: u64,
    /// The tables and indexes that differ, and those that came or went.
    pub tables: Vec<TableChange>,
    /// Changed or new pages that are free now.
    pub free: u64,
    /// Changed or new pages that hold the rest of long rows, of a table that can't be told.
    pub overflow: u64,
    /// Changed or new pages with pointers to parents.
    pub pointer_map: u64,
    /// Changed or new pages that are never used, since locks are held on their bytes.
    pub lock: u64,
    /// 1 if of the first page only the file's header has changed, as any write to the file does.
    pub header: u64,
    /// Why the tables are not told, if they aren't.
    pub tables_unknown: Option<String>,
}

impl DatabaseChange {
    /// Whether any page differs.
    pub fn is_change(&self) -> bool {
        self.pages_changed > 0 || self.pages.0 != self.pages.1 || self.page_bytes.0 != self.page_bytes.1
    }
}

/// Compares two versions by their page maps. Rows are told from what was recorded of both, if it was, else counted.
///
/// # Errors
/// [`crate::error::Error::Missing`], [`crate::error::Error::Corrupt`] or [`crate::error::Error::Interrupted`].
pub(super) fn compare(
    repo: &Repository,
    before: &Record,
    after: &Record,
    reporter: &Reporter,
) -> Result<DatabaseChange> {
    let (mut old, mut new) = (Pages::open(repo, &before.map, reporter)?, Pages::open(repo, &after.map, reporter)?);
    let mut change = DatabaseChange {
        page_bytes: (old.root.page_bytes, new.root.page_bytes),
        pages: (old.root.pages, new.root.pages),
        ..DatabaseChange::default()
    };
    if old.root == new.root || (!change.is_change() && old.root.file_hash == new.root.file_hash) {
        return Ok(change);
    }
    if old.root.page_bytes != new.root.page_bytes {
        change.pages_changed = old.root.pages.min(new.root.pages);
        change.tables_unknown = Some("its pages have another length than before".into());
        return Ok(change);
    }
    let changed = changed_pages(&mut old, &mut new)?;
    change.pages_changed = (1..=old.count().min(new.count())).filter(|page| changed.has(*page)).count() as u64;
    if !change.is_change() {
        return Ok(change);
    }
    let mut memory = Remembered::default();
    let mut owners = |pages: &mut Pages<'_>| -> Result<Result<(FileHeader, Owners), String>> {
        let Some(header) = FileHeader::parse(&pages.one(1)?) else {
            return Ok(Err("its header makes no sense".into()));
        };
        Ok(owners::find(pages, &header, &mut memory)?.map(|owners| (header, owners)))
    };
    let both = match (owners(&mut old)?, owners(&mut new)?) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(why), _) | (_, Err(why)) => {
            change.tables_unknown = Some(why);
            return Ok(change);
        }
    };
    let ((old_header, old_owners), (new_header, new_owners)) = both;
    let old = Version { pages: old, header: old_header, owners: old_owners };
    let new = Version { pages: new, header: new_header, owners: new_owners };
    let recorded = before.facts.as_ref().zip(after.facts.as_ref());
    let recorded = recorded.filter(|(before, after)| before.tables.is_some() && after.tables.is_some());
    Tables::new(old, new, changed, recorded).fill(&mut change)?;
    Ok(change)
}

/// The pages whose hashes differ, and those that are in one version only.
fn changed_pages(old: &mut Pages<'_>, new: &mut Pages<'_>) -> Result<PageSet> {
    let mut changed = PageSet::new(old.count().max(new.count()));
    for number in 0..old.leaves.len().max(new.leaves.len()) {
        if old.leaves.get(number) == new.leaves.get(number) {
            continue;
        }
        let leaf = |pages: &mut Pages<'_>| -> Result<Vec<PageRef>> {
            if number < pages.leaves.len() { pages.leaf(number).map(<[_]>::to_vec) } else { Ok(Vec::new()) }
        };
        let (before, after) = (leaf(old)?, leaf(new)?);
        for at in 0..before.len().max(after.len()) {
            if before.get(at).map(|page| page.hash) != after.get(at).map(|page| page.hash) {
                changed.insert((number * LEAF_PAGES + at + 1) as u32);
            }
        }
    }
    Ok(changed)
}

struct Version<'a> {
    pages: Pages<'a>,
    header: FileHeader,
    owners: Owners,
}

/// Attributes changes to tables.
struct Tables<'a> {
    old: Version<'a>,
    new: Version<'a>,
    changed: PageSet,
    /// For each table or index of both versions, its number in each.
    numbers: Vec<(Option<usize>, Option<usize>)>,
    /// The place in `numbers` of each of the old version, and of the new.
    places: (Vec<usize>, Vec<usize>),
    /// What was recorded of both, if their rows were.
    recorded: Option<(&'a Facts, &'a Facts)>,
}

impl<'a> Tables<'a> {
    fn new(old: Version<'a>, new: Version<'a>, changed: PageSet, recorded: Option<(&'a Facts, &'a Facts)>) -> Self {
        let mut numbers: Vec<_> = (0..old.owners.trees.len()).map(|n| (Some(n), None)).collect();
        let known: HashMap<_, _> =
            old.owners.trees.iter().enumerate().map(|(n, tree)| ((tree.is_index, tree.name.as_str()), n)).collect();
        let mut new_places = Vec::with_capacity(new.owners.trees.len());
        for (n, tree) in new.owners.trees.iter().enumerate() {
            let place = known.get(&(tree.is_index, tree.name.as_str())).copied().unwrap_or(numbers.len());
            match numbers.get_mut(place) {
                Some(both) => both.1 = Some(n),
                None => numbers.push((None, Some(n))),
            }
            new_places.push(place);
        }
        let places = ((0..old.owners.trees.len()).collect(), new_places);
        Self { old, new, changed, numbers, places, recorded }
    }

    /// The place in `numbers` of the table that a page belonged to, and of the one it belongs to, and whether it has
    /// rows of them.
    fn owners(&self, page: u32) -> [Option<(usize, bool)>; 2] {
        let owner = |version: &Version<'_>, places: &[usize]| match version.owners.of(page) {
            Use::Tree(tree, is_leaf) => {
                let has_rows = is_leaf || version.owners.keys_only.get(tree) == Some(&true);
                Some((*places.get(tree)?, has_rows))
            }
            _ => None,
        };
        [owner(&self.old, &self.places.0), owner(&self.new, &self.places.1)]
    }

    fn fill(&mut self, change: &mut DatabaseChange) -> Result<()> {
        self.follow_long_rows()?;
        let body = |version: &mut Version<'_>| -> Result<Vec<u8>> { Ok(version.pages.one(1)?.split_off(HEADER_BYTES)) };
        let only_header = self.changed.has(1) && body(&mut self.old)? == body(&mut self.new)?;
        let mut pages: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for page in 1..=self.old.pages.count().max(self.new.pages.count()) {
            let [was, is] = self.owners(page).map(|owner| owner.map(|(place, _)| place));
            if let Some(was) = was.filter(|was| Some(*was) != is) {
                pages.entry(was).or_default().1 += 1;
            }
            if page > self.new.pages.count() || !self.changed.has(page) {
                // A page that only changed hands counts for the one that gave it.
                continue;
            }
            match self.new.owners.of(page) {
                Use::Tree(..) if page == 1 && only_header => change.header = 1,
                Use::Tree(..) => is.into_iter().for_each(|is| pages.entry(is).or_default().0 += 1),
                Use::Overflow(tree) => {
                    self.places.1.get(tree).into_iter().for_each(|is| pages.entry(*is).or_default().0 += 1);
                }
                Use::Free => change.free += 1,
                Use::PointerMap => change.pointer_map += 1,
                Use::Lock => change.lock += 1,
                Use::Unknown => change.overflow += 1,
            }
        }
        for (place, (was, is)) in self.numbers.iter().enumerate() {
            if was.is_none() || is.is_none() {
                pages.entry(place).or_default();
            }
        }
        let mut rows = match self.recorded {
            Some((before, after)) => self.recorded_rows(&pages, before, after),
            None => self.count_rows(&pages)?,
        };
        for (place, (pages, pages_left)) in pages {
            let Some((was, is)) = self.numbers.get(place).copied() else { continue };
            let tree = is.map(|n| &self.new.owners.trees[n]).or(was.map(|n| &self.old.owners.trees[n]));
            let Some(tree) = tree else { continue };
            let (rows_more, rows) = rows.remove(&place).unwrap_or_default();
            change.tables.push(TableChange {
                kind: if tree.is_index { TableKind::Index } else { TableKind::Table },
                name: tree.name.clone(),
                table: tree.table.clone(),
                was_there: was.is_some(),
                is_there: is.is_some(),
                pages,
                pages_left,
                rows_more,
                rows,
            });
        }
        change.tables.sort_by(|a, b| (&a.table, a.kind, &a.name).cmp(&(&b.table, b.kind, &b.name)));
        Ok(())
    }

    /// Claims changed pages that hold the rest of long rows, where the row itself is in a changed page. Chains are
    /// followed through changed pages only: nothing else is of interest.
    fn follow_long_rows(&mut self) -> Result<()> {
        let Version { pages, header, owners } = &mut self.new;
        let is_open = |owners: &Owners, page: u32| self.changed.has(page) && owners.of(page) == Use::Unknown;
        let unknown = (1..=pages.count()).filter(|page| is_open(owners, *page)).count();
        let in_trees: Vec<u32> = (1..=pages.count())
            .filter(|page| self.changed.has(*page) && matches!(owners.of(*page), Use::Tree(..)))
            .collect();
        if unknown == 0 || unknown + in_trees.len() > MAX_READ_PAGES {
            return Ok(());
        }
        let mut heads = Vec::new();
        pages.each(&in_trees, &mut |number, bytes| {
            let Use::Tree(tree, _) = owners.of(number) else { return };
            let Some(page) = TreePage::parse(bytes, number, header.usable) else { return };
            let overflow = (0..page.cells()).filter_map(|n| page.payload(n)).map(|cell| cell.overflow);
            heads.extend(overflow.filter(|head| *head != 0).map(|head| (head, tree)));
        })?;
        while !heads.is_empty() {
            heads.retain(|(page, tree)| is_open(owners, *page) && owners.claim(*page, Use::Overflow(*tree)));
            let mut next = Vec::new();
            let numbers: Vec<u32> = heads.iter().map(|(page, _)| *page).collect();
            pages.each(&numbers, &mut |number, bytes| {
                if let (Use::Overflow(tree), Some(page)) = (owners.of(number), be32(bytes, 0)) {
                    next.push((page, tree));
                }
            })?;
            heads = next;
        }
        Ok(())
    }

    /// Rows more, and rows before and after, of the tables among those that changed, as they were recorded.
    fn recorded_rows(
        &self,
        touched: &BTreeMap<usize, (u64, u64)>,
        before: &Facts,
        after: &Facts,
    ) -> HashMap<usize, Counted> {
        let rows = |version: &Version<'_>, facts: &Facts, tree: Option<usize>| {
            let Some(tree) = tree else { return Some(0) };
            version.owners.trees.get(tree).filter(|tree| !tree.is_index).and_then(|tree| facts.rows_of(&tree.name))
        };
        let counted = |place: &usize| {
            let (was, is) = self.numbers.get(*place).copied()?;
            let (before, after) = (rows(&self.old, before, was)?, rows(&self.new, after, is)?);
            Some((*place, (i64::try_from(i128::from(after) - i128::from(before)).ok(), Some((before, after)))))
        };
        touched.keys().filter_map(counted).collect()
    }

    /// Rows more, and rows before and after, of the tables among those that changed. Only pages that differ, or whose
    /// owner does, are read, and all those of small tables.
    fn count_rows(&mut self, touched: &BTreeMap<usize, (u64, u64)>) -> Result<HashMap<usize, Counted>> {
        let is_table = |place: usize| {
            let (was, is) = self.numbers.get(place).copied().unwrap_or_default();
            let tree = is.map(|n| &self.new.owners.trees[n]).or(was.map(|n| &self.old.owners.trees[n]));
            place != self.places.0[0] && touched.contains_key(&place) && tree.is_some_and(|tree| !tree.is_index)
        };
        let (mut old_reads, mut new_reads) = (Vec::new(), Vec::new());
        let mut all: HashMap<usize, Vec<u32>> = HashMap::new();
        for page in 1..=self.old.pages.count().max(self.new.pages.count()) {
            let with_rows = |owner: Option<(usize, bool)>| owner.filter(|(place, rows)| *rows && is_table(*place));
            let [was, is] = self.owners(page).map(with_rows);
            if let Some((place, _)) = is {
                let pages = all.entry(place).or_default();
                // One more than allowed says that there are too many.
                if pages.len() <= MAX_COUNTED_LEAVES {
                    pages.push(page);
                }
            }
            if was != is || self.changed.has(page) {
                old_reads.extend(was.map(|_| page));
                new_reads.extend(is.map(|_| page));
            }
        }
        if old_reads.len() + new_reads.len() > MAX_READ_PAGES {
            return Ok(HashMap::new());
        }
        all.retain(|_, pages| pages.len() <= MAX_COUNTED_LEAVES);
        let mut totals: HashMap<usize, u64> = HashMap::new();
        let mut more: HashMap<usize, i64> = HashMap::new();
        let counted: Vec<u32> = all.values().flatten().copied().collect();
        let (old, new) = (&mut self.old, &mut self.new);
        old.cells(&old_reads, &mut |tree, n| *more.entry(self.places.0[tree]).or_default() -= n as i64)?;
        new.cells(&new_reads, &mut |tree, n| *more.entry(self.places.1[tree]).or_default() += n as i64)?;
        new.cells(&counted, &mut |tree, n| *totals.entry(self.places.1[tree]).or_default() += n as u64)?;
        let mut out = HashMap::new();
        for place in touched.keys().copied() {
            let (was, is) = self.numbers.get(place).copied().unwrap_or_default();
            let tree = is.map(|n| &new.owners.trees[n]).or(was.map(|n| &old.owners.trees[n]));
            if place == self.places.0[0] || tree.is_none_or(|tree| tree.is_index) {
                continue;
            }
            let more = more.get(&place).copied().unwrap_or(0);
            let after = if is.is_some() { totals.get(&place).copied() } else { Some(0) };
            let rows = after.and_then(|after| Some((after.checked_add_signed(-more)?, after)));
            out.insert(place, (Some(more), rows));
        }
        Ok(out)
    }
}

/// Rows more, and rows before and after.
type Counted = (Option<i64>, Option<(u64, u64)>);

impl Version<'_> {
    /// Tells the number of cells of each of these pages, with the table that the page belongs to.
    fn cells(&mut self, numbers: &[u32], tell: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let Self { pages, header, owners } = self;
        pages.each(numbers, &mut |number, bytes| {
            if let (Use::Tree(tree, _), Some(page)) = (owners.of(number), TreePage::parse(bytes, number, header.usable))
            {
                tell(tree, page.cells());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::Node;
    use crate::job::sample::{Sample, noise};
    use crate::source::sqlite::examine::examine;

    const PAGE_BYTES: usize = 512;

    /// A database of some hundred pages, as SQLite writes it.
    fn sqlite() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA page_size=512; PRAGMA auto_vacuum=INCREMENTAL;
             CREATE TABLE t(a, b); CREATE INDEX i ON t(a); CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 400)
               INSERT INTO t SELECT i, randomblob(i % 900) FROM n;
             INSERT INTO w SELECT a FROM t; DELETE FROM t WHERE a % 3 = 0",
        )
        .unwrap();
        drop(db);
        std::fs::read(path).unwrap()
    }

    fn store(sample: &mut Sample, file: &[u8]) -> Node {
        let pages = sample.pages(PAGE_BYTES, file);
        sample.database("data.db", PAGE_BYTES, file, &pages)
    }

    fn change(sample: &Sample, before: &Node, after: &Node) -> DatabaseChange {
        let [before, after] = [before, after].map(|node| node.database.clone().unwrap());
        compare(&sample.repo, &before, &after, &Reporter::silent()).unwrap()
    }

    #[test]
    fn nonsense_in_a_database_is_told_and_harms_nothing() {
        let mut sample = Sample::new();
        let file = sqlite();
        let good = store(&mut sample, &file);
        let mut rolls = noise(9, 4 * 3000);
        let mut bad = Vec::new();
        for n in 0..300 {
            let mut broken = file.clone();
            for _ in 0..1 + n % 10 {
                let dice: [u8; 4] = rolls.split_off(rolls.len() - 4).try_into().unwrap();
                let at = u32::from_le_bytes(dice) as usize;
                // Often where pages say what they are, in the first page above all.
                let at = if n % 2 == 0 { at % 160 + at % 7 * PAGE_BYTES } else { at % broken.len() };
                broken[at] = dice[0] ^ dice[3];
            }
            bad.push(store(&mut sample, &broken));
        }
        sample.flush();
        assert!(!change(&sample, &good, &good).is_change());
        let mut told = 0;
        for bad in bad {
            for change in [change(&sample, &good, &bad), change(&sample, &bad, &good)] {
                told += usize::from(change.tables_unknown.is_some());
                let named = change.tables.iter().map(|table| table.pages).sum::<u64>();
                let rest = change.free + change.overflow + change.pointer_map + change.lock + change.header;
                assert!(change.tables_unknown.is_some() || named + rest == change.pages_changed, "{change:?}");
            }
        }
        assert!((20..600).contains(&told), "some make no sense, some do: {told}");
    }

    #[test]
    fn rows_are_the_same_recorded_or_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let mut sample = Sample::new();
        let mut recorded = |sql: &str| {
            std::fs::write(&path, sqlite()).unwrap();
            rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            let file = std::fs::read(&path).unwrap();
            let facts = examine(&path, &Reporter::silent()).unwrap().facts;
            let mut node = store(&mut sample, &file);
            node.database.as_mut().unwrap().facts = facts;
            node
        };
        let before = recorded("");
        let after = recorded(
            "INSERT INTO t SELECT a, 1 FROM w; DELETE FROM w WHERE a % 2; CREATE TABLE u(x); INSERT INTO u VALUES (7);
             CREATE INDEX j ON u(x)",
        );
        sample.flush();
        let told = change(&sample, &before, &after);
        let no_facts = |record| Record { facts: None, ..record };
        let without = |node: &Node| Node { database: node.database.clone().map(no_facts), ..node.clone() };
        assert_eq!(told, change(&sample, &without(&before), &without(&after)));
        assert_eq!(told, change(&sample, &before, &without(&after)), "one record is not enough");
        let rows: Vec<_> = told.tables.iter().map(|table| (table.name.as_str(), table.rows)).collect();
        for expected in [("t", Some((267, 667))), ("u", Some((0, 1))), ("w", Some((400, 200))), ("j", None)] {
            assert!(rows.contains(&expected), "{rows:?}");
        }
    }

    #[test]
    fn a_page_that_is_lost_is_an_error() {
        let mut sample = Sample::new();
        let file = sqlite();
        let pages = sample.pages(PAGE_BYTES, &file);
        let before = sample.database("data.db", PAGE_BYTES, &file, &pages);
        sample.flush();
        let mut changed = file.clone();
        changed[file.len() - 1] ^= 1;
        let after = store(&mut sample, &changed);
        sample.flush();
        // The second version has stored it once more.
        (0..sample.repo.index().places(&pages[0].segment).count()).for_each(|n| sample.damage(&pages[0].segment, n));
        let [before, after] = [before, after].map(|node| node.database.unwrap());
        assert!(compare(&sample.repo, &before, &after, &Reporter::silent()).is_err());
    }
}
