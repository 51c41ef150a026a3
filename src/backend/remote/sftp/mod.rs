//! A directory of a server that is reached by SSH.
//!
//! Not through OpenDAL, whose SFTP neither syncs nor pipelines, makes the directory when it only looks, and leaves a
//! process of `ssh` behind when it is killed: through the same protocol library, over pipes to `ssh`. An object is
//! written under a temporary name, synced, measured, and renamed; then synced once more, which takes the new name to
//! the disk of all usual file systems.

mod folder;
mod link;
mod said;
mod transfer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openssh_sftp_client::error::{Error as SftpError, SftpErrorKind};
use openssh_sftp_client::metadata::Permissions;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::failure::{Failure, Remedy};
use super::meter::Kind;
use super::{Line, SftpPlace};
use crate::backend::Listed;
use crate::crypto;
use crate::format::cbor::Time;
use crate::id::hex;
use link::{InUse, Link};

/// Requests at a time that fill most lines, even with parts of some hundred kilobytes.
pub(super) const CONCURRENCY: usize = 8;
/// Connections at a time: the window of one does not fill a fast line with a long way.
const MAX_LINKS: usize = 4;
/// Bytes under way on a connection before another one is made.
const LINK_BYTES: usize = 1 << 20;
/// Large objects that are sent at a time: when they all come to their end at once, which is some answers later, the next
/// one has the line for itself.
const BODIES: usize = 3;
/// Folders that are listed, and files that are deleted, at a time.
const SMALL_REQUESTS: usize = 64;
/// Folders within folders: a repository has three.
const MAX_DEPTH: usize = 8;
/// For how long nothing may move.
const STALL: Duration = Duration::from_secs(120);
/// Folder of unfinished objects.
const TEMPORARY: &str = "tmp/";

/// How `ssh` is run.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What to run instead of `ssh`, with the same arguments; understood by `sh`.
    pub command: Option<String>,
}

/// A directory of a server.
pub(super) struct Sftp {
    shared: Arc<Shared>,
}

struct Shared {
    place: SftpPlace,
    settings: Settings,
    line: Arc<Line>,
    links: Mutex<Vec<Arc<Link>>>,
    /// Connections are made one at a time: a server may refuse many that knock at once.
    connecting: tokio::sync::Mutex<()>,
    /// Whether the server has refused a further one.
    has_enough: AtomicBool,
    /// Large objects on their way to the server at a time.
    bodies: Semaphore,
    /// Folders that are there.
    folders: Mutex<HashSet<String>>,
}

/// Deadline of a single request.
async fn soon<T>(link: &Link, request: impl Future<Output = Result<T, SftpError>>) -> Result<T, Failure> {
    match timeout(STALL, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(failed(link, &e)),
        Err(_) => {
            link.give_up();
            Err(stalled())
        }
    }
}

fn stalled() -> Failure {
    Failure::again(format!("nothing moved for {} s", STALL.as_secs()))
}

