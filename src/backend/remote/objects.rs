//! Objects in a store that OpenDAL knows.
//!
//! Safety never rests on conditional puts: some services take the condition and ignore it, others have none.

use bytes::Bytes;
use futures::TryStreamExt;
use opendal::{Buffer, ErrorKind, Operator, options};

use super::answers::{is_of_another_length, of_opendal};
use super::failure::Failure;
use crate::backend::Listed;
use crate::crypto;
use crate::format::cbor::Time;
use crate::id::hex;

/// Requests at a time that fill most lines, even with parts of some hundred kilobytes.
pub(super) const CONCURRENCY: usize = 8;
/// Names that one request deletes at most.
const DELETE_NAMES: usize = 1000;
/// Room that is made for a part before it comes, in bytes.
const MAX_ROOM_BYTES: u64 = 16 << 20;

/// A store.
pub(super) struct Objects {
    pub op: Operator,
    /// The service's host and port.
    pub host: String,
    /// Whether a put becomes visible bit by bit: then it goes under a temporary name, and is renamed.
    pub renames: bool,
}

impl Objects {
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        if !self.renames {
            return self.op.write(path, bytes).await.map(drop).map_err(|e| of_opendal(&e));
        }
        let name = crypto::random::<16>().map_err(|e| Failure::hopeless(e.to_string(), "run the command again"))?;
        let (temporary, len) = (format!("tmp/{}", hex(&name)), bytes.len() as u64);
        let place = async {
            self.op.write(&temporary, bytes).await?;
            let there = self.op.stat(&temporary).await?.content_length();
            if there == len { self.op.rename(&temporary, path).await.map(|()| true) } else { Ok(false) }
        };
        match place.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::again("the object did not arrive whole")),
            Err(e) => Err(of_opendal(&e)),
        }
    }

    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool, Failure> {
        if self.renames || !self.op.info().capability().write_with_if_not_exists {
            let there = self.op.exists(path).await.map_err(|e| of_opendal(&e))?;
            return if there { Ok(false) } else { self.put(path, bytes).await.map(|()| true) };
        }
        let options = options::WriteOptions { if_not_exists: true, ..Default::default() };
        match self.op.write_options(path, bytes, options).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::ConditionNotMatch => Ok(false),
            Err(e) => Err(of_opendal(&e)),
        }
    }

    /// `None` if it is longer.
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Failure> {
        let reader = self.op.reader(path).await.map_err(|e| of_opendal(&e))?;
        let mut stream = reader.into_stream(..).await.map_err(|e| of_opendal(&e))?;
        let mut out = Vec::new();
        while let Some(part) = stream.try_next().await.map_err(|e| of_opendal(&e))? {
            if (out.len() + part.len()) as u64 > max_bytes {
                return Ok(None);
            }
            append(&mut out, part);
        }
        Ok(Some(out))
    }

    /// `None` if the object ends before.
    pub async fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, Failure> {
        let reader = self.op.reader(path).await.map_err(|e| of_opendal(&e))?;
        let mut out = Vec::with_capacity(len.min(MAX_ROOM_BYTES) as usize);
        let read = async {
            let mut stream = reader.into_stream(offset..offset.saturating_add(len)).await?;
            while let Some(part) = stream.try_next().await? {
                append(&mut out, part);
            }
            Ok::<_, opendal::Error>(())
        };
        match read.await {
            // The object ends before, or this answer does: asking again tells.
            Err(e) if e.kind() == ErrorKind::RangeNotSatisfied || is_of_another_length(&e) => Ok(None),
            Err(e) => Err(of_opendal(&e)),
            Ok(()) => Ok((out.len() as u64 == len).then_some(out)),
        }
    }

    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let options = options::ListOptions { recursive: true, ..Default::default() };
        // The root of an operator is the empty path; it has names of its own for it.
        let mut lister = match self.op.lister_options(if folder.is_empty() { "/" } else { folder }, options).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            lister => lister.map_err(|e| of_opendal(&e))?,
        };
        let mut out = Vec::new();
        loop {
            let entry = match lister.try_next().await {
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                entry => entry.map_err(|e| of_opendal(&e))?,
            };
            let Some(entry) = entry else { break };
            let metadata = entry.metadata();
            if metadata.is_file() {
                let modified = metadata.last_modified().map_or(Time::default(), |t| {
                    let t = t.into_inner();
                    Time { secs: t.as_second(), nanos: t.subsec_nanosecond().unsigned_abs() }
                });
                out.push(Listed { path: entry.path().to_owned(), bytes: metadata.content_length(), modified });
            }
        }
        Ok(out)
    }

    pub async fn delete(&self, paths: &[String]) -> Result<(), Failure> {
        for some in paths.chunks(DELETE_NAMES) {
            self.op.delete_iter(some.to_vec()).await.map_err(|e| of_opendal(&e))?;
        }
        Ok(())
    }
}

fn append(out: &mut Vec<u8>, mut part: Buffer) {
    for bytes in part.by_ref() {
        out.extend_from_slice(&bytes);
    }
}
