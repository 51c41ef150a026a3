//! Beginning a restore, or going on with one that was killed: what the mark in the target says, and what may begin
//! beside what is there.

use std::sync::Arc;

use super::before::Kept;
use super::{Options, display};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::repo::Selected;
use crate::report::{Reporter, Severity};
use crate::source::marker::{self, MARKER, Marker};
use crate::source::target::Folder;

const FIRST_LINE: &str =
    "A restore into this directory has not ended. Run the same command again: it goes on where that one stopped.";
/// Another number after each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is being restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    snapshot: String,
    /// Hash of the place in the snapshot and the patterns.
    selection: String,
    /// Whether the restore made the target.
    is_new: bool,
    boot: String,
    /// Where what was there before is kept, when that is done.
    kept: Option<Kept>,
}

/// What is known of the restore that this one goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resumed {
    /// When it was begun, in seconds and nanoseconds, by the clock of the target's file system.
    pub since: (i64, i64),
    /// Whether it made the target.
    pub is_new: bool,
    /// Whether the machine was started since: what was written may never have reached the disk.
    pub is_of_another_boot: bool,
    /// Where it kept what was there before.
    pub kept: Option<Kept>,
}

impl Mark {
    pub(super) fn new(selected: &Selected, options: &Options, is_new: bool) -> Self {
        let mut hasher = blake3::Hasher::new();
        let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
        for list in [selected.sub_path.clone(), bytes(&options.include), bytes(&options.exclude)] {
            hasher.update(&(list.len() as u64).to_le_bytes());
            for item in list {
                hasher.update(&(item.len() as u64).to_le_bytes()).update(&item);
            }
        }
        Self {
            snapshot: selected.named.id.to_string(),
            selection: hasher.finalize().to_hex().to_string(),
            is_new,
            // Where there is none, no start of the machine is noticed.
            boot: std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned(),
            kept: None,
        }
    }

    fn text(&self) -> String {
        let Self { snapshot, selection, is_new, boot, kept } = self;
        let kept = match kept {
            None => "not yet".to_owned(),
            Some(Kept::Nothing) => "nothing".to_owned(),
            Some(Kept::Snapshot(id)) => format!("snapshot {id}"),
            Some(Kept::Copy(path, _)) => format!("copy {}", path.file_name().unwrap_or_default().display()),
        };
        format!("{FIRST_LINE}\nsnapshot {snapshot}\nselection {selection}\nnew {is_new}\nkept {kept}\nboot {boot}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned);
        let (snapshot, selection) = (value("snapshot")?, value("selection")?);
        let (is_new, kept) = (value("new")?.parse().ok()?, value("kept")?);
        let kept = match kept.split_once(' ') {
            None => Some(Kept::Nothing),
            Some(("snapshot", id)) => SnapshotId::parse(id).map(Kept::Snapshot),
            Some(("copy", name)) => Some(Kept::Copy(name.into(), String::new())),
            Some(_) => None,
        };
        let boot = value("boot")?;
        Some(Self { snapshot, selection, is_new, boot, kept })
    }

    /// What a mark that was found means for this restore: it goes on with that one, or begins.
    ///
    /// # Errors
    /// [`Error::Refused`] if the target holds something, and it was not said what to do with that.
    fn goes_on(
        &self,
        found: Option<&str>,
        since: (i64, i64),
        target: &Folder,
        options: &Options,
    ) -> Result<Option<Resumed>> {
        let found = found.and_then(Self::parse);
        if let Some(found) = &found
            && (&found.snapshot, &found.selection) == (&self.snapshot, &self.selection)
        {
            let is_of_another_boot = found.boot != self.boot;
            let kept = found.kept.clone().map(|kept| match kept {
                Kept::Copy(name, why) => Kept::Copy(target.path().join(name), why),
                other => other,
            });
            let is_new = found.is_new;
            return Ok(Some(Resumed { since, is_new, is_of_another_boot, kept }));
        }
        if options.says_what_to_do() {
            return Ok(None);
        }
        if let Some(found) = found {
            let short: String = found.snapshot.chars().filter(char::is_ascii_hexdigit).take(8).collect();
            let what = if found.snapshot == self.snapshot { "another part of snapshot" } else { "snapshot" };
            return Err(Error::refused(
                format!("{} holds an unfinished restore of {what} {short}", display(&target.path())),
                format!(
                    "finish it with the command that began it, naming {short}; choose another target; or say with \
                     --in-place or --overwrite what happens to the files that are there"
                ),
            ));
        }
        if target.names()?.iter().any(|name| name != MARKER) {
            return Err(Error::refused(
                format!("{} is not empty", display(&target.path())),
                "choose another target, or say what happens to files that are there: --in-place, or --overwrite \
                 always, if-changed or never",
            ));
        }
        Ok(None)
    }

    /// What a restore would go on with; nothing is changed.
    ///
    /// # Errors
    /// As [`Mark::begin`].
    pub(super) fn look(&self, target: Option<&Folder>, options: &Options) -> Result<Option<Resumed>> {
        let Some(target) = target else { return Ok(None) };
        let (text, since) = marker::peek(target).unzip();
        self.goes_on(text.as_deref(), since.unwrap_or_default(), target, options)
    }

    /// Nothing is to be kept.
    pub(super) fn keeps_nothing(&mut self) {
        self.kept = Some(Kept::Nothing);
    }

    fn write(&self, marker: &Marker, target: &Folder, made: &[u8]) -> Result<()> {
        marker.write(target, &[self.text().as_bytes(), made].concat())
    }

    /// Notes where what was there before is kept: a restore that goes on with this one does not keep it again, since
    /// part of it is no longer there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(super) fn note_kept(&mut self, marker: &Marker, target: &Folder, made: &[u8], kept: &Kept) -> Result<()> {
        self.kept = Some(kept.clone());
        self.write(marker, target, made)
    }

    /// Marks the target, and keeps other restores away from it. `made` is the record of what the restore makes.
    ///
    /// # Errors
    /// [`Error::Refused`] if the target holds something, [`Error::Locked`] if another restore is at work there, and
    /// [`Error::File`].
    pub(super) fn begin(
        &self,
        there: Option<&Folder>,
        made: &[u8],
        options: &Options,
        reporter: &Reporter,
    ) -> Result<(Arc<Folder>, Marker, Option<Resumed>)> {
        // A target that is refused is left as it is; one with a mark in it may be another restore's.
        if let Some(there) = there
            && there.stat(MARKER)?.is_none()
        {
            self.goes_on(None, (0, 0), there, options)?;
        }
        marker::refuse_above(&options.target)?;
        let target = Folder::target(&options.target)?;
        let marker = Marker::take(&target)?;
        let resumed = self.goes_on(marker.found(), marker.written(&target)?, &target, options)?;
        if resumed.is_none() {
            self.write(&marker, &target, made)?;
        }
        if !marker.is_locked() {
            let why = "its file system has no locks: a second restore into it would not be kept away";
            reporter.warn(Severity::Note, display(&target.path()), why);
        }
        target.find_leftovers()?;
        Ok((target, marker, resumed))
    }
}
