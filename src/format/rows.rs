//! Deltas between texts of rows: which rows of an older text come again, and the rows that are new.
//!
//! ```text
//! u32 script bytes | u32 packed script bytes | u32 bytes of new rows
//! script, one zstd frame:   u32 n | n × LEB128 step | n × LEB128 rows copied | n × LEB128 new rows
//! new rows, one zstd frame, with the rows of the base that no step copies as prefix
//! ```
//!
//! A row is what ends with a line feed, or with the text. A table that is dumped in the order in which its rows lie
//! loses the rows that were updated in one place and gets them back in another: a compressor that looks for matches of
//! bytes pays some six bytes for each such seam, a script of rows one. The rows that go are mostly older versions of
//! those that come, so these are compressed against them.

use std::collections::HashMap;

use super::MAX_FRAME_BYTES;
use super::bytes::{Reader, put_varint};
use super::zstd::{compress_delta, decompress};

/// Rows that are looked at one by one, to find where the base goes on after some rows of it are gone.
const NEAR_ROWS: usize = 4;
const HEAD_BYTES: usize = 12;
/// A base is at most the bytes of two frames.
const MAX_BASE_BYTES: usize = 2 * MAX_FRAME_BYTES;

/// Copy some rows of the base, then take some of the new ones.
struct Step {
    /// Where the copy begins, counted from where the one before ended.
    skip: i64,
    copied: u32,
    new: u32,
}

/// A text taken apart: where each row ends.
struct Rows<'t> {
    text: &'t [u8],
    ends: Vec<u32>,
}

impl<'t> Rows<'t> {
    fn of(text: &'t [u8]) -> Self {
        let feeds = text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at as u32 + 1);
        let mut ends: Vec<u32> = feeds.collect();
        if ends.last().is_none_or(|end| (*end as usize) < text.len()) && !text.is_empty() {
            ends.push(text.len() as u32);
        }
        Self { text, ends }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, row: usize) -> usize {
        row.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize)
    }

    /// Rows `from` up to `to`; `None` if there are not so many.
    fn range(&self, from: usize, to: usize) -> Option<&'t [u8]> {
        if to > self.len() || from > to {
            return None;
        }
        self.text.get(self.start(from)..self.start(to))
    }

    fn get(&self, row: usize) -> Option<&'t [u8]> {
        self.range(row, row + 1)
    }
}

/// Encodes `plain` against an older text; `None` if more than seven eighths of it are new, or anything is too long.
pub fn encode(plain: &[u8], base: &[u8], level: i32) -> Option<Vec<u8>> {
    if plain.len() > MAX_FRAME_BYTES || base.len() > MAX_BASE_BYTES {
        return None;
    }
    let (new, old) = (Rows::of(plain), Rows::of(base));
    let steps = steps(&new, &old);
    let mut fresh = Vec::new();
    let mut at = 0;
    for step in &steps {
        let from = at + step.copied as usize;
        at = from + step.new as usize;
        fresh.extend_from_slice(new.range(from, at)?);
        if fresh.len() > plain.len() / 8 * 7 {
            return None;
        }
    }
    let script = put_script(&steps);
    let packed = compress_delta(&script, &[], level)?;
    let mut out = Vec::new();
    for number in [script.len(), packed.len(), fresh.len()] {
        out.extend_from_slice(&(number as u32).to_le_bytes());
    }
    out.extend_from_slice(&packed);
    out.extend_from_slice(&compress_delta(&fresh, &left_over(&old, &steps)?, level)?);
    Some(out)
}