fn failed(link: &Link, error: &SftpError) -> Failure {
    if said::is_lost(error) {
        link.give_up();
    }
    said::of_request(error, &link.words())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// A connection for so many bytes.
    async fn link(self: &Arc<Self>, bytes: usize) -> Result<InUse, Failure> {
        if let Some(link) = self.least_busy() {
            if self.is_another_wanted(&link, bytes) {
                let shared = self.clone();
                // Nobody waits for it. If the server allows no more, it is left alone.
                tokio::spawn(async move {
                    if let Ok(_turn) = shared.connecting.try_lock() {
                        let refused = shared.connect().await.is_err();
                        shared.has_enough.fetch_or(refused, Ordering::Relaxed);
                    }
                });
            }
            return Ok(InUse::new(link, bytes));
        }
        let _turn = self.connecting.lock().await;
        // Another may have made one meanwhile.
        let link = match self.least_busy() {
            Some(link) => link,
            None => self.connect().await?,
        };
        Ok(InUse::new(link, bytes))
    }

    async fn connect(&self) -> Result<Arc<Link>, Failure> {
        self.line.meter.request(Kind::Other);
        let link = Arc::new(Link::open(&self.place, self.settings.command.as_deref()).await?);
        locked(&self.links).push(link.clone());
        Ok(link)
    }

    fn least_busy(&self) -> Option<Arc<Link>> {
        let mut links = locked(&self.links);
        links.retain(|link| !link.is_lost());
        links.iter().min_by_key(|link| link.load.load(Ordering::Relaxed)).cloned()
    }

    fn is_another_wanted(&self, best: &Link, bytes: usize) -> bool {
        bytes > 0
            && best.load.load(Ordering::Relaxed) >= LINK_BYTES
            && !self.has_enough.load(Ordering::Relaxed)
            && locked(&self.links).len() < MAX_LINKS
    }

    fn full(&self, path: &str) -> String {
        if path.is_empty() {
            self.place.path.clone()
        } else {
            format!("{}/{path}", self.place.path.trim_end_matches('/'))
        }
    }

    /// Makes the folder of an object, and everything above it that is missing.
    async fn make_folder(&self, link: &Link, path: &str) -> Result<(), Failure> {
        let folder = self.full(path.rsplit_once('/').map_or("", |(folder, _)| folder));
        let mut missing = vec![];
        let mut at = folder.as_str();
        loop {
            match self.make_one(link, at).await {
                Err(e) if e.remedy == Remedy::Missing => {
                    missing.push(at);
                    match at.rsplit_once('/') {
                        Some((above, _)) if !above.is_empty() => at = above,
                        _ => return Err(unmade(&folder, e)),
                    }
                }
                made => break made?,
            }
        }
        for folder in missing.into_iter().rev() {
            self.make_one(link, folder).await.map_err(|e| unmade(folder, e))?;
        }
        Ok(())
    }

    /// Makes a folder, unless it is there.
    async fn make_one(&self, link: &Link, folder: &str) -> Result<(), Failure> {
        self.line.meter.request(Kind::Other);
        let mut fs = link.protocol.fs();
        let made = {
            let mut builder = fs.dir_builder();
            builder.permissions(Permissions::from(0o700));
            timeout(STALL, builder.create(folder)).await
        };
        match made {
            Ok(Ok(())) => Ok(()),
            // What is there is told as a failure that says no more.
            Ok(Err(e @ SftpError::SftpError(..))) if !is_missing(&e) => {
                let there = soon(link, fs.metadata(folder)).await;
                if there.is_ok_and(|m| m.file_type().is_some_and(|t| t.is_dir())) {
                    Ok(())
                } else {
                    Err(failed(link, &e))
                }
            }
            Ok(Err(e)) => Err(failed(link, &e)),
            Err(_) => {
                link.give_up();
                Err(stalled())
            }
        }
    }

    /// Writes under a temporary name, has it synced, sees that all of it is there, and gives it its own name. `false`: the
    /// name is taken. Folders are made when it turns out that they are missing.
    async fn publish(self: &Arc<Self>, path: &str, bytes: Bytes, replaces: bool) -> Result<bool, Failure> {
        let link = self.link(bytes.len()).await?;
        let name = crypto::random::<16>().map_err(|e| Failure::hopeless(e.to_string(), "run the command again"))?;
        let temporary = format!("{TEMPORARY}{}", hex(&name));
        let (from, to) = (self.full(&temporary), self.full(path));
        self.line.meter.request(Kind::Put);
        let (created, ()) = tokio::join!(biased; transfer::create(&link, &from), self.expect_folder(&link, path));
        let mut file = match created {
            Err(e) if e.remedy == Remedy::Missing => {
                self.make_folder(&link, &temporary).await?;
                transfer::create(&link, &from).await
            }
            file => file,
        }
        .map_err(unmissed)?;
        let done = async {
            transfer::fill(self, &link, &mut file, bytes).await?;
            match transfer::place(&link, &mut file, (&from, &to), replaces).await {
                Err(e) if e.remedy == Remedy::Missing => {
                    self.make_folder(&link, path).await?;
                    transfer::place(&link, &mut file, (&from, &to), replaces).await
                }
                done => done,
            }
        };
        let done = done.await;
        if !matches!(done, Ok(true)) && !link.is_lost() {
            let _ = soon(&link, link.protocol.fs().remove_file(&from)).await;
        }
        done.map_err(unmissed)
    }

    /// Makes a folder of many, which is probably missing, while something else is waited for. Whether it could be made
    /// shows when it is used.
    async fn expect_folder(&self, link: &Link, path: &str) {
        let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| folder.contains('/')) else { return };
        if locked(&self.folders).insert(format!("{folder}/")) {
            self.line.meter.request(Kind::Other);
            let mut fs = link.protocol.fs();
            let mut builder = fs.dir_builder();
            builder.permissions(Permissions::from(0o700));
            let _ = timeout(STALL, builder.create(self.full(folder))).await;
        }
    }

    /// The objects in one folder, and the folders in it.
    async fn list_one(self: Arc<Self>, folder: String) -> Result<(Vec<Listed>, Vec<String>), Failure> {
        let link = self.link(0).await?;
        self.line.meter.request(Kind::List);
        let mut fs = link.protocol.fs();
        let dir = match soon(&link, fs.open_dir(self.full(folder.trim_end_matches('/')))).await {
            Err(e) if e.remedy == Remedy::Missing => return Ok(Default::default()),
            dir => dir?,
        };
        let mut entries = folder::entries(&dir);
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        while let Some(entry) = soon(&link, async { entries.next().await.transpose() }).await? {
            // No object has a name that is no text.
            let Some(name) = entry.filename().to_str().filter(|name| !matches!(*name, "." | "..")) else { continue };
            self.line.meter.received(name.len());
            let path = format!("{folder}{name}");
            let mut metadata = entry.metadata();
            if metadata.file_type().is_some_and(|t| t.is_symlink()) {
                match soon(&link, fs.metadata(self.full(&path))).await {
                    Ok(there) => metadata = there,
                    Err(e) if e.remedy == Remedy::Missing => continue,
                    Err(e) => return Err(e),
                }
            }
            match metadata.file_type() {
                Some(kind) if kind.is_dir() => folders.push(format!("{path}/")),
                Some(kind) if kind.is_file() => {
                    let modified =
                        metadata.modified().map_or(Time::default(), |t| crate::clock::from_system(t.as_system_time()));
                    files.push(Listed { path, bytes: metadata.len().unwrap_or_default(), modified });
                }
                _ => {}
            }
        }
        locked(&self.folders).extend(folders.iter().cloned());
        Ok((files, folders))
    }

    async fn delete_one(self: Arc<Self>, path: String) -> Result<(), Failure> {
        let link = self.link(0).await?;
        self.line.meter.request(Kind::Delete);
        match soon(&link, link.protocol.fs().remove_file(self.full(&path))).await {
            Err(e) if e.remedy == Remedy::Missing => Ok(()),
            done => done,
        }
    }
}

