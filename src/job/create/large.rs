//! Large files and streams: read here, cut, and handed to the workers piece by piece.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{SeekFrom, seek};

use super::pipeline::{Event, Work};
use super::small::{has_changed, open_regular};
use super::walk::Walker;
use super::{CHANGED, Stdin};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::tree::{Node, NodeKind};
use crate::report::Severity;

/// Read at a time, in bytes: more than the largest chunk, so that what is left over is moved seldom.
const BUFFER_BYTES: usize = 8 << 20;

impl Walker<'_> {
    /// Reads a large file; what is wrong with it is reported.
    pub(super) fn large(&mut self, path: &Path, mut node: Node) -> Result<()> {
        let (file, before) = match open_regular(path) {
            Ok(open) => open,
            Err(e) => {
                self.unreadable(path, &e);
                return Ok(());
            }
        };
        let extents = data_extents(&file, &before);
        let whole = vec![0, before.size()];
        let mut data = Extents { file: &file, left: extents.as_ref().unwrap_or(&whole).clone() };
        let read = self.stream(&mut data, Self::submit_chunk)?;
        let after = file.metadata().map_err(|e| Error::file("read", path, e))?;
        let wanted: u64 = extents.as_ref().unwrap_or(&whole).chunks(2).filter_map(|e| e.get(1)).sum();
        match read {
            Ok(n) if n == wanted && !has_changed(&before, &after, before.size()) => node.size = Some(before.size()),
            Ok(n) => {
                self.reporter.warn(Severity::Source, path.display(), CHANGED);
                node.unverified.get_or_insert_with(|| CHANGED.into());
                // A sparse file that was cut off keeps its layout only up to where it could be read.
                let keep = n == wanted || extents.is_none();
                node.size = Some(if extents.is_none() { n } else { before.size() });
                if !keep {
                    return self.give_up(path, "it shrank while it was read");
                }
            }
            Err(e) => return self.give_up(path, &format!("it can't be read: {e}")),
        }
        node.extents = extents;
        self.reporter.advance(0, 1);
        Ok(self.feeder.event(Event::Large(Box::new(node)))?)
    }

    /// Leaves a file out whose pieces were partly handed on already.
    fn give_up(&mut self, path: &Path, why: &str) -> Result<()> {
        self.reporter.warn(Severity::Source, path.display(), why);
        Ok(self.feeder.event(Event::Abandon)?)
    }

    fn submit_chunk(&mut self, chunk: &[u8]) -> Result<()> {
        let ticket = self.feeder.submit(Work::Chunk(chunk.to_vec()))?;
        Ok(self.feeder.event(Event::Chunk(ticket))?)
    }

    /// Cuts a stream into chunks and hands on each; returns its length, or what reading it failed with.
    pub(super) fn stream(
        &mut self,
        input: &mut dyn Read,
        mut each: impl FnMut(&mut Self, &[u8]) -> Result<()>,
    ) -> Result<std::io::Result<u64>> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let (mut filled, mut total, mut ended) = (0, 0, false);
        while !ended || filled > 0 {
            self.reporter.check_interrupt()?;
            while !ended && filled < buffer.len() {
                match input.read(&mut buffer[filled..]) {
                    Ok(0) => ended = true,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Ok(Err(e)),
                }
            }
            let mut at = 0;
            while at < filled && (ended || filled - at >= self.chunker.max_bytes()) {
                let chunk = self.chunker.cut(&buffer[at..filled]);
                each(self, &buffer[at..at + chunk])?;
                at += chunk;
                total += chunk as u64;
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
        Ok(Ok(total))
    }

    /// Saves standard input, or what a command writes to it, as one file.
    ///
    /// # Errors
    /// When it can't be read, or the command fails: then there is no snapshot.
    pub(super) fn stdin(&mut self, stdin: &Stdin) -> Result<()> {
        self.reporter.current(|| String::from_utf8_lossy(&stdin.name).into_owned());
        let length = match &stdin.command {
            None => self
                .stream(&mut std::io::stdin().lock(), Self::submit_chunk)?
                .map_err(|e| Error::file("read", "standard input", e))?,
            Some(command) => {
                let (mut child, what) = start(command)?;
                let Some(mut out) = child.stdout.take() else { return Err(failed(&what, "has no output")) };
                let length = self
                    .stream(&mut out, Self::submit_chunk)?
                    .map_err(|e| Error::file("read the output of", &what, e))?;
                drop(out);
                let status = child.wait().map_err(|e| Error::file("wait for", &what, e))?;
                if !status.success() {
                    return Err(failed(&what, &format!("failed: {status}")));
                }
                length
            }
        };
        self.reporter.advance(0, 1);
        Ok(self.feeder.event(Event::Large(Box::new(own_file(&stdin.name, length))))?)
    }
}

/// The node of a file that is made up here: nobody else may read it.
pub(super) fn own_file(name: &[u8], bytes: u64) -> Node {
    let mut node = Node::bare(name, NodeKind::File);
    (node.mode, node.size, node.mtime) = (0o600, Some(bytes), clock::now());
    (node.uid, node.gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    node
}

fn start(command: &[std::ffi::OsString]) -> Result<(Child, String)> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::Usage("--stdin-from-command needs a command after --".into()));
    };
    let what = program.to_string_lossy().into_owned();
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    Ok((child.map_err(|e| Error::file("start", &what, e))?, what))
}

fn failed(command: &str, how: &str) -> Error {
    Error::refused(format!("the command {command} {how}; no snapshot was taken"), "mend the command and run again")
}

/// The stretches of data in a sparse file, as offset and length in turn; `None` if it has no holes.
fn data_extents(file: &File, meta: &Metadata) -> Option<Vec<u64>> {
    if meta.blocks() * 512 >= meta.size() {
        return None;
    }
    let mut extents = Vec::new();
    let mut at = 0;
    while at < meta.size() {
        let data = match seek(file, SeekFrom::Data(at)) {
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            data => data.ok()?,
        };
        let hole = seek(file, SeekFrom::Hole(data)).ok()?.min(meta.size());
        if hole <= data {
            break;
        }
        extents.extend([data, hole - data]);
        at = hole;
    }
    (extents != [0, meta.size()]).then_some(extents)
}

/// Reads extents one after the other.
struct Extents<'f> {
    file: &'f File,
    left: Vec<u64>,
}

impl Read for Extents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let [offset, length, ..] = self.left[..] {
            if length == 0 {
                self.left.drain(..2);
                continue;
            }
            let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let n = self.file.read_at(&mut buffer[..wanted], offset)?;
            if n == 0 {
                return Ok(0);
            }
            (self.left[0], self.left[1]) = (offset + n as u64, length - n as u64);
            return Ok(n);
        }
        Ok(0)
    }
}