/// Decodes what [`encode`] made of a text of `plain_bytes` bytes with the same base.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn decode(body: &[u8], base: &[u8], plain_bytes: usize) -> Result<Vec<u8>, String> {
    let bad = || "its rows don't fit together".to_owned();
    if plain_bytes > MAX_FRAME_BYTES || base.len() > MAX_BASE_BYTES {
        return Err("it is larger than allowed".into());
    }
    let mut reader = Reader(body);
    let mut number = || reader.u32().map(|n| n as usize).filter(|n| *n <= MAX_BASE_BYTES).ok_or_else(bad);
    let (script_bytes, packed_bytes, fresh_bytes) = (number()?, number()?, number()?);
    let (packed, fresh) = body[HEAD_BYTES..].split_at_checked(packed_bytes).ok_or_else(bad)?;
    let steps = take_script(&decompress(packed, script_bytes, Some(&[]))?).ok_or_else(bad)?;
    let old = Rows::of(base);
    let fresh = decompress(fresh, fresh_bytes, Some(&left_over(&old, &steps).ok_or_else(bad)?))?;
    let fresh = Rows::of(&fresh);
    let mut out = Vec::with_capacity(plain_bytes);
    let (mut at, mut taken) = (0i64, 0);
    for step in &steps {
        at += step.skip;
        let from = usize::try_from(at).map_err(|_| bad())?;
        let copied = old.range(from, from + step.copied as usize).ok_or_else(bad)?;
        let new = fresh.range(taken, taken + step.new as usize).ok_or_else(bad)?;
        if out.len() + copied.len() + new.len() > plain_bytes {
            return Err(bad());
        }
        out.extend_from_slice(copied);
        out.extend_from_slice(new);
        at += i64::from(step.copied);
        taken += step.new as usize;
    }
    if out.len() == plain_bytes && taken == fresh.len() { Ok(out) } else { Err(bad()) }
}

/// Follows the new text row by row: where it goes on as the base does, that is copied; else the row is looked for a
/// little further on, and then anywhere.
fn steps(new: &Rows<'_>, old: &Rows<'_>) -> Vec<Step> {
    let mut anywhere: HashMap<&[u8], usize> = HashMap::with_capacity(old.len());
    for row in (0..old.len()).rev() {
        old.get(row).into_iter().for_each(|text| {
            anywhere.insert(text, row);
        });
    }
    let mut steps = Vec::new();
    let mut step = Step { skip: 0, copied: 0, new: 0 };
    // Where the last copy ended, and where the base would go on.
    let mut at = 0;
    for row in 0..new.len() {
        let Some(text) = new.get(row) else { break };
        let found = if old.get(at) == Some(text) {
            Some(at)
        } else {
            let near = (at + 1..=at + NEAR_ROWS).find(|near| old.get(*near) == Some(text));
            near.or_else(|| anywhere.get(text).copied())
        };
        match found {
            Some(from) if from == at && step.new == 0 => step.copied += 1,
            Some(from) => {
                let skip = from as i64 - at as i64;
                steps.push(std::mem::replace(&mut step, Step { skip, copied: 1, new: 0 }));
                at = from;
            }
            None => {
                step.new += 1;
                continue;
            }
        }
        at += 1;
    }
    steps.push(step);
    steps
}

/// The rows of the base that no step copies, in order.
fn left_over(old: &Rows<'_>, steps: &[Step]) -> Option<Vec<u8>> {
    let mut copied = vec![false; old.len()];
    let mut at = 0i64;
    for step in steps {
        at = at.checked_add(step.skip)?;
        let from = usize::try_from(at).ok()?;
        copied.get_mut(from..from.checked_add(step.copied as usize)?)?.fill(true);
        at += i64::from(step.copied);
    }
    let left = (0..old.len()).zip(copied).filter(|(_, copied)| !copied);
    Some(left.filter_map(|(row, _)| old.get(row)).collect::<Vec<_>>().concat())
}

fn put_script(steps: &[Step]) -> Vec<u8> {
    let mut out = Vec::from((steps.len() as u32).to_le_bytes());
    // Zigzag: small numbers of either sign are short. Rows are counted in 32 bits, so the differences fit.
    steps.iter().for_each(|s| put_varint(&mut out, ((s.skip << 1) ^ (s.skip >> 63)) as u32));
    steps.iter().for_each(|s| put_varint(&mut out, s.copied));
    steps.iter().for_each(|s| put_varint(&mut out, s.new));
    out
}

