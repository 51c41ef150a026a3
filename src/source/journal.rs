//! Changing a database file page by page so that a crash at any moment leaves the old one: with a rollback journal as
//! SQLite itself writes one, see "The Rollback Journal" in SQLite's file format document.
//!
//! The journal first gets all pages that will change, as they are; it counts from the moment its header is written, and
//! until it is removed. Whoever opens the database in between, a program or the next restore, puts the old pages back:
//! that is what SQLite does with a journal it finds. The caller holds the lock ([`super::exclusive`]) throughout.
//!
//! May depend on `crypto` for randomness, `error` and its neighbours `target`, `temporary` and `steps`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{self, Gid, Mode, Uid};

use super::exclusive::beside;
use super::sqlite::SIDECARS;
use super::sqlite::journal::{MAGIC, checksum, lock_page};
use super::steps::step;
use super::target::Folder;
use super::temporary::{read_exact_at, write_all_at};
use crate::crypto::random;
use crate::error::{Error, Result};

/// Length of a disk's sector, in bytes, as the journal states it: the first one is the header's.
const SECTOR_BYTES: u32 = 512;
/// Records are written when there are this many bytes of them.
const BUFFER_BYTES: usize = 1 << 20;

/// The journal of a database that is being changed.
pub struct Journal {
    folder: Arc<Folder>,
    name: Vec<u8>,
    file: OwnedFd,
    page_bytes: u32,
    /// Pages of the database before the change.
    pages_before: u32,
    nonce: u32,
    records: u32,
    /// Where the next record goes, in bytes.
    end: u64,
    buffer: Vec<u8>,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    /// The database is as it was: it may go.
    Filling,
    /// From here on the old pages come back unless it is removed.
    Sealed,
    Gone,
}

impl Journal {
    /// Begins the journal of a database, open as `main`, of `pages` pages. There must be none.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn begin(folder: &Arc<Folder>, database: &[u8], main: &OwnedFd, page_bytes: u32, pages: u32) -> Result<Self> {
        let name = beside(database, SIDECARS[2]);
        let nonce = u32::from_le_bytes(random()?);
        let failed = |e| Error::file("create", folder.path_of(&name), e);
        let stat = fs::fstat(main).map_err(failed)?;
        step();
        let file = folder.create(&name)?;
        // Whoever may use the database must be able to put it back. Only root makes files for others.
        if rustix::process::geteuid().is_root() {
            fs::fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(failed)?;
        }
        fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o777)).map_err(failed)?;
        let (end, buffer) = (u64::from(SECTOR_BYTES), Vec::new());
        let (folder, state, records) = (folder.clone(), State::Filling, 0);
        Ok(Self { folder, name, file, page_bytes, pages_before: pages, nonce, records, end, buffer, state })
    }

    fn path(&self) -> PathBuf {
        self.folder.path_of(&self.name)
    }

    fn failed(&self, error: impl Into<std::io::Error>) -> Error {
        Error::file("write", self.path(), error)
    }

    /// Adds a page as it is before the change. Pages count from 1.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn keep(&mut self, number: u32, page: &[u8]) -> Result<()> {
        // The page that holds the bytes for locks is in no journal.
        if u64::from(number) == lock_page(self.page_bytes) {
            return Ok(());
        }
        self.buffer.extend_from_slice(&number.to_be_bytes());
        self.buffer.extend_from_slice(page);
        self.buffer.extend_from_slice(&checksum(self.nonce, page).to_be_bytes());
        self.records += 1;
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        step();
        write_all_at(&self.file, &self.buffer, self.end).map_err(|e| self.failed(e))?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// From here on the old pages come back unless [`Journal::commit`] is reached. Returns when that is durable.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn seal(&mut self) -> Result<()> {
        self.flush()?;
        self.sync()?;
        self.folder.sync()?;
        let mut header = Vec::with_capacity(SECTOR_BYTES as usize);
        header.extend_from_slice(&MAGIC);
        for word in [self.records, self.nonce, self.pages_before, SECTOR_BYTES, self.page_bytes] {
            header.extend_from_slice(&word.to_be_bytes());
        }
        header.resize(SECTOR_BYTES as usize, 0);
        step();
        write_all_at(&self.file, &header, 0).map_err(|e| self.failed(e))?;
        self.sync()?;
        self.state = State::Sealed;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        step();
        fs::fsync(&self.file).map_err(|e| self.failed(e))
    }

    /// Puts the old pages back, as SQLite would.
    ///
    /// # Errors
    /// [`Error::File`]; then the journal stays, and the next program that opens the database tries again.
    pub fn roll_back(mut self, main: &Main<'_>) -> Result<()> {
        let record_bytes = u64::from(self.page_bytes) + 8;
        let mut page = vec![0; self.page_bytes as usize];
        let mut at = u64::from(SECTOR_BYTES);
        for _ in 0..self.records {
            let mut number = [0; 4];
            read_exact_at(&self.file, &mut number, at).map_err(|e| Error::file("read", self.path(), e))?;
            read_exact_at(&self.file, &mut page, at + 4).map_err(|e| Error::file("read", self.path(), e))?;
            let before = u64::from(u32::from_be_bytes(number)).saturating_sub(1);
            main.write_at(&page, before * u64::from(self.page_bytes))?;
            at += record_bytes;
        }
        main.set_len(u64::from(self.pages_before) * u64::from(self.page_bytes))?;
        main.sync()?;
        self.remove()
    }

    /// Ends the change: what is in the database file, which must be durable, counts now.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn commit(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        self.folder.remove(&self.name)?;
        self.state = State::Gone;
        self.folder.sync()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.state == State::Filling {
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// The file of a database that is changed under a journal.
pub struct Main<'a> {
    /// It.
    pub file: &'a OwnedFd,
    /// Where it is, for errors.
    pub path: PathBuf,
}

