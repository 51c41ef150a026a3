//! Other processes: which have a file open, as far as the system tells: those of the same user, or for root all.
//!
//! SQLite's locks don't show a program that has a database in rollback-journal mode open and is between two
//! transactions; its open file does. May depend on nothing else.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Device and inode of a file.
pub type FileId = (u64, u64);

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number, if it can be told.
    pub pid: Option<i32>,
    /// Its name, if it can be told.
    pub name: Option<String>,
}

impl Holder {
    /// The process with this number; 0 and less stand for one that is not known.
    pub fn of_process(pid: i32) -> Self {
        if pid <= 0 {
            return Self { pid: None, name: None };
        }
        let name = fs::read(format!("/proc/{pid}/comm")).ok();
        let name = name.map(|name| String::from_utf8_lossy(&name).trim_end().to_owned());
        Self { pid: Some(pid), name }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.pid) {
            (Some(name), Some(pid)) => write!(f, "process {pid} ({name})"),
            (None, Some(pid)) => write!(f, "process {pid}"),
            _ => f.write_str("another process"),
        }
    }
}

/// Asks a process to end.
pub fn terminate(pid: u32) {
    // One that has ended meanwhile needs no asking.
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// The files among `wanted` that another process has open, with the first such process. What can't be looked at, like
/// the processes of other users, is taken to have nothing open.
pub fn open_elsewhere(wanted: &[FileId]) -> HashMap<FileId, Holder> {
    let mut found = HashMap::new();
    let own = std::process::id();
    let Some(processes) = fs::read_dir("/proc").ok().filter(|_| !wanted.is_empty()) else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(files) = fs::read_dir(process.path().join("fd")).ok().filter(|_| pid != own) else { continue };
        for file in files.flatten() {
            let id = fs::metadata(file.path()).map(|meta| (meta.dev(), meta.ino()));
            if let Some(id) = id.ok().filter(|id| wanted.contains(id)) {
                found.entry(id).or_insert_with(|| Holder::of_process(pid.cast_signed()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_with_an_open_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = tempfile::NamedTempFile::new().unwrap();
        let id = |file: &tempfile::NamedTempFile| {
            let meta = file.as_file().metadata().unwrap();
            (meta.dev(), meta.ino())
        };
        assert!(open_elsewhere(&[id(&file)]).is_empty(), "this process itself doesn't count");
        let opened = fs::File::open(file.path()).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(opened)).spawn().unwrap();
        let found = open_elsewhere(&[id(&file), id(&other)]);
        child.kill().unwrap();
        child.wait().unwrap();
        let pid = child.id();
        assert_eq!(found.len(), 1);
        assert_eq!(found[&id(&file)].to_string(), format!("process {pid} (sleep)"));
        assert_eq!(Holder::of_process(-1).to_string(), "another process");
    }
}
