//! Writing blobs: small ones are gathered into frames, frames into packs, packs are sealed and stored by another thread
//! while more are gathered, and at the end an index file describes them all.
//!
//! Order: packs, then the index; a snapshot is the caller's and comes after. Each is durable before the next.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Repository;
use crate::backend::layout;
use crate::crypto::BlobType;
use crate::error::{Error, Result};
use crate::format::MAX_FRAME_BYTES;
use crate::format::header::Kind;
use crate::format::index::Index;
use crate::format::pack::{Encoding, Entry, Frame, PackBuilder, PackInfo};
use crate::format::zstd;
use crate::id::BlobId;

/// Most threads that seal and store packs; how many there are, the store says. Each holds one pack of up to 12 MiB, and
/// one is being gathered. Of a local store, one keeps up with two cores that compress.
const MAX_UPLOADERS: usize = 4;
/// Small blobs are gathered into frames of about this size, in bytes.
pub const GATHER_BYTES: usize = 1 << 20;

/// Gathers small blobs into one frame.
#[derive(Default)]
pub struct Gather {
    entries: Vec<Entry>,
    plain: Vec<u8>,
}

impl Gather {
    /// Adds a blob.
    pub fn push(&mut self, id: BlobId, kind: BlobType, plain: &[u8]) {
        self.entries.push(Entry { id, kind, plain_bytes: plain.len() as u32 });
        self.plain.extend_from_slice(plain);
    }

    /// Whether the frame should be made now.
    pub fn is_full(&self) -> bool {
        self.plain.len() >= GATHER_BYTES
    }

    /// Makes the frame, if anything was gathered.
    pub fn take(&mut self, level: i32) -> Option<Frame> {
        let (entries, plain) = (std::mem::take(&mut self.entries), std::mem::take(&mut self.plain));
        (!entries.is_empty()).then(|| encode_frame(entries, plain, level))
    }
}

/// Compresses blobs into a frame.
pub fn encode_frame(entries: Vec<Entry>, plain: Vec<u8>, level: i32) -> Frame {
    let plain_bytes = plain.len() as u32;
    let is_random = entries.len() == 1 && zstd::looks_random(&plain);
    let (encoding, body) = match (!is_random).then(|| zstd::compress(&plain, level)).flatten() {
        Some(packed) => (Encoding::Zstd, packed),
        None => (Encoding::Raw, plain),
    };
    Frame { encoding, plain_bytes, entries, bases: Vec::new(), body }
}

/// What a writer stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written {
    /// Packs.
    pub packs: u64,
    /// Bytes of packs and index.
    pub stored_bytes: u64,
    /// Bytes of plaintext in them.
    pub plain_bytes: u64,
}

/// Which blobs this run has taken on itself to store. Shared by all threads that hash.
#[derive(Clone)]
pub struct Claims {
    repo: Arc<Repository>,
    claimed: Arc<Mutex<HashSet<BlobId>>>,
}

impl Claims {
    /// Whether the caller must store the blob: nobody has it, and no one else in this run claimed it first.
    pub fn claim(&self, id: BlobId) -> bool {
        !self.repo.index().is_usable(&id) && self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(id)
    }
}

/// Stores blobs.
pub struct Writer {
    repo: Arc<Repository>,
    claims: Claims,
    level: i32,
    data: PackBuilder,
    metadata: PackBuilder,
    small: Gather,
    packs: Option<Sender<PackBuilder>>,
    uploaders: Vec<JoinHandle<Result<Vec<PackInfo>>>>,
    plain_bytes: u64,
    is_dry: bool,
}

impl Writer {
    /// A writer that compresses at the given zstd level.
    pub fn new(repo: &Arc<Repository>, level: i32) -> Self {
        Self::start(repo, level, false)
    }

    /// A writer that does all the work and stores nothing.
    pub fn dry(repo: &Arc<Repository>, level: i32) -> Self {
        Self::start(repo, level, true)
    }

    fn start(repo: &Arc<Repository>, level: i32, is_dry: bool) -> Self {
        let (send, receive) = bounded::<PackBuilder>(0);
        let failed = Arc::<AtomicBool>::default();
        let uploaders = (0..repo.backend.concurrency().clamp(1, MAX_UPLOADERS))
            .map(|_| {
                let (repo, receive, failed) = (repo.clone(), receive.clone(), failed.clone());
                std::thread::spawn(move || {
                    upload(&repo, &receive, is_dry, &failed).inspect_err(|_| failed.store(true, Ordering::Relaxed))
                })
            })
            .collect();
        Self {
            repo: repo.clone(),
            claims: Claims { repo: repo.clone(), claimed: Arc::default() },
            level,
            data: PackBuilder::new(Kind::DataPack),
            metadata: PackBuilder::new(Kind::MetadataPack),
            small: Gather::default(),
            packs: Some(send),
            uploaders,
            plain_bytes: 0,
            is_dry,
        }
    }

    /// Bytes of plaintext that were given to it, in new frames.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Decides who stores a blob.
    pub fn claims(&self) -> Claims {
        self.claims.clone()
    }

    /// Stores a metadata blob unless it is there, and returns its id.
    ///
    /// # Errors
    /// When storing a pack failed.
    pub fn put(&mut self, kind: BlobType, plain: &[u8]) -> Result<BlobId> {
        let id = self.repo.keys.blob_id(kind, plain);
        if self.claims.claim(id) {
            self.small.push(id, kind, plain);
            if self.small.is_full() {
                self.flush_small()?;
            }
        }
        Ok(id)
    }

    fn flush_small(&mut self) -> Result<()> {
        match self.small.take(self.level) {
            Some(frame) => self.put_frame(frame),
            None => Ok(()),
        }
    }

