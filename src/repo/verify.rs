//! Reading whole packs to verify every byte of them.
//!
//! A pack is held in memory while it is verified: [`READERS`] of them at a time, whatever the number of processors,
//! and the frames of each are shared out among those.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::bounded;
use rayon::prelude::*;

use super::{FrameReader, Proven, Repository};
use crate::backend::{Listed, layout};
use crate::error::{Error, Result};
use crate::format::MAX_PACK_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::pack::{Encoding, FrameInfo, PackInfo, open_directory};
use crate::format::segment::SlotSet;
use crate::id::BlobId;
use crate::report::Reporter;

/// Packs of up to 24 MiB that are in memory at once: one is fetched while the other is decoded.
const READERS: usize = 2;

/// What reading a whole pack found.
pub struct Audit {
    /// What its directory says.
    pub info: PackInfo,
    /// Whether the file's BLAKE3 is its name.
    pub intact: bool,
    /// Blobs that can't be had from it.
    pub bad: Vec<BlobId>,
    /// What is wrong with which frame, in words.
    pub faults: Vec<String>,
    /// Which slots of each segment are present: bit n for slot n.
    pub slots: Vec<(BlobId, SlotSet)>,
    /// Whether its frames were decoded, rather than known to be sound by the file's hash.
    pub is_decoded: bool,
    /// Whether everything in it is sound, as long as segments that some of it leans on are.
    pub is_sound_alone: bool,
}

/// What one frame turned out to be.
enum Found {
    Sound,
    /// A sound segment: which slots are present, and whether it has all of them. What it leans on is named by its
    /// contents: with sound bases it is sound again.
    Segment {
        id: BlobId,
        present: SlotSet,
        is_whole: bool,
    },
    /// Authentic, but what it leans on is damaged.
    Unproven,
    Bad {
        blobs: Vec<BlobId>,
        why: String,
    },
}

impl Repository {
    /// Reads and verifies whole packs, in no particular order; `each` is called on this thread with each result. Packs
    /// that were `proven` before are decoded again only if they have changed.
    ///
    /// # Errors
    /// What `each` returns, and [`Error::Interrupted`].
    pub fn audit_packs(
        &self,
        packs: &[Listed],
        proven: &Proven,
        reporter: &Reporter,
        mut each: impl FnMut(&Listed, Result<Audit>) -> Result<()>,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (send, receive) = bounded(READERS);
            for _ in 0..READERS {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    while let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        reporter.current(|| pack.path.clone());
                        if send.send((pack, self.audit_pack(&pack.path, proven))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            for (pack, audit) in receive {
                reporter.check_interrupt()?;
                each(pack, audit)?;
                reporter.advance(pack.bytes, 0);
            }
            Ok(())
        })
    }

    /// Reads a whole pack and verifies it: the file's hash, its directory, every frame and the id of every blob.
    ///
    /// # Errors
    /// When it can't be read, or its directory is damaged. Damage behind that is in the [`Audit`].
    fn audit_pack(&self, path: &str, proven: &Proven) -> Result<Audit> {
        let (kind, id) = layout::parse_pack(path).ok_or_else(|| Error::corrupt(path, "it has no pack's name"))?;
        let mut bytes = self.backend.get(path, MAX_PACK_BYTES)?;
        let info = open_directory(&self.keys, id, kind, bytes.len() as u64, &bytes)?;
        // Before the frames are opened where they lie.
        let intact = *blake3::Hasher::new().update_rayon(&bytes).finalize().as_bytes() == id.0;
        if intact && proven.holds(&id) {
            let (bad, faults, slots) = Default::default();
            return Ok(Audit { info, intact, bad, faults, slots, is_decoded: false, is_sound_alone: true });
        }
        // open_directory has seen to it that all frames lie within the file.
        let mut rest = bytes.get_mut(HEADER_BYTES + info.header.first_bytes as usize..).unwrap_or_default();
        let mut frames: Vec<(FrameReader, u32, &FrameInfo, &mut [u8])> = Vec::with_capacity(info.frames.len());
        for ((number, offset), frame) in (0..).zip(info.frame_offsets()).zip(&info.frames) {
            let (sealed, after) = rest.split_at_mut_checked(frame.stored_bytes as usize).unwrap_or_default();
            frames.push((FrameReader::of_pack(&info, number, offset, frame), number, frame, sealed));
            rest = after;
        }
        let one = |(reader, number, frame, sealed)| self.audit_frame(&reader, number, frame, sealed);
        let found: Vec<_> = frames.into_par_iter().map(one).collect();
        let (mut bad, mut faults, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_sound_alone = intact;
        for found in found {
            match found {
                Found::Sound => {}
                Found::Segment { id, present, is_whole } => {
                    slots.push((id, present));
                    is_sound_alone &= is_whole;
                }
                Found::Unproven => is_sound_alone = false,
                Found::Bad { blobs, why } => {
                    bad.extend(blobs);
                    faults.push(why);
                    is_sound_alone = false;
                }
            }
        }
        Ok(Audit { info, intact, bad, faults, slots, is_decoded: true, is_sound_alone })
    }

    fn audit_frame(&self, reader: &FrameReader, number: u32, frame: &FrameInfo, sealed: &mut [u8]) -> Found {
        let all = |error: Error| {
            let why = match error {
                Error::Corrupt { why, .. } => why,
                error => error.to_string(),
            };
            let blobs = frame.entries.iter().map(|e| e.id).collect();
            Found::Bad { blobs, why: format!("frame {number} is damaged: {why}") }
        };
        let body = match reader.open_in_place(self, sealed) {
            Ok(body) => body,
            Err(e) => return all(e),
        };
        match (frame.encoding, frame.entries.as_slice()) {
            (Encoding::Segment, [only]) => match self.decode_segment(&only.id, reader, body, 0) {
                Ok(decoded) => Found::Segment { id: only.id, present: decoded.present(), is_whole: decoded.is_whole() },
                // A base that is damaged counts where it lies, not here.
                Err(_) if reader.bases().iter().any(|base| self.read_base(base).is_err()) => Found::Unproven,
                Err(e) => all(e),
            },
            _ => match reader.decode_slice(body) {
                Ok(plain) => self.audit_blobs(frame, &plain),
                Err(e) => all(e),
            },
        }
    }

    fn audit_blobs(&self, frame: &FrameInfo, plain: &[u8]) -> Found {
        let mut rest = plain;
        let mut bad = Vec::new();
        for entry in &frame.entries {
            let Some((blob, after)) = rest.split_at_checked(entry.plain_bytes as usize) else {
                bad.push(entry.id);
                continue;
            };
            rest = after;
            if self.keys.blob_id(entry.kind, blob) != entry.id {
                bad.push(entry.id);
            }
        }
        match bad.first() {
            None => Found::Sound,
            Some(first) => {
                let why = format!("blob {first} is damaged: its bytes are not those that its id stands for");
                Found::Bad { blobs: bad, why }
            }
        }
    }

    /// Tells an error that concerns one object, which is handed back, from a store that doesn't answer at all.
    ///
    /// # Errors
    /// The same error, if going on makes no sense.
    pub fn only_this_object(&self, error: Error) -> Result<Error> {
        match error {
            Error::Storage { .. } | Error::Remote { .. } if self.backend.list(layout::KEYS).is_err() => Err(error),
            Error::Interrupted | Error::File { .. } => Err(error),
            error => Ok(error),
        }
    }
}
