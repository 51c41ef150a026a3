//! Dumping: a database as an archive in `pg_dump`'s custom format, and what belongs to the whole server as SQL.

use std::ffi::OsString;
use std::io::Read;
use std::process::Stdio;

use super::{Child, Url};
use crate::error::Result;
use crate::report::Reporter;

/// Most bytes of a server's roles and tablespaces: more than a million roles.
const MAX_GLOBALS_BYTES: u64 = 256 << 20;
/// What an archive begins with.
const MAGIC: &[u8] = b"PGDMP";

/// Starts `pg_dump` of the database that a URL names. Its output is an archive, not compressed: that is what
/// deduplicates, and chunks are compressed anyway.
///
/// # Errors
/// If it can't be started.
pub fn dump(url: &Url) -> Result<Child> {
    let what = format!("pg_dump of {}", url.label());
    let uri = url.to_uri(url.database());
    let arguments = ["--format=custom", "--compress=0", "--no-password", "--dbname", &uri].map(OsString::from);
    Child::start("pg_dump", &what, url, &arguments, Stdio::null())
}

/// The roles, with their passwords if these may be read, and tablespaces of a server, as SQL.
///
/// # Errors
/// If the role in the URL may not read them, or anything else fails.
pub fn globals(url: &Url, reporter: &Reporter) -> Result<Vec<u8>> {
    let ask = |options: &[&str]| {
        let what = format!("pg_dumpall of the roles of {}", url.server());
        let uri = url.to_uri(url.database());
        let fixed = ["--globals-only", "--no-password", "--dbname", &uri];
        let arguments: Vec<OsString> = fixed.iter().chain(options).map(OsString::from).collect();
        let mut child = Child::start("pg_dumpall", &what, url, &arguments, Stdio::null())?;
        let mut out = Vec::new();
        let read = child.output(reporter).take(MAX_GLOBALS_BYTES).read_to_end(&mut out);
        reporter.check_interrupt()?;
        if read.is_err() {
            return Err(child.failed());
        }
        child.finish(reporter)?;
        Ok(out)
    };
    // Only superusers may read passwords.
    ask(&[]).or_else(|_| ask(&["--no-role-passwords"]))
}

/// What an archive says of itself at its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpHeader {
    /// Version of the server.
    pub server: String,
    /// Version of `pg_dump`.
    pub tool: String,
}

impl DumpHeader {
    /// Reads it from the first bytes of an archive; `None` if they are none. (PostgreSQL's `pg_backup_archiver.c`,
    /// `ReadHead`; versions since 10 of the archive.)
    pub fn parse(start: &[u8]) -> Option<Self> {
        let mut rest = start.strip_prefix(MAGIC)?;
        let version = (byte(&mut rest)?, byte(&mut rest)?);
        byte(&mut rest)?;
        let int_bytes = usize::from(byte(&mut rest)?);
        let (_offset_bytes, _format) = (byte(&mut rest)?, byte(&mut rest)?);
        if version < (1, 10) || !(4..=8).contains(&int_bytes) {
            return None;
        }
        if version >= (1, 15) {
            byte(&mut rest)?;
        } else {
            int(&mut rest, int_bytes)?;
        }
        for _time in 0..7 {
            int(&mut rest, int_bytes)?;
        }
        let _database = string(&mut rest, int_bytes)?;
        Some(Self { server: string(&mut rest, int_bytes)?, tool: string(&mut rest, int_bytes)? })
    }
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

/// A sign and the bytes of a number, the lowest first.
fn int(rest: &mut &[u8], bytes: usize) -> Option<i64> {
    let sign = byte(rest)?;
    let mut n = 0i64;
    for at in 0..bytes {
        n |= i64::from(byte(rest)?).checked_shl(8 * at as u32)?;
    }
    Some(if sign == 0 { n } else { -n })
}

fn string(rest: &mut &[u8], int_bytes: usize) -> Option<String> {
    let length = usize::try_from(int(rest, int_bytes)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_archives() {
        let int = |n: u32| [&[0][..], &n.to_le_bytes()].concat();
        let string = |s: &str| [int(s.len() as u32), s.as_bytes().to_vec()].concat();
        let archive = |minor: u8, compression: Vec<u8>| {
            let head = [&b"PGDMP\x01"[..], &[minor, 0, 4, 8, 1], &compression, &int(5).repeat(7)].concat();
            [head, string("app"), string("15.14 (Debian)"), string("16.1"), b"more".to_vec()].concat()
        };
        let wanted = DumpHeader { server: "15.14 (Debian)".into(), tool: "16.1".into() };
        for bytes in [archive(14, int(0)), archive(15, vec![0])] {
            assert_eq!(DumpHeader::parse(&bytes).as_ref(), Some(&wanted));
            assert!((0..bytes.len() - 4).all(|end| DumpHeader::parse(&bytes[..end]).is_none()));
        }
        assert_eq!(DumpHeader::parse(b"-- PostgreSQL database dump"), None);
    }
}
