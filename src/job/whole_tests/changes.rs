//! What users and applications do to a directory, at random.

use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{entries, insert, sql};
use crate::repo::testing::noise;

/// Names that are easily mishandled; one is an escape sequence, one looks like a log without a database, two differ
/// only in normalisation.
const NAMES: [&[u8]; 12] = [
    b"plain",
    b"with space",
    b"-rf",
    b".hidden",
    b"line\nbreak",
    b"\x1b[31mred",
    b"\xff\xfenot text",
    "\u{e9}".as_bytes(),
    "e\u{301}".as_bytes(),
    b"lonely-wal",
    b"*?[a]",
    &[b'x'; 255],
];
const DATABASES: [&str; 2] = ["app.db", "second.db"];
/// Around what the format makes a difference between: nothing, one frame, one chunk, several.
const LENGTHS: [u32; 8] = [0, 1, 511, 4096, 70_000, 512 << 10, (512 << 10) + 1, 2_500_000];
const MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o700, 0o1777];

/// One change. An [`Index`] is taken modulo what there is.
#[derive(Debug, Clone)]
pub enum Change {
    Write {
        folder: Index,
        name: Index,
        bytes: u32,
        seed: u8,
    },
    Folder {
        folder: Index,
        name: Index,
    },
    Symlink {
        folder: Index,
        name: Index,
        seed: u8,
    },
    Sparse {
        folder: Index,
        name: Index,
        holes: u8,
        seed: u8,
    },
    Fifo {
        folder: Index,
        name: Index,
    },
    /// Some bytes in the middle change; length and, if asked for, modification time don't.
    Patch {
        entry: Index,
        seed: u8,
        keep_time: bool,
    },
    Link {
        entry: Index,
        folder: Index,
        name: Index,
    },
    Mode {
        entry: Index,
        mode: u32,
    },
    Time {
        entry: Index,
        secs: i64,
        nanos: u32,
    },
    Xattr {
        entry: Index,
        seed: u8,
    },
    Rename {
        entry: Index,
        folder: Index,
        name: Index,
    },
    Remove {
        entry: Index,
    },
    Insert {
        database: Index,
        rows: u32,
        seed: u8,
        keep_log: bool,
    },
    Update {
        database: Index,
        seed: u8,
        keep_log: bool,
    },
    Vacuum {
        database: Index,
    },
    Wal {
        database: Index,
        on: bool,
    },
    Drop {
        database: Index,
    },
}

pub fn change() -> impl Strategy<Value = Change> {
    let i = any::<Index>;
    let seed = any::<u8>;
    prop_oneof![
        6 => (i(), i(), select(&LENGTHS[..]), seed())
            .prop_map(|(folder, name, bytes, seed)| Change::Write { folder, name, bytes, seed }),
        2 => (i(), i()).prop_map(|(folder, name)| Change::Folder { folder, name }),
        1 => (i(), i(), seed()).prop_map(|(folder, name, seed)| Change::Symlink { folder, name, seed }),
        1 => (i(), i(), 1..4u8, seed())
            .prop_map(|(folder, name, holes, seed)| Change::Sparse { folder, name, holes, seed }),
        1 => (i(), i()).prop_map(|(folder, name)| Change::Fifo { folder, name }),
        6 => (i(), seed(), any::<bool>()).prop_map(|(entry, seed, keep_time)| Change::Patch { entry, seed, keep_time }),
        2 => (i(), i(), i()).prop_map(|(entry, folder, name)| Change::Link { entry, folder, name }),
        1 => (i(), select(&MODES[..])).prop_map(|(entry, mode)| Change::Mode { entry, mode }),
        1 => (i(), 0..3_000_000_000i64, 0..1_000_000_000u32)
            .prop_map(|(entry, secs, nanos)| Change::Time { entry, secs, nanos }),
        1 => (i(), seed()).prop_map(|(entry, seed)| Change::Xattr { entry, seed }),
        2 => (i(), i(), i()).prop_map(|(entry, folder, name)| Change::Rename { entry, folder, name }),
        2 => i().prop_map(|entry| Change::Remove { entry }),
        4 => (i(), 1..400u32, seed(), any::<bool>())
            .prop_map(|(database, rows, seed, keep_log)| Change::Insert { database, rows, seed, keep_log }),
        3 => (i(), seed(), any::<bool>())
            .prop_map(|(database, seed, keep_log)| Change::Update { database, seed, keep_log }),
        1 => i().prop_map(|database| Change::Vacuum { database }),
        1 => (i(), any::<bool>()).prop_map(|(database, on)| Change::Wal { database, on }),
        1 => i().prop_map(|database| Change::Drop { database }),
    ]
}