    /// Stores a frame of blobs that the caller has claimed.
    ///
    /// # Errors
    /// When storing a pack failed.
    pub fn put_frame(&mut self, frame: Frame) -> Result<()> {
        // A reader would refuse it, and with it everything that lies in the same pack.
        if frame.plain_bytes as usize > MAX_FRAME_BYTES {
            return Err(Error::refused(
                format!("a piece of {} bytes is larger than a frame may be", frame.plain_bytes),
                "look for a file with huge extended attributes and exclude it",
            ));
        }
        self.plain_bytes += u64::from(frame.plain_bytes);
        let is_data = frame.entries.first().is_some_and(|e| e.kind.is_data());
        let builder = if is_data { &mut self.data } else { &mut self.metadata };
        builder.push(frame);
        if builder.is_full() {
            let full = builder.take_full();
            self.send(full)?;
        }
        Ok(())
    }

    fn send(&mut self, pack: PackBuilder) -> Result<()> {
        let sent = self.packs.as_ref().is_some_and(|packs| packs.send(pack).is_ok());
        if sent { Ok(()) } else { Err(self.join().err().unwrap_or(Error::Interrupted)) }
    }

    fn join(&mut self) -> Result<Vec<PackInfo>> {
        self.packs = None;
        let mut packs = Vec::new();
        let mut failed = None;
        for uploader in self.uploaders.drain(..) {
            match uploader.join() {
                Ok(Ok(stored)) => packs.extend(stored),
                Ok(Err(e)) => failed = failed.or(Some(e)),
                Err(_) => {
                    failed =
                        failed.or_else(|| Some(Error::refused("a thread that stores packs failed", "report this")));
                }
            }
        }
        failed.map_or(Ok(packs), Err)
    }

    /// Stores what is left and an index of everything stored, and adds it to the index in memory.
    ///
    /// # Errors
    /// When the store fails.
    pub fn finish(mut self) -> Result<Written> {
        self.flush_small()?;
        for kind in [Kind::DataPack, Kind::MetadataPack] {
            let builder = if kind == Kind::DataPack { &mut self.data } else { &mut self.metadata };
            let first = builder.is_better_split().then(|| builder.take_full());
            let last = std::mem::replace(builder, PackBuilder::new(kind));
            for pack in first.into_iter().chain((!last.is_empty()).then_some(last)) {
                self.send(pack)?;
            }
        }
        let packs = self.join()?;
        let mut written = Written {
            packs: packs.len() as u64,
            stored_bytes: packs.iter().map(|p| p.file_bytes).sum(),
            plain_bytes: self.plain_bytes,
        };
        if !self.is_dry {
            written.stored_bytes += self.repo.index_packs(&packs)?;
        }
        Ok(written)
    }
}

/// Seals and stores packs until there are no more, or another uploader has failed: that one's error counts.
fn upload(
    repo: &Repository,
    packs: &Receiver<PackBuilder>,
    is_dry: bool,
    failed: &AtomicBool,
) -> Result<Vec<PackInfo>> {
    let mut stored = Vec::new();
    for pack in packs {
        if failed.load(Ordering::Relaxed) {
            break;
        }
        let sealed = pack.seal(&repo.keys)?;
        if !is_dry {
            let path = layout::pack(sealed.info.header.kind, sealed.info.id);
            // Pages of databases are what later versions of them are stored against.
            if sealed.info.frames.iter().flat_map(|f| &f.entries).any(|e| e.kind == BlobType::Segment) {
                repo.backend.keep(&path, &sealed.bytes);
            }
            repo.backend.put(&path, sealed.bytes)?;
        }
        stored.push(sealed.info);
    }
    Ok(stored)
}

impl Repository {
    /// Stores an index of packs that none describes yet, and returns its length in bytes.
    ///
    /// # Errors
    /// When the store fails.
    pub fn index_packs(&self, packs: &[PackInfo]) -> Result<u64> {
        if packs.is_empty() {
            return Ok(0);
        }
        let mut index = Index::default();
        packs.iter().for_each(|pack| index.add(pack));
        let bytes = self.put_index(index.clone())?;
        self.with_index(|all| all.add(index));
        Ok(bytes)
    }

    /// Stores an index file and returns its length in bytes. A session must look for itself afterwards, before it deletes
    /// what the file replaces.
    ///
    /// # Errors
    /// [`Error::Refused`] if this process's session was taken for dead; when the store fails.
    pub fn put_index(&self, index: Index) -> Result<u64> {
        let (id, bytes) = index.seal(&self.keys)?;
        let (path, len) = (layout::index(id), bytes.len() as u64);
        self.look_if_late()?;
        self.own.note(&path);
        self.backend.put(&path, bytes)?;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Faulty, Op};
    use crate::repo::testing::{World, noise};

    #[test]
    fn when_one_of_several_uploaders_fails_the_others_stop() {
        let world = World::new();
        let faulty = Arc::new(Faulty::new(world.memory.clone(), 2).wide(4));
        let repo = world.reopen_through(faulty.clone());
        let mut writer = Writer::new(&repo, 1);
        let mut put = |n: u64| {
            let data = noise(n, 4 << 20);
            let id = repo.keys().blob_id(BlobType::Chunk, &data);
            let entry = Entry { id, kind: BlobType::Chunk, plain_bytes: data.len() as u32 };
            writer.put_frame(encode_frame(vec![entry], data, 1))
        };
        // 20 packs or more, were they stored.
        let failed = (0..60).find_map(|n| put(n).err());
        assert!(matches!(failed, Some(Error::Storage { .. })), "{failed:?}");
        let puts = faulty.take_calls().into_iter().filter(|call| call.op == Op::Put).count();
        assert!((3..=6).contains(&puts), "{puts}");
    }
}