impl Main<'_> {
    /// Writes at an offset; several threads may.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        step();
        write_all_at(self.file, bytes, offset).map_err(|e| Error::file("write", &self.path, e))
    }

    /// Sets the length, in bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        step();
        fs::ftruncate(self.file, bytes).map_err(|e| Error::file("write", &self.path, e))
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn sync(&self) -> Result<()> {
        step();
        fs::fsync(self.file).map_err(|e| Error::file("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn make(path: &std::path::Path, mode: &str, page_bytes: u32) -> Vec<u8> {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "page_size", page_bytes).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        let fill = "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
            INSERT INTO t SELECT i, randomblob(1000) FROM n;";
        db.execute_batch(fill).unwrap();
        db.close().unwrap();
        std::fs::read(path).unwrap()
    }

    /// Overwrites every third page with rubbish, and makes the file longer or shorter.
    fn spoil(folder: &Arc<Folder>, before: &[u8], page_bytes: u32, len: u64) -> Journal {
        let file = folder.open_to_write(b"a.db").unwrap().unwrap();
        let pages = before.len() as u32 / page_bytes;
        let mut journal = Journal::begin(folder, b"a.db", &file, page_bytes, pages).unwrap();
        let main = Main { file: &file, path: folder.path_of(b"a.db") };
        let doomed = |n: u32| n.is_multiple_of(3) || u64::from(n + 1) * u64::from(page_bytes) > len;
        for (n, page) in (0..).zip(before.chunks(page_bytes as usize)).filter(|(n, _)| doomed(*n)) {
            journal.keep(n + 1, page).unwrap();
        }
        journal.seal().unwrap();
        for n in (0..pages).filter(|n| doomed(*n)) {
            main.write_at(&vec![0xee; page_bytes as usize], u64::from(n) * u64::from(page_bytes)).unwrap();
        }
        main.set_len(len).unwrap();
        main.sync().unwrap();
        journal
    }

    #[test]
    fn sqlite_and_we_put_the_same_pages_back() {
        for mode in ["WAL", "DELETE"] {
            for page_bytes in [512u32, 1024, 4096, 65536] {
                let temp = tempfile::tempdir().unwrap();
                let path = temp.path().join("a.db");
                let before = make(&path, mode, page_bytes);
                let folder = Folder::target(temp.path()).unwrap();
                for len in [before.len() as u64 + 7 * u64::from(page_bytes), 2 * u64::from(page_bytes)] {
                    let journal = spoil(&folder, &before, page_bytes, len);
                    assert_ne!(std::fs::read(&path).unwrap(), before);
                    let file = folder.open_to_write(b"a.db").unwrap().unwrap();
                    journal.roll_back(&Main { file: &file, path: path.clone() }).unwrap();
                    assert!(std::fs::read(&path).unwrap() == before, "by us: {mode} {page_bytes} {len}");

                    drop(spoil(&folder, &before, page_bytes, len));
                    let db = Connection::open(&path).unwrap();
                    let rows: u32 = db.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
                    db.close().unwrap();
                    assert_eq!(rows, 500);
                    assert!(std::fs::read(&path).unwrap() == before, "by SQLite: {mode} {page_bytes} {len}");
                    assert_eq!(folder.names().unwrap(), [b"a.db"]);
                }
            }
        }
    }

    #[test]
    fn a_journal_that_is_not_sealed_means_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.db");
        let before = make(&path, "DELETE", 4096);
        let folder = Folder::target(temp.path()).unwrap();
        let file = folder.open_to_write(b"a.db").unwrap().unwrap();
        let mut journal = Journal::begin(&folder, b"a.db", &file, 4096, before.len() as u32 / 4096).unwrap();
        for n in 1..300 {
            journal.keep(n, &[0xee; 4096]).unwrap();
        }
        assert!(temp.path().join("a.db-journal").metadata().unwrap().len() > 1 << 20);
        let db = Connection::open(&path).unwrap();
        assert_eq!(db.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, u32>(0)).unwrap(), 500);
        db.close().unwrap();
        drop(journal);
        assert!(std::fs::read(&path).unwrap() == before);
        assert_eq!(folder.names().unwrap(), [b"a.db"]);
    }
}
