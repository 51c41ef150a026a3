//! What this machine remembers of a repository: the newest snapshot of each source that it has seen. Nothing in a
//! repository can tell that its newest snapshot is withheld, or that all of it was put back to an older state; this
//! can. One small file for each repository in the cache directory, which may be deleted at any time.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use snapshot::backend::layout;
use snapshot::error::Result;
use snapshot::id::SnapshotId;
use snapshot::repo::{Named, Repository};
use snapshot::report::{Problem, Severity};

use super::context::Context;

/// Folder in the cache directory.
const FOLDER: &str = "seen";
/// A file is read up to this many bytes.
const MAX_BYTES: u64 = 16 << 20;
const VERSION: u64 = 1;

/// Host and source.
type Source = (String, String);

/// A generation of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    generation: u64,
    id: SnapshotId,
}

type Record = BTreeMap<Source, Newest>;

/// The memory of one repository, compared with it.
pub struct Seen<'a> {
    context: &'a Context,
    file: Option<PathBuf>,
    record: Record,
    /// Sources whose newest snapshot was neither forgotten nor pruned, as far as can be seen: it is there, or missing.
    valid: HashSet<Source>,
}

impl<'a> Seen<'a> {
    /// Compares the memory with what is there, and warns of what is not. Lists names; reads snapshots only if something
    /// is gone.
    ///
    /// # Errors
    /// When the store can't be listed. A memory that can't be read is none.
    pub fn compare(context: &'a Context, repo: &Repository) -> Result<Self> {
        let mut seen = Self::remembered(context, repo)?;
        if !seen.record.is_empty() {
            seen.look(repo, &repo.snapshot_names()?)?;
        }
        Ok(seen)
    }

    /// The same, with the paths of the snapshots that were listed before.
    ///
    /// # Errors
    /// As [`Seen::compare`].
    pub fn compare_with(context: &'a Context, repo: &Repository, listed: &[String]) -> Result<Self> {
        let mut seen = Self::remembered(context, repo)?;
        seen.look(repo, listed)?;
        Ok(seen)
    }

    fn remembered(context: &'a Context, repo: &Repository) -> Result<Self> {
        let file = context.cache_dir()?.map(|dir| dir.join(FOLDER).join(format!("{}.json", repo.config().id())));
        let record = file.as_deref().and_then(read).unwrap_or_default();
        Ok(Self { context, file, record, valid: HashSet::new() })
    }

    fn look(&mut self, repo: &Repository, listed: &[String]) -> Result<()> {
        let names = |folder| -> Result<HashSet<SnapshotId>> {
            Ok(repo.backend().list(folder)?.iter().filter_map(|l| SnapshotId::parse(l.name())).collect())
        };
        let mut there: HashSet<SnapshotId> =
            listed.iter().filter_map(|path| SnapshotId::parse(path.strip_prefix(layout::SNAPSHOTS)?)).collect();
        if self.record.values().any(|newest| !there.contains(&newest.id)) {
            let forgotten = names(layout::TOMBS)?;
            // One that was just being taken back was in neither.
            there.extend(names(layout::SNAPSHOTS)?);
            let mut now = repo.read_snapshots()?.0;
            // Not the one that this run has stored since.
            now.retain(|named| listed.contains(&layout::snapshot(named.id)));
            let now = newest_of(&now);
            for (source, seen) in self.record.iter().filter(|(_, newest)| !there.contains(&newest.id)) {
                let now = now.get(source).map_or(0, |newest| newest.generation);
                if !forgotten.contains(&seen.id) && now < seen.generation {
                    self.valid.insert(source.clone());
                    self.context.reporter.problem(self.problem(source, seen.generation, now));
                }
            }
        }
        let is_there = |(source, newest): (&Source, &Newest)| there.contains(&newest.id).then(|| source.clone());
        self.valid.extend(self.record.iter().filter_map(is_there));
        Ok(())
    }