fn take_script(script: &[u8]) -> Option<Vec<Step>> {
    let mut reader = Reader(script);
    let n = reader.u32()? as usize;
    // Each has three numbers of a byte or more.
    if n > script.len() / 3 {
        return None;
    }
    let mut column = || (0..n).map(|_| reader.varint()).collect::<Option<Vec<u32>>>();
    let (skips, copied, new) = (column()?, column()?, column()?);
    let skip = |n: u32| i64::from(n >> 1) ^ -i64::from(n & 1);
    let steps = skips.into_iter().zip(copied).zip(new);
    let steps = steps.map(|((s, copied), new)| Step { skip: skip(s), copied, new }).collect();
    reader.0.is_empty().then_some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: impl Iterator<Item = u32>) -> Vec<u8> {
        rows.flat_map(|n| format!("{n}\t{}\tx{}\n", n.wrapping_mul(2_654_435_761), n % 7).into_bytes()).collect()
    }

    #[test]
    fn rows_that_moved_and_changed() {
        let old = table(0..10_000);
        let moved = table((0..10_000).filter(|n| n % 100 != 5).chain((5..10_000).step_by(100).map(|n| n + 1_000_000)));
        let delta = encode(&moved, &old, 3).unwrap();
        assert!(delta.len() < 2500, "{}", delta.len());
        assert_eq!(decode(&delta, &old, moved.len()).unwrap(), moved);
        assert!(decode(&delta, &old, moved.len() - 1).is_err() && decode(&delta, &old, moved.len() + 1).is_err());
        assert!(decode(&delta, &old[1..], moved.len()).map_or(true, |other| other != moved));
        // Rows that come twice, in another order, without an end, empty ones.
        for new in [table((0..5000).chain(0..5000)), table((0..9000).rev()), [&b"\n\n"[..], &old, b"end"].concat()] {
            assert_eq!(decode(&encode(&new, &old, 3).unwrap(), &old, new.len()).unwrap(), new);
        }
        assert_eq!(decode(&encode(b"", b"", 3).unwrap(), b"", 0).unwrap(), b"");
        assert!(encode(&table(20_000..30_000), &old, 3).is_none(), "all of it is new");
    }

    #[test]
    fn nonsense_is_refused() {
        let old = table(0..300);
        let new = table((0..300).filter(|n| n % 9 > 0).chain(900..910));
        let delta = encode(&new, &old, 3).unwrap();
        for at in 0..delta.len() {
            for bit in 0..8 {
                let mut bad = delta.clone();
                bad[at] ^= 1 << bit;
                let _ = decode(&bad, &old, new.len());
            }
            assert!(decode(&delta[..at], &old, new.len()).is_err());
        }
        let pack = |script: &[u8], fresh: &[u8], prefix: &[u8]| {
            let packed = compress_delta(script, &[], 3).unwrap();
            let head = [script.len(), packed.len(), fresh.len()].map(|n| (n as u32).to_le_bytes()).concat();
            [head, packed, compress_delta(fresh, prefix, 3).unwrap()].concat()
        };
        assert_eq!(decode(&pack(&[1, 0, 0, 0, 0, 2, 1], b"c\n", b""), b"a\nb\n", 6).unwrap(), b"a\nb\nc\n");
        for (script, why) in [
            (&[1, 0, 0, 0, 1, 2, 1][..], "a copy before the first row"),
            (&[1, 0, 0, 0, 2, 2, 1], "one beyond the last"),
            (&[1, 0, 0, 0, 0, 2, 2], "more new rows than there are"),
            (&[1, 0, 0, 0, 0, 2, 0], "fewer"),
            (&[2, 0, 0, 0, 0, 2, 1], "fewer steps than stated"),
            (&[1, 0, 0, 0, 0, 2, 1, 0], "bytes after the script"),
            (&[255, 255, 255, 255], "too many steps"),
        ] {
            assert!(decode(&pack(script, b"c\n", b""), b"a\nb\n", 6).is_err(), "{why}");
        }
    }
}
