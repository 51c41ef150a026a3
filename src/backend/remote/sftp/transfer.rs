//! The bytes of objects, in pieces of which many are under way at a time: with one after the other, a long way to the
//! server would leave the line empty most of the time.

use std::io::SeekFrom;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use openssh_sftp_client::error::{Error as SftpError, SftpErrorKind};
use openssh_sftp_client::file::File;
use tokio::io::AsyncSeek;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::link::Link;
use super::{STALL, Shared, failed, soon, stalled};
use crate::backend::remote::Line;
use crate::backend::remote::failure::Failure;

/// Bytes of a piece; servers take up to 255 KiB.
const PIECE_BYTES: usize = 128 << 10;
/// Every server takes so much at a time.
const SMALL_BYTES: usize = 32 << 10;
/// Pieces of one object under way at a time: 4 MiB.
const PIECES: usize = 32;

/// Waits for one of the pieces under way.
async fn next<T: 'static>(link: &Link, pieces: &mut JoinSet<Result<T, SftpError>>) -> Result<Option<T>, Failure> {
    match timeout(STALL, pieces.join_next()).await {
        Err(_) => {
            link.give_up();
            Err(stalled())
        }
        Ok(None) => Ok(None),
        Ok(Some(Ok(Ok(piece)))) => Ok(Some(piece)),
        Ok(Some(Ok(Err(e)))) => Err(failed(link, &e)),
        Ok(Some(Err(e))) => {
            link.give_up();
            Err(Failure::again(e.to_string()))
        }
    }
}

fn seek(file: &mut File, at: u64) -> Result<(), SftpError> {
    Pin::new(file).start_seek(SeekFrom::Start(at)).map_err(SftpError::from)
}

/// Makes a file that isn't there yet.
pub(super) async fn create(link: &Link, path: &str) -> Result<File, Failure> {
    soon(link, link.protocol.options().read(true).write(true).create_new(true).open(path)).await
}

/// Writes a file, has it synced, and sees that all of it is there.
pub(super) async fn fill(shared: &Shared, link: &Link, file: &mut File, bytes: Bytes) -> Result<(), Failure> {
    let len = bytes.len() as u64;
    let mut other = file.clone();
    let (sent, ends) = if bytes.len() <= shared.line.up.slice_bytes().min(SMALL_BYTES) {
        shared.line.up.pass(bytes.len()).await;
        shared.line.meter.sent(bytes.len());
        let written = write_piece(file.clone(), 0, bytes);
        // Servers do what concerns one file in the order of the requests (draft-ietf-secsh-filexfer-02, 6.1).
        let (sent, synced, there) =
            tokio::join!(biased; soon(link, written), sync(link, file), soon(link, other.metadata()));
        (sent, Some((synced, there)))
    } else {
        let _turn = shared.bodies.acquire().await;
        (send(shared, link, file, bytes).await, None)
    };
    if let Err(e) = sent {
        return Err(explained(link, shared, e).await);
    }
    let (synced, there) = match ends {
        Some(ends) => ends,
        None => tokio::join!(biased; sync(link, file), soon(link, other.metadata())),
    };
    synced?;
    let there = there?.len();
    if there == Some(len) {
        Ok(())
    } else {
        Err(Failure::again(format!("of {len} bytes the server has {}", there.unwrap_or_default())))
    }
}

/// Has what was written to a file taken to the disk, by servers that know how.
async fn sync(link: &Link, file: &mut File) -> Result<(), Failure> {
    if link.protocol.support_fsync() { soon(link, file.sync_all()).await } else { Ok(()) }
}

/// Gives a file its name, durably. `false`: the name is taken.
pub(super) async fn place(
    link: &Link,
    file: &mut File,
    (from, to): (&str, &str),
    replaces: bool,
) -> Result<bool, Failure> {
    let mut fs = link.protocol.fs();
    if replaces {
        // Servers do one after the other.
        let (renamed, synced) = tokio::join!(biased; soon(link, fs.rename(from, to)), sync(link, file));
        return renamed.and(synced).map(|()| true);
    }
    if link.protocol.support_hardlink() {
        match timeout(STALL, fs.hard_link(from, to)).await {
            Err(_) => {
                link.give_up();
                return Err(stalled());
            }
            Ok(Err(e)) if is_failure(&e) && soon(link, fs.metadata(to)).await.is_ok() => return Ok(false),
            Ok(Err(e)) => return Err(failed(link, &e)),
            Ok(Ok(())) => soon(link, fs.remove_file(from)).await?,
        }
    } else {
        if soon(link, fs.metadata(to)).await.is_ok() {
            return Ok(false);
        }
        soon(link, fs.rename(from, to)).await?;
    }
    sync(link, file).await.map(|()| true)
}

fn is_failure(error: &SftpError) -> bool {
    matches!(error, SftpError::SftpError(SftpErrorKind::Failure, _))
}