    fn problem(&self, (host, source): &Source, seen: u64, now: u64) -> Problem {
        let there = if now == 0 { "has none of it now".into() } else { format!("now ends at {now}") };
        let file = self.file.as_deref().map_or_else(String::new, |file| file.display().to_string());
        Problem {
            severity: Severity::Warning,
            what: format!("{host}:{source}"),
            why: format!(
                "this machine has seen generation {seen}, and the repository {there}: newer snapshots were \
                 removed, or an older state of the repository was put back"
            ),
            hint: Some(format!(
                "if another machine forgot and pruned them, or you put a copy back, that is all, and deleting {file} \
                 ends this warning; else find out who did, before old copies are overwritten"
            )),
        }
    }

    /// Remembers what is newer now. What is missing stays remembered, so that the next command warns again, and so does
    /// what is there and can't be read.
    pub fn learn(&mut self, snapshots: &[Named]) {
        let mut record = newest_of(snapshots);
        for (source, seen) in self.record.iter().filter(|(source, _)| self.valid.contains(*source)) {
            let newest = record.entry(source.clone()).or_insert(*seen);
            if newest.generation < seen.generation {
                *newest = *seen;
            }
        }
        self.replace(record);
    }

    /// Remembers a snapshot that was just made.
    pub fn add(&mut self, host: &str, source: &str, generation: u64, id: SnapshotId) {
        let mut record = self.record.clone();
        record.insert((host.into(), source.into()), Newest { generation, id });
        self.replace(record);
    }

    /// Remembers what is there after this machine removed something: nothing is missing any more.
    pub fn settle(&mut self, repo: &Repository) -> Result<()> {
        let (snapshots, _) = repo.read_snapshots()?;
        self.replace(newest_of(&snapshots));
        Ok(())
    }

    /// Writes the memory, if it changed.
    fn replace(&mut self, record: Record) {
        let Some(file) = self.file.as_deref().filter(|_| record != self.record) else { return };
        if let Err(error) = write(file, &record) {
            let why = format!("what was seen of the repository can't be remembered in {}: {error}", file.display());
            self.context.display.detail(|| why);
        }
        self.record = record;
    }
}

fn newest_of(snapshots: &[Named]) -> Record {
    let mut out = Record::new();
    for Named { id, snapshot, .. } in snapshots {
        let this = Newest { generation: snapshot.generation, id: *id };
        let newest = out.entry((snapshot.host.clone(), snapshot.source.clone())).or_insert(this);
        if this.generation > newest.generation {
            *newest = this;
        }
    }
    out
}

/// Reads a memory; `None` for anything that isn't one.
fn read(file: &Path) -> Option<Record> {
    let mut text = String::new();
    File::open(file).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    if value.get("version")?.as_u64()? != VERSION {
        return None;
    }
    let source = |one: &Value| {
        let text = |key| one.get(key)?.as_str().map(str::to_owned);
        let newest = Newest { generation: one.get("generation")?.as_u64()?, id: SnapshotId::parse(&text("id")?)? };
        Some(((text("host")?, text("source")?), newest))
    };
    value.get("sources")?.as_array()?.iter().map(source).collect()
}

/// Writes a memory: the file is either as it was or complete.
fn write(file: &Path, record: &Record) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let source = |((host, source), Newest { generation, id }): (&Source, &Newest)| json!({"host": host, "source": source, "generation": generation, "id": id.to_string()});
    let mut object = Map::new();
    object.insert("version".into(), json!(VERSION));
    object.insert("sources".into(), record.iter().map(source).collect());
    let unfinished = file.with_extension(std::process::id().to_string());
    let mut options = OpenOptions::new();
    let written = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut out| writeln!(out, "{}", Value::Object(object)));
    written.and_then(|()| fs::rename(&unfinished, file)).inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/er/id.json");
        assert_eq!(read(&file), None);
        let one = Newest { generation: 7, id: SnapshotId([0xa5; 32]) };
        let record = Record::from([(("h".into(), "/s \"x\"\n".into()), one), (("h".into(), "t".into()), one)]);
        write(&file, &record).unwrap();
        assert_eq!(read(&file), Some(record));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        for bad in ["", "{}", "[1]", "{\"version\":2,\"sources\":[]}", "{\"version\":1,\"sources\":[{\"host\":1}]}"] {
            fs::write(&file, bad).unwrap();
            assert_eq!(read(&file), None, "{bad}");
        }
    }
}