/// That a folder can't be made, though the one above it is there.
fn unmade(folder: &str, failure: Failure) -> Failure {
    if failure.remedy != Remedy::Missing {
        return failure;
    }
    Failure::hopeless(
        format!("the server can't make the directory {folder}: {}", failure.why),
        "check the path in --repo",
    )
}

/// Of an object that is put: somebody removes folders at the same time.
fn unmissed(failure: Failure) -> Failure {
    if failure.remedy == Remedy::Missing { Failure::again("a directory is gone") } else { failure }
}

fn is_missing(error: &SftpError) -> bool {
    matches!(error, SftpError::SftpError(SftpErrorKind::NoSuchFile, _))
}

/// Does something for each of many, some at a time.
async fn each<T, F>(
    shared: &Arc<Shared>,
    items: Vec<String>,
    act: impl Fn(Arc<Shared>, String) -> F,
) -> Result<Vec<T>, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(SMALL_REQUESTS));
    let mut tasks = JoinSet::new();
    for item in items {
        let (permits, work) = (permits.clone(), act(shared.clone(), item));
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await;
            work.await
        });
    }
    let mut out = Vec::new();
    while let Some(done) = tasks.join_next().await {
        out.push(done.map_err(|e| Failure::again(e.to_string()))??);
    }
    Ok(out)
}

impl Sftp {
    pub fn new(place: SftpPlace, settings: Settings, line: Arc<Line>) -> Self {
        let shared = Shared {
            place,
            settings,
            line,
            links: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            has_enough: AtomicBool::new(false),
            bodies: Semaphore::new(BODIES),
            folders: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        self.shared.publish(path, bytes, true).await.map(drop)
    }

    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool, Failure> {
        self.shared.publish(path, bytes, false).await
    }

    /// `None` if it is longer.
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Failure> {
        let link = self.shared.link(1).await?;
        self.shared.line.meter.request(Kind::Get);
        transfer::read_whole(&self.shared, &link, &self.shared.full(path), max_bytes).await
    }

    /// `None` if the object ends before.
    pub async fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, Failure> {
        let link = self.shared.link(usize::try_from(len).unwrap_or(usize::MAX)).await?;
        self.shared.line.meter.request(Kind::Get);
        transfer::read_range(&self.shared, &link, &self.shared.full(path), offset, len).await
    }

    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let (mut out, mut folders) = (Vec::new(), vec![folder.to_owned()]);
        for _ in 0..MAX_DEPTH {
            if folders.is_empty() {
                break;
            }
            let list = |shared: Arc<Shared>, folder| shared.list_one(folder);
            for (files, below) in each(&self.shared, std::mem::take(&mut folders), list).await? {
                out.extend(files);
                folders.extend(below);
            }
        }
        Ok(out)
    }

    pub async fn delete(&self, paths: &[String]) -> Result<(), Failure> {
        let delete = |shared: Arc<Shared>, path| shared.delete_one(path);
        each(&self.shared, paths.to_vec(), delete).await.map(drop)
    }
}
