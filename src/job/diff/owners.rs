//! Which table or index each page of a database belongs to.
//!
//! Only the schema and the interior pages of the b-trees are read: all pages of the lowest interior level have leaves
//! below, so that one look at a leaf tells of all its neighbours. Takes eight bytes a page of memory for two versions.

use std::collections::HashMap;

use super::pages::Pages;
use crate::error::Result;
use crate::id::PageHash;
use crate::source::sqlite::btree::{FileHeader, Payload, SchemaRow, TreePage, be32, schema_row, whole_payload};

/// Deepest b-tree: one of SQLite's has at most 20 levels.
const MAX_LEVELS: usize = 20;
/// Most tables and indexes that are told apart.
const MAX_TREES: usize = 1 << 20;
/// How much of a row of the schema is read: names stand at its beginning.
const MAX_ROW_BYTES: usize = 64 << 10;
/// Page numbers that are remembered from interior pages, to read a page that both versions have once.
const MAX_REMEMBERED: usize = 16 << 20;

/// What a page is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// No way leads to it but, perhaps, that from a row too long for its page.
    Unknown,
    /// In the list of free pages.
    Free,
    /// Pointers to parents, in databases with auto_vacuum.
    PointerMap,
    /// Never used: locks are held on it.
    Lock,
    /// Of a table or index, by its number; a leaf or not.
    Tree(usize, bool),
    /// The rest of a long row of that table or index.
    Overflow(usize),
}

/// Of every page, what it is for.
pub(super) struct Owners {
    /// The tables and indexes. The first is the schema.
    pub trees: Vec<SchemaRow>,
    /// For each of them, whether its entries are keys alone.
    pub keys_only: Vec<bool>,
    codes: Vec<u32>,
}

impl Owners {
    /// The use of a page, counted from 1.
    pub(super) fn of(&self, page: u32) -> Use {
        let code = (page as usize).checked_sub(1).and_then(|at| self.codes.get(at)).copied().unwrap_or(0);
        let tree = (code >> 2) as usize;
        match (code & 3, tree) {
            (0, 1) => Use::Free,
            (0, 2) => Use::PointerMap,
            (0, 3) => Use::Lock,
            (0, _) => Use::Unknown,
            (1, _) => Use::Tree(tree, false),
            (2, _) => Use::Tree(tree, true),
            (_, _) => Use::Overflow(tree),
        }
    }

    /// Says what an unknown page is for; `false` for one that isn't there or whose use is known.
    pub(super) fn claim(&mut self, page: u32, what: Use) -> bool {
        let code = match what {
            Use::Unknown => 0,
            Use::Free => 1 << 2,
            Use::PointerMap => 2 << 2,
            Use::Lock => 3 << 2,
            Use::Tree(tree, is_leaf) => (tree as u32) << 2 | if is_leaf { 2 } else { 1 },
            Use::Overflow(tree) => (tree as u32) << 2 | 3,
        };
        let entry = (page as usize).checked_sub(1).and_then(|at| self.codes.get_mut(at)).filter(|known| **known == 0);
        entry.map(|entry| *entry = code).is_some()
    }
}

/// Children of interior pages, by the page's hash.
#[derive(Default)]
pub(super) struct Remembered {
    children: HashMap<PageHash, Vec<u32>>,
    numbers: usize,
}

/// Finds out what each page is for. `Ok(Err(why))` where the database itself makes no sense: its program may have
/// damaged it, and it was captured as it is.
///
/// # Errors
/// [`crate::error::Error::Missing`] or [`crate::error::Error::Corrupt`] where the repository lacks something.
pub(super) fn find(
    pages: &mut Pages<'_>,
    header: &FileHeader,
    memory: &mut Remembered,
) -> Result<Result<Owners, String>> {
    let codes = vec![0; pages.count() as usize];
    let schema = SchemaRow { is_index: false, name: "sqlite_schema".into(), table: "sqlite_schema".into(), root: 1 };
    let mut owners = Owners { trees: vec![schema], keys_only: vec![false], codes };
    mark_special(pages, header, &mut owners);
    if let Err(why) = mark_free(pages, header, &mut owners)? {
        return Ok(Err(why));
    }
    let mut walk = Walk { pages, header, memory, owners };
    let leaves = match walk.tree(0)? {
        Ok(leaves) => leaves,
        Err(why) => return Ok(Err(why)),
    };
    match walk.schema(&leaves)? {
        Ok(rows) if rows.len() < MAX_TREES => walk.owners.trees.extend(rows),
        Ok(_) => return Ok(Err("it has more tables than can be told apart".into())),
        Err(why) => return Ok(Err(why)),
    }
    for tree in 1..walk.owners.trees.len() {
        if let Err(why) = walk.tree(tree)? {
            return Ok(Err(why));
        }
    }
    Ok(Ok(walk.owners))
}

/// Pages whose use follows from their number.
fn mark_special(pages: &Pages<'_>, header: &FileHeader, owners: &mut Owners) {
    let lock = (1 << 30) / pages.root.page_bytes + 1;
    owners.claim(lock, Use::Lock);
    if header.has_pointer_map {
        let step = header.usable as u64 / 5 + 1;
        let mut at = 2;
        while at <= u64::from(pages.count()) {
            let page = at as u32;
            owners.claim(if page == lock { page + 1 } else { page }, Use::PointerMap);
            at += step;
        }
    }
}

