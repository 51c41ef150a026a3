//! In which order changed pages of a database should be stored as deltas: passes a year of nights over a SQLite database
//! and stores each generation by every alternative, as repo-format.md §10 lays segments out. Counts what is stored, what
//! a restore must decode, and what pruning leaves; prints a Markdown table. How to run it is in CONTRIBUTING.md.
//!
//! Of the library it uses `format::zstd` alone.

mod history;
mod prune;
mod restore;
mod rng;
mod scheme;
mod store;
mod table;
mod workload;

use rayon::prelude::*;

use history::History;
use prune::{Depth, left, retained};
use restore::restored;
use scheme::{Base, Judge, Lengths, Plan, Scheme, plan};
use store::{Again, Packing, Store};
use table::{Left, Row};
use workload::Workload;

/// What can fail ends the program.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const GROUPS: &[usize] = &[64, 128, 256];
const GROUP: &[usize] = &[128];
const USAGE: &str = "Usage: delta_orders [--quiet] [--generations N] [--pages N] [--only TEXT]";

fn schemes() -> Vec<Scheme> {
    let basic = Scheme {
        name: String::new(),
        base: Base::Full,
        full_above: 0.4,
        judge: Judge::Compress,
        by_depth: false,
        again: Again { below: 0.0, bases: false, most: 0.5 },
        groups: GROUP,
    };
    let mut out = Vec::new();
    let mut add = |name: String, scheme: Scheme| out.push(Scheme { name, ..scheme });
    for percent in [40, 60, 80, 30, 20, 100] {
        let scheme = Scheme { full_above: f64::from(percent) / 100.0, ..basic.clone() };
        let groups = if (40..=60).contains(&percent) { GROUPS } else { GROUP };
        add(format!("A {percent} %"), Scheme { groups, ..scheme.clone() });
        if (40..=60).contains(&percent) {
            add(format!("A {percent} %, shingles"), Scheme { judge: Judge::Shingles, ..scheme });
        }
    }
    for (percent, bases, most) in [(25, false, 0.5), (50, false, 0.5), (50, true, 0.5), (50, true, 1.0)] {
        let (bases_too, at_most) = (if bases { " and bases" } else { "" }, most * 100.0);
        let name = format!("A 40 %, again below {percent} %{bases_too}, at most {at_most} %");
        let again = Again { below: f64::from(percent) / 100.0, bases, most };
        add(name, Scheme { again, ..basic.clone() });
    }
    let base = Base::Anchor(0.1);
    add("A in two steps, 10 and 40 %".into(), Scheme { base, by_depth: true, ..basic.clone() });
    let skip = Scheme { base: Base::Skip, full_above: 0.6, ..basic.clone() };
    add("B 60 %".into(), skip.clone());
    add("B 60 %, by depth".into(), Scheme { by_depth: true, groups: GROUPS, ..skip });
    for most in [2, 4, 8, 16] {
        let scheme = Scheme { base: Base::Previous(most), full_above: 1.0, ..basic.clone() };
        if most == 4 {
            add(format!("C {most}"), scheme.clone());
        }
        add(format!("C {most}, by depth"), Scheme { by_depth: true, ..scheme });
    }
    add("D unbounded".into(), Scheme { base: Base::Previous(usize::MAX), full_above: 1.0, ..basic.clone() });
    add("E none".into(), Scheme { base: Base::Never, ..basic });
    out
}

/// What is kept, and what a scheme would make of it in a new repository.
struct Fresh {
    generations: Vec<usize>,
    plan: Plan,
}

impl Fresh {
    fn new(history: &History, lengths: &Lengths, generations: Vec<usize>, scheme: &Scheme) -> Self {
        Self { plan: plan(history, lengths, &generations, scheme), generations }
    }

    fn left(&self, history: &History, store: &Store, packing: Packing) -> Left {
        let fresh = Store::new(history, &self.generations, &self.plan, packing).bytes().all as f64;
        let depths = [Depth::WholeBases, Depth::Slots, Depth::InFull, Depth::Rebase];
        let depths = depths.map(|depth| left(history, store, &self.generations, depth));
        let absent = depths.map(|bytes| bytes.absent as f64 / fresh);
        Left { fresh, parts: depths.map(|bytes| bytes.all as f64 / fresh), absent }
    }
}

fn measure(history: &History, lengths: &Lengths, scheme: &Scheme) -> std::result::Result<Vec<Row>, String> {
    let nights = history.maps.len();
    let all: Vec<_> = (0..nights).collect();
    let plan = plan(history, lengths, &all, scheme);
    let kept = Fresh::new(history, lengths, retained(nights), scheme);
    let two = Fresh::new(history, lengths, vec![nights - 2, nights - 1], scheme);
    let mut rows = Vec::new();
    for group in scheme.groups {
        let packing = Packing { group: *group, by_depth: scheme.by_depth, again: scheme.again };
        let store = Store::new(history, &all, &plan, packing);
        let restored = |generation| restored(history, &store, generation).map_err(|why| why.to_string());
        let row = Row {
            name: scheme.name.clone(),
            group: *group,
            first_pages: history.maps[0].len(),
            restored: [restored(0)?, restored(29)?, restored(nights - 1)?],
            retained: kept.left(history, &store, packing),
            newest_two: two.left(history, &store, packing),
            store,
        };
        eprintln!("{}", row.markdown());
        rows.push(row);
    }
    Ok(rows)
}

fn main() -> Result {
    let mut workload = Workload { pages: 6700, generations: 365, changed: 0.056 };
    let mut only = String::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(USAGE);
        match word.as_str() {
            "--quiet" => workload.changed = 0.004,
            "--generations" => workload.generations = value()?.parse()?,
            "--pages" => workload.pages = value()?.parse()?,
            "--only" => only = value()?,
            // Cargo says so.
            "--bench" => {}
            _ => return Err(USAGE.into()),
        }
    }
    if workload.generations < 60 {
        return Err("at least 60 generations are needed to compare the first month with the last".into());
    }
    let folder = tempfile::tempdir()?;
    let history = workload::run(&workload, folder.path())?;
    println!("{}", table::heading(&history));
    let lengths = Lengths::new(&history);
    let schemes: Vec<_> = schemes().into_iter().filter(|scheme| scheme.name.starts_with(&only)).collect();
    let rows: Vec<_> = schemes.par_iter().map(|scheme| measure(&history, &lengths, scheme)).collect();
    for rows in rows {
        rows?.iter().for_each(|row| println!("{}", row.markdown()));
    }
    Ok(())
}