impl Change {
    /// Makes the change, where it makes sense.
    pub fn make(&self, root: &Path) {
        match self {
            Self::Write { folder, name, bytes, seed } => {
                if let Some(path) =
                    place(root, folder, name).filter(|p| !p.is_symlink() && (!p.exists() || p.is_file()))
                {
                    fs::write(path, noise(u64::from(*seed), *bytes as usize)).unwrap();
                }
            }
            Self::Folder { folder, name } => {
                free(root, folder, name).into_iter().for_each(|path| fs::create_dir(path).unwrap());
            }
            Self::Symlink { folder, name, seed } => {
                let target = [&b"plain"[..], b"../..", b"/dangling/\xff", b"."][usize::from(*seed) % 4];
                let target = std::ffi::OsString::from_vec(target.to_vec());
                free(root, folder, name).into_iter().for_each(|path| symlink(&target, path).unwrap());
            }
            Self::Sparse { folder, name, holes, seed } => {
                if let Some(path) = free(root, folder, name) {
                    let file = File::create(path).unwrap();
                    file.write_all_at(&noise(u64::from(*seed), 100), u64::from(*holes) << 20).unwrap();
                    file.set_len((u64::from(*holes) << 20) + (1 << 20)).unwrap();
                }
            }
            Self::Fifo { folder, name } => {
                free(root, folder, name).into_iter().for_each(|path| {
                    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
                });
            }
            Self::Rename { entry, folder, name } => {
                if let (Some(from), Some(to)) = (pick(root, entry), free(root, folder, name))
                    && !to.starts_with(&from)
                {
                    fs::rename(from, to).unwrap();
                }
            }
            Self::Remove { entry } => match pick(root, entry) {
                Some(path) if path.is_dir() && !path.is_symlink() => fs::remove_dir_all(path).unwrap(),
                Some(path) => fs::remove_file(path).unwrap(),
                None => {}
            },
            Self::Link { entry, folder, name } => {
                if let (Some(from), Some(to)) = (pick_file(root, entry), free(root, folder, name)) {
                    fs::hard_link(from, to).unwrap();
                }
            }
            Self::Patch { .. } | Self::Mode { .. } | Self::Time { .. } | Self::Xattr { .. } => self.touch(root),
            _ => self.query(root),
        }
    }

    /// Changes to a file that is there.
    fn touch(&self, root: &Path) {
        match self {
            Self::Patch { entry, seed, keep_time } => {
                let Some(path) = pick_file(root, entry) else { return };
                let file = OpenOptions::new().write(true).open(path).unwrap();
                let meta = file.metadata().unwrap();
                let len = (meta.len() / 2).min(100);
                file.write_all_at(&noise(1000 + u64::from(*seed), len as usize), meta.len() / 2).unwrap();
                if *keep_time {
                    file.set_modified(meta.modified().unwrap()).unwrap();
                }
            }
            Self::Mode { entry, mode } => {
                if let Some(path) = pick(root, entry).filter(|p| !p.is_symlink()) {
                    let mode = if path.is_dir() { mode | 0o700 } else { *mode };
                    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
            Self::Time { entry, secs, nanos } => {
                if let Some(path) = pick_file(root, entry) {
                    let time = SystemTime::UNIX_EPOCH + Duration::new(secs.unsigned_abs(), *nanos);
                    OpenOptions::new().write(true).open(path).unwrap().set_modified(time).unwrap();
                }
            }
            Self::Xattr { entry, seed } => {
                if let Some(path) = pick_file(root, entry) {
                    // Not every file system has them.
                    let _ = rustix::fs::setxattr(path, "user.test", &[*seed], rustix::fs::XattrFlags::empty());
                }
            }
            _ => {}
        }
    }

    /// Changes to a database.
    fn query(&self, root: &Path) {
        let at = |index: &Index| root.join(index.get(&DATABASES));
        match self {
            Self::Insert { database, rows, seed, keep_log } => {
                sql(&at(database), *keep_log, &insert(*rows, u64::from(*seed)));
            }
            Self::Update { database, seed, keep_log } => {
                let changes = "UPDATE t SET x = zeroblob(100) WHERE id % 50 = ";
                let removal = "DELETE FROM t WHERE id % 70 = ";
                let batch = format!("{}{changes}{};{removal}{}", insert(1, 0), seed % 50, seed % 70);
                sql(&at(database), *keep_log, &batch);
            }
            Self::Vacuum { database } => sql(&at(database), false, "VACUUM"),
            Self::Wal { database, on } => {
                let mode = if *on { "WAL" } else { "DELETE" };
                sql(&at(database), false, &format!("PRAGMA journal_mode = {mode}; {}", insert(1, 1)));
            }
            Self::Drop { database } => {
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let _ = fs::remove_file(format!("{}{suffix}", at(database).display()));
                }
            }
            _ => {}
        }
    }
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let mut out = vec![root.to_path_buf()];
    out.extend(entries(root).into_iter().map(|(_, path)| path).filter(|p| p.is_dir() && !p.is_symlink()));
    out.retain(|p| p.strip_prefix(root).unwrap().components().count() < 4);
    out
}

fn place(root: &Path, folder: &Index, name: &Index) -> Option<PathBuf> {
    let name = std::ffi::OsString::from_vec(name.get(&NAMES).to_vec());
    let path = folder.get(&folders(root)).join(name);
    // A path has 4,096 bytes at most.
    (path.as_os_str().len() < 1500).then_some(path)
}

/// A name that nothing has.
fn free(root: &Path, folder: &Index, name: &Index) -> Option<PathBuf> {
    place(root, folder, name).filter(|path| fs::symlink_metadata(path).is_err())
}

/// Anything but databases, which have changes of their own.
fn pick(root: &Path, index: &Index) -> Option<PathBuf> {
    let mut all = entries(root);
    all.retain(|(name, _)| !DATABASES.iter().any(|db| name.starts_with(db)));
    (!all.is_empty()).then(|| index.get(&all).1.clone())
}

fn pick_file(root: &Path, index: &Index) -> Option<PathBuf> {
    pick(root, index).filter(|path| path.is_file() && !path.is_symlink())
}