/// The list of free pages: trunks, each with the numbers of more.
fn mark_free(pages: &mut Pages<'_>, header: &FileHeader, owners: &mut Owners) -> Result<Result<(), String>> {
    let mut trunk = header.first_free;
    while trunk != 0 {
        if !owners.claim(trunk, Use::Free) {
            return Ok(Err(format!("its list of free pages leads to page {trunk} wrongly")));
        }
        let page = pages.one(trunk)?;
        let leaves = be32(&page, 4).unwrap_or(0).min((header.usable / 4) as u32 - 2);
        for n in 0..leaves as usize {
            if let Some(free) = be32(&page, 8 + 4 * n) {
                owners.claim(free, Use::Free);
            }
        }
        trunk = be32(&page, 0).unwrap_or(0);
    }
    Ok(Ok(()))
}

struct Walk<'p, 'a> {
    pages: &'p mut Pages<'a>,
    header: &'p FileHeader,
    memory: &'p mut Remembered,
    owners: Owners,
}

impl Walk<'_, '_> {
    /// Claims the pages of a tree, and returns its leaves.
    fn tree(&mut self, tree: usize) -> Result<Result<Vec<u32>, String>> {
        let Some(SchemaRow { name, root, .. }) = self.owners.trees.get(tree).cloned() else {
            return Ok(Ok(Vec::new()));
        };
        let bad = |why: String| Ok(Err(format!("\"{name}\": {why}")));
        let mut level = vec![root];
        for depth in 0..MAX_LEVELS {
            // One page tells what all of its level are.
            let Some(first) = level.first().copied().filter(|page| (1..=self.pages.count()).contains(page)) else {
                return bad("a page of it lies outside of the file".into());
            };
            let bytes = self.pages.one(first)?;
            let Some(page) = TreePage::parse(&bytes, first, self.header.usable) else {
                return bad(format!("page {first} is no page of a table or index"));
            };
            let is_leaf = page.is_leaf();
            if depth == 0 && tree > 0 {
                self.owners.keys_only.push(page.is_index());
            }
            if let Some(wrong) = level.iter().find(|page| !self.owners.claim(**page, Use::Tree(tree, is_leaf))) {
                return bad(format!("page {wrong} lies outside of the file, or belongs to something else, too"));
            }
            if is_leaf {
                return Ok(Ok(level));
            }
            level = match self.below(&level)? {
                Ok(level) => level,
                Err(why) => return bad(why),
            };
        }
        bad("it is deeper than SQLite makes any".into())
    }

    /// The children of all pages of a level.
    fn below(&mut self, level: &[u32]) -> Result<Result<Vec<u32>, String>> {
        let (mut out, mut unread) = (Vec::new(), Vec::new());
        for page in level {
            let hash = self.pages.place(*page)?.hash;
            match self.memory.children.get(&hash) {
                Some(children) => out.extend_from_slice(children),
                None => unread.push((*page, hash)),
            }
        }
        let hashes: HashMap<u32, PageHash> = unread.iter().copied().collect();
        let unread: Vec<u32> = unread.into_iter().map(|(page, _)| page).collect();
        let (memory, usable, mut wrong) = (&mut *self.memory, self.header.usable, None);
        self.pages.each(&unread, &mut |page, bytes| {
            let children = TreePage::parse(bytes, page, usable).and_then(|page| page.children());
            let Some(children) = children else {
                wrong = Some(page);
                return;
            };
            out.extend_from_slice(&children);
            if let Some(hash) = hashes.get(&page).filter(|_| memory.numbers + children.len() <= MAX_REMEMBERED) {
                memory.numbers += children.len();
                memory.children.insert(*hash, children);
            }
        })?;
        Ok(match wrong {
            Some(page) => Err(format!("page {page} makes no sense")),
            // More pages than there are would be claimed twice anyway.
            None if out.len() > self.pages.count() as usize => Err("it has more pages than the file".into()),
            None => Ok(out),
        })
    }

    /// The rows of the schema that have pages, from the leaves of its table.
    fn schema(&mut self, leaves: &[u32]) -> Result<Result<Vec<SchemaRow>, String>> {
        let (header, last, mut records) = (*self.header, self.pages.count(), Vec::new());
        self.pages.each(leaves, &mut |number, bytes| {
            let Some(page) = TreePage::parse(bytes, number, header.usable) else { return };
            let cells = (0..page.cells()).map(|n| page.payload(n));
            records.extend(cells.map(|cell| cell.map(|cell| (cell.local.to_vec(), cell.bytes, cell.overflow))));
        })?;
        let mut rows = Vec::new();
        for record in records {
            let Some((local, bytes, overflow)) = record else {
                return Ok(Err("a row of its schema makes no sense".into()));
            };
            let payload = Payload { local: &local, bytes, overflow };
            let record = whole_payload(&payload, MAX_ROW_BYTES, header.usable, last, |page| self.pages.one(page))?;
            rows.extend(schema_row(&record, &header));
        }
        Ok(Ok(rows))
    }
}