/// A server tells a full disk as a failure that says no more: looks whether it is one.
async fn explained(link: &Link, shared: &Shared, failure: Failure) -> Failure {
    if link.is_lost() || !link.protocol.support_statvfs() {
        return failure;
    }
    match soon(link, link.protocol.fs().statvfs(shared.full(""))).await {
        Ok(disk) if disk.bavail.saturating_mul(disk.frsize) < FULL_BYTES || (disk.favail == 0 && disk.files > 0) => {
            Failure { full: true, why: "the server's disk is full".into(), ..failure }
        }
        _ => failure,
    }
}

/// With less than this free, a write that fails failed for that.
const FULL_BYTES: u64 = 16 << 20;

async fn send(shared: &Shared, link: &Link, file: &File, mut bytes: Bytes) -> Result<(), Failure> {
    let piece_bytes = shared.line.up.slice_bytes().min(PIECE_BYTES);
    let mut pieces = JoinSet::new();
    let mut at = 0;
    while !bytes.is_empty() {
        if pieces.len() >= PIECES {
            next(link, &mut pieces).await?;
        }
        let piece = bytes.split_to(piece_bytes.min(bytes.len()));
        let len = piece.len();
        shared.line.up.pass(len).await;
        shared.line.meter.sent(len);
        pieces.spawn(write_piece(file.clone(), at, piece));
        at += len as u64;
    }
    while next(link, &mut pieces).await?.is_some() {}
    Ok(())
}

async fn write_piece(mut file: File, mut at: u64, mut bytes: Bytes) -> Result<(), SftpError> {
    while !bytes.is_empty() {
        seek(&mut file, at)?;
        let written = file.write_zero_copy(std::slice::from_ref(&bytes)).await?;
        bytes = bytes.split_off(written.min(bytes.len()));
        at += written as u64;
    }
    Ok(())
}

/// Reads a file of at most so many bytes; `None` if it is longer.
pub(super) async fn read_whole(
    shared: &Shared,
    link: &Link,
    path: &str,
    max_bytes: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut file = soon(link, link.protocol.options().read(true).open(path)).await?;
    // Most are short: the first piece is asked for together with the length.
    let mut other = file.clone();
    let first = other.read(PIECE_BYTES as u32, BytesMut::new());
    let (first, metadata) = tokio::join!(biased; soon(link, first), soon(link, file.metadata()));
    let len = metadata?.len().unwrap_or_default();
    if len > max_bytes {
        return Ok(None);
    }
    let mut out = first?.map_or(Vec::new(), Vec::from);
    shared.line.meter.received(out.len());
    if let Some(more) = len.checked_sub(out.len() as u64).filter(|more| *more > 0) {
        match read_pieces(shared, link, &file, out.len() as u64, more).await? {
            Some(rest) => out.extend(rest),
            None => return Err(Failure::again("it was cut short on the way")),
        }
    }
    Ok(Some(out))
}

/// Reads a part of a file; `None` if it ends before.
pub(super) async fn read_range(
    shared: &Shared,
    link: &Link,
    path: &str,
    offset: u64,
    len: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let file = soon(link, link.protocol.options().read(true).open(path)).await?;
    read_pieces(shared, link, &file, offset, len).await
}

async fn read_pieces(
    shared: &Shared,
    link: &Link,
    file: &File,
    offset: u64,
    len: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let Ok(total) = usize::try_from(len) else { return Ok(None) };
    let piece_bytes = shared.line.down.slice_bytes().min(PIECE_BYTES);
    let mut out = vec![0; total];
    let mut pieces = JoinSet::new();
    let (mut asked, mut got) = (0, 0);
    loop {
        while asked < total && pieces.len() < PIECES {
            let want = piece_bytes.min(total - asked);
            shared.line.down.pass(want).await;
            let work = read_piece(file.clone(), offset + asked as u64, want, shared.line.clone());
            let at = asked;
            pieces.spawn(async move { work.await.map(|bytes| (at, bytes)) });
            asked += want;
        }
        let Some((at, bytes)) = next(link, &mut pieces).await? else { break };
        if let Some(place) = out.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
        got += bytes.len();
    }
    Ok((got == total).then_some(out))
}

/// Reads so many bytes, or what there is.
async fn read_piece(mut file: File, at: u64, want: usize, line: Arc<Line>) -> Result<BytesMut, SftpError> {
    let mut out = BytesMut::new();
    while out.len() < want {
        seek(&mut file, at + out.len() as u64)?;
        let more = want - out.len();
        match file.read(u32::try_from(more).unwrap_or(u32::MAX), BytesMut::new()).await? {
            None => break,
            Some(bytes) if bytes.is_empty() => break,
            Some(mut bytes) => {
                bytes.truncate(more);
                line.meter.received(bytes.len());
                if out.is_empty() { out = bytes } else { out.extend_from_slice(&bytes) }
            }
        }
    }
    Ok(out)
}
