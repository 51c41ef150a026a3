//! Directories as tar archives in the pax format, streamed: a header is written when a node's turn comes, then its
//! contents. What can't be read ends the archive where it is, without its end marker.
//!
//! The fixed part of a header is the `tar` crate's; what doesn't fit there goes into pax records: long names, large
//! numbers, fractions of seconds, extended attributes (`SCHILY.xattr.`, as GNU tar and bsdtar write them) and the
//! maps of sparse files (GNU's version 1.0).

use std::collections::HashMap;
use std::io::Write;

use tar::{Builder, EntryType, Header};

use super::contents::Output;
use super::{Listed, walk};
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::snapshot::Owner;
use crate::format::tree::{Node, NodeKind};
use crate::repo::{Repository, Selected, Start, split_path};
use crate::report::{Problem, Reporter, Severity};

const BLOCK_BYTES: usize = 512;
static ZEROS: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];
/// The largest numbers that fit in a header: 11 octal digits for sizes and times, 7 for users and groups.
const MAX_LONG: u64 = 0o777_7777_7777;
const MAX_SHORT: u32 = 0o777_7777;

/// Records of a pax header: keyword and value.
type Records = Vec<(String, Vec<u8>)>;

/// Writes what is at `path` in the selected place to `out` as a tar archive, a directory with all that is below it, and
/// returns the length of the archive in bytes. The caller has loaded the index. Names in the archive begin with `path`;
/// the selected place itself has none, as in a restore. Sockets are noted and left out.
///
/// # Errors
/// [`Error::Unknown`] if nothing is there, [`Error::Missing`], [`Error::Corrupt`], and [`Error::File`] if `out` fails.
/// The archive is then cut off, so that no reader takes it for a whole one.
pub fn archive(
    repo: &Repository,
    selected: &Selected,
    path: &[u8],
    out: &mut dyn Write,
    reporter: &Reporter,
) -> Result<u64> {
    let parts = split_path(path);
    let start = selected.find(repo, &parts)?;
    let snapshot = &selected.named.snapshot;
    let mut archive = Archive {
        repo,
        out: Output { out, written: 0, holes: false, reporter },
        users: names(&snapshot.users),
        groups: names(&snapshot.groups),
        links: HashMap::new(),
        data_end: 0,
        reporter,
    };
    let whole = archive.all(start, &parts, selected);
    if whole.is_err() {
        archive.spoil();
    }
    whole?;
    archive.out.write(&ZEROS)?;
    archive.out.out.flush().map_err(|e| Error::file("write", "the output", e))?;
    Ok(archive.out.written)
}

fn names(owners: &[Owner]) -> HashMap<u32, &str> {
    owners.iter().map(|owner| (owner.id, owner.name.as_str())).collect()
}

struct Archive<'a> {
    repo: &'a Repository,
    out: Output<'a>,
    users: HashMap<u32, &'a str>,
    groups: HashMap<u32, &'a str>,
    /// Where each file with several names came first.
    links: HashMap<u64, Vec<u8>>,
    /// Where the contents of the last member end, or will end, in the archive.
    data_end: u64,
    reporter: &'a Reporter,
}

impl Archive<'_> {
    fn all(&mut self, start: Start, parts: &[Vec<u8>], selected: &Selected) -> Result<()> {
        let mut path = parts.join(&b'/');
        match &start {
            Start::Directory(_, Some(node)) if !parts.is_empty() => self.member(&path, node)?,
            // A file that was selected itself: only its name is left.
            Start::Other(node) if parts.is_empty() && !selected.sub_path.is_empty() => path = node.name.to_vec(),
            _ => {}
        }
        walk(self.repo, start, path, true, &mut |Listed { path, node, .. }| self.member(&path, &node))
    }

    /// Cuts the archive off in such a way that every reader notices.
    fn spoil(&mut self) {
        if self.out.written < self.data_end {
            return;
        }
        // Between two members, an end would be found by looking for the end marker only, which not all readers do.
        let _ = self.pad().and_then(|()| self.out.write(&[b'?'; BLOCK_BYTES / 2]));
        let _ = self.out.out.flush();
    }

    fn pad(&mut self) -> Result<()> {
        let over = (self.out.written % BLOCK_BYTES as u64) as usize;
        if over == 0 { Ok(()) } else { self.out.write(&ZEROS[..BLOCK_BYTES - over]) }
    }

    fn member(&mut self, path: &[u8], node: &Node) -> Result<()> {
        self.reporter.check_interrupt()?;
        self.reporter.current(|| String::from_utf8_lossy(path).into_owned());
        if node.kind == NodeKind::Socket {
            self.reporter.problem(Problem {
                severity: Severity::Note,
                what: String::from_utf8_lossy(path).into_owned(),
                why: "a socket has no place in an archive; it was left out".into(),
                hint: None,
            });
            return Ok(());
        }
        if let Some(number) = node.hard_link.filter(|_| node.kind != NodeKind::Directory) {
            if let Some(first) = self.links.get(&number) {
                let first = first.clone();
                return self.head(path, node, EntryType::Link, 0, Some(&first), Records::new());
            }
            self.links.insert(number, path.to_vec());
        }
        let plain = |archive: &mut Self, kind| archive.head(path, node, kind, 0, None, Records::new());
        match node.kind {
            NodeKind::File | NodeKind::Database => self.file(path, node),
            NodeKind::Directory => plain(self, EntryType::Directory),
            NodeKind::Fifo => plain(self, EntryType::Fifo),
            NodeKind::CharDevice => plain(self, EntryType::Char),
            NodeKind::BlockDevice => plain(self, EntryType::Block),
            NodeKind::Symlink => {
                let target = node.target.as_deref().map(Vec::as_slice);
                self.head(path, node, EntryType::Symlink, 0, target, Records::new())
            }
            NodeKind::Socket => Ok(()),
        }
    }

    fn file(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let size = node.size.unwrap_or(0);
        let map = sparse_map(node);
        let (bytes, records) = match &map {
            None => (size, Records::new()),
            Some((map, data_bytes)) => {
                let records = [("major", b"1".to_vec()), ("minor", b"0".to_vec()), ("name", path.to_vec())];
                let real = ("GNU.sparse.realsize".into(), size.to_string().into_bytes());
                let records = records.into_iter().map(|(key, value)| (format!("GNU.sparse.{key}"), value));
                (map.len() as u64 + data_bytes, records.chain([real]).collect())
            }
        };
        self.head(path, node, EntryType::Regular, bytes, None, records)?;
        self.data_end = self.out.written + bytes;
        if let Some((map, _)) = &map {
            self.out.write(map)?;
        }
        self.out.contents(self.repo, node)?;
        self.reporter.advance(0, 1);
        if self.out.written != self.data_end {
            // Whatever follows would be read as something else.
            return Err(Error::corrupt(node.display_name(), "its contents don't add up to its size"));
        }
        self.pad()
    }

    /// Writes the headers of a member.
    fn head(
        &mut self,
        path: &[u8],
        node: &Node,
        kind: EntryType,
        bytes: u64,
        link: Option<&[u8]>,
        mut records: Records,
    ) -> Result<()> {
        let is_sparse = !records.is_empty();
        let mut path = path.to_vec();
        if kind == EntryType::Directory {
            path.push(b'/');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(node.mode);
        header.set_uid(node.uid.into());
        header.set_gid(node.gid.into());
        header.set_size(bytes);
        header.set_mtime(u64::try_from(node.mtime.secs).unwrap_or(0).min(MAX_LONG));
        let mut record = |key: &str, value: &[u8]| records.push((key.to_owned(), value.to_vec()));
        if bytes > MAX_LONG {
            record("size", bytes.to_string().as_bytes());
        }
        for (key, id) in [("uid", node.uid), ("gid", node.gid)] {
            if id > MAX_SHORT {
                record(key, id.to_string().as_bytes());
            }
        }
        if node.mtime.nanos > 0 || !(0..=MAX_LONG.cast_signed()).contains(&node.mtime.secs) {
            record("mtime", decimal(node.mtime).as_bytes());
        }
        if let Some((major, minor)) = node.device().filter(|_| matches!(kind, EntryType::Char | EntryType::Block)) {
            header.set_device_major(major).map_err(written)?;
            header.set_device_minor(minor).map_err(written)?;
        }
        if let Some(fields) = header.as_ustar_mut() {
            let user = self.users.get(&node.uid).unwrap_or(&"").as_bytes();
            let group = self.groups.get(&node.gid).unwrap_or(&"").as_bytes();
            // The path of a sparse file stands in its own record; readers that don't know of those see another.
            let shown = if is_sparse { [b"GNUSparseFile.0/", &node.name[..]].concat() } else { path };
            // The last byte of an owner's name must be zero.
            for (key, value, field, most) in [
                ("path", &shown[..], &mut fields.name[..], 100),
                ("linkpath", link.unwrap_or_default(), &mut fields.linkname[..], 100),
                ("uname", user, &mut fields.uname[..], 31),
                ("gname", group, &mut fields.gname[..], 31),
            ] {
                let fits = value.len().min(most);
                field[..fits].copy_from_slice(&value[..fits]);
                if fits < value.len() && !(is_sparse && key == "path") {
                    record(key, value);
                }
            }
        }
        if kind != EntryType::Link {
            for xattr in node.xattrs.iter().flatten() {
                record(&xattr_key(&xattr.name), &xattr.value);
            }
        }
        header.set_cksum();
        self.out.write(&pax(records)?)?;
        self.out.write(header.as_bytes())?;
        self.data_end = self.out.written;
        Ok(())
    }
}

/// A pax header with these records; nothing if there are none.
fn pax(mut records: Records) -> Result<Vec<u8>> {
    let is_name = |key: &str| matches!(key, "path" | "linkpath" | "GNU.sparse.name");
    if records.iter().any(|(key, value)| is_name(key) && std::str::from_utf8(value).is_err()) {
        records.insert(0, ("hdrcharset".into(), b"BINARY".to_vec()));
    }
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), &value[..]))).map_err(written)?;
    // Without the end marker, which the builder would add.
    Ok(std::mem::take(builder.get_mut()))
}

fn written(error: std::io::Error) -> Error {
    Error::file("write", "the output", error)
}

/// Seconds with a fraction, as a decimal number.
fn decimal(time: Time) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let (sign, nanos) = if nanos < 0 { ("-", -nanos) } else { ("", nanos) };
    let text = format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The keyword of an extended attribute. GNU tar escapes what would end the keyword, and the escape itself.
fn xattr_key(name: &[u8]) -> String {
    format!("SCHILY.xattr.{}", String::from_utf8_lossy(name).replace('%', "%25").replace('=', "%3D"))
}

/// For a file with holes: the map that stands before its data in the archive, and the length of the data.
fn sparse_map(node: &Node) -> Option<(Vec<u8>, u64)> {
    let (extents, size) = (node.extents.as_ref()?, node.size?);
    let mut stretches: Vec<_> = extents.as_chunks::<2>().0.iter().filter(|e| e[1] > 0).copied().collect();
    let data_bytes = stretches.iter().map(|[_, bytes]| bytes).sum::<u64>();
    if data_bytes >= size {
        return None;
    }
    if stretches.last().is_none_or(|[at, bytes]| at + bytes < size) {
        stretches.push([size, 0]);
    }
    let mut map = format!("{}\n", stretches.len()).into_bytes();
    for [at, bytes] in stretches {
        map.extend(format!("{at}\n{bytes}\n").bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    Some((map, data_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::Xattr;
    use crate::job::sample::{CHUNK_BYTES, Sample, noise};

    /// Path, kind, size in the archive and pax records of each member, and whether the archive has its end.
    fn members(bytes: &[u8]) -> Vec<(Vec<u8>, EntryType, u64, Records)> {
        let mut archive = tar::Archive::new(bytes);
        let mut out = vec![];
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let records = match entry.pax_extensions().unwrap() {
                Some(records) => {
                    records.map(|r| r.unwrap()).map(|r| (r.key().unwrap().into(), r.value_bytes().to_vec())).collect()
                }
                None => vec![],
            };
            out.push((entry.path_bytes().to_vec(), entry.header().entry_type(), entry.size(), records));
        }
        out
    }

    #[test]
    fn what_does_not_fit_a_header_goes_into_records() {
        let mut sample = Sample::new();
        let long = "n".repeat(200);
        let xattrs = Some(vec![Xattr { name: b"user.a=%".to_vec().into(), value: vec![0, 255].into() }]);
        let mtime = Time { secs: -2, nanos: 250_000_000 };
        let file = Node { xattrs, mtime, uid: 3_000_000, ..sample.file(&long, b"data") };
        let link = Node { hard_link: Some(4), ..sample.file("a", b"same") };
        let again = Node { hard_link: Some(4), ..sample.file("b", b"same") };
        let odd = Node { target: Some(vec![0xff; 150].into()), ..Node::bare(b"odd", NodeKind::Symlink) };
        let device = Node { rdev: Some(0x0801), ..Node::bare(b"sda1", NodeKind::BlockDevice) };
        let socket = Node::bare(b"socket", NodeKind::Socket);
        let app = sample.directory("app", vec![file, link, again, odd, device, socket]);
        let selected = sample.snapshot(vec![app]);
        let reporter = Reporter::silent();
        let mut out = vec![];
        let n = archive(&sample.repo, &selected, b"", &mut out, &reporter).unwrap();
        assert_eq!((n, reporter.problems().len()), (out.len() as u64, 1), "the socket is noted");
        let found = members(&out);
        let names: Vec<_> = found.iter().map(|m| String::from_utf8_lossy(&m.0).into_owned()).collect();
        let long_path = format!("app/{long}");
        assert_eq!(names, ["app/", "app/a", "app/b", &long_path, "app/odd", "app/sda1"]);
        assert_eq!((found[1].2, found[2].1, found[2].2), (4, EntryType::Link, 0));
        let record = |member: usize, key: &str| {
            found[member]
                .3
                .iter()
                .find(|(k, _)| k == key)
                .unwrap_or_else(|| panic!("{key}: {:?}", found[member]))
                .1
                .clone()
        };
        assert_eq!(record(3, "path"), long_path.as_bytes());
        assert_eq!(record(3, "SCHILY.xattr.user.a%3D%25"), [0, 255]);
        assert_eq!((record(3, "mtime"), record(3, "uid")), (b"-1.75".to_vec(), b"3000000".to_vec()));
        assert_eq!((record(4, "linkpath"), record(4, "hdrcharset")), (vec![0xff; 150], b"BINARY".to_vec()));
    }

    #[test]
    fn sizes_and_times_beyond_the_header() {
        let sample = Sample::new();
        let reporter = Reporter::silent();
        let mut out = vec![];
        let mut archive = Archive {
            repo: &sample.repo,
            out: Output { out: &mut out, written: 0, holes: false, reporter: &reporter },
            users: HashMap::from([(0, "a name that is longer than the header has room for")]),
            groups: HashMap::new(),
            links: HashMap::new(),
            data_end: 0,
            reporter: &reporter,
        };
        let mtime = Time { secs: 1 << 40, nanos: 0 };
        let node = Node { mtime, mode: 0o7777, ..Node::bare(b"large", NodeKind::File) };
        archive.head(b"large", &node, EntryType::Regular, 9 << 30, None, Records::new()).unwrap();
        let mut read = tar::Archive::new(&out[..]);
        let mut entry = read.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.size(), entry.header().mode().unwrap()), (9 << 30, 0o7777));
        let records: Vec<_> = entry.pax_extensions().unwrap().unwrap().map(|r| r.unwrap()).collect();
        let value = |key| records.iter().find(|r| r.key() == Ok(key)).and_then(|r| r.value().ok());
        assert_eq!((value("size"), value("mtime")), (Some("9663676416"), Some("1099511627776")));
        assert_eq!(value("uname"), Some("a name that is longer than the header has room for"));
    }

    #[test]
    fn the_map_of_a_sparse_file() {
        let sparse = |extents: Vec<u64>, size| {
            let node = Node { size: Some(size), extents: Some(extents), ..Node::bare(b"s", NodeKind::File) };
            sparse_map(&node).map(|(map, n)| (String::from_utf8(map).unwrap().trim_end_matches('\0').to_owned(), n))
        };
        assert_eq!(sparse(vec![0, 5], 5), None);
        assert_eq!(sparse(vec![], 9), Some(("1\n9\n0\n".into(), 0)));
        assert_eq!(sparse(vec![5, 5, 10, 0], 10), Some(("1\n5\n5\n".into(), 5)));
        assert_eq!(
            sparse(vec![0, 1, 1 << 40, 2], 1 << 41),
            Some(("3\n0\n1\n1099511627776\n2\n2199023255552\n0\n".into(), 3))
        );
    }

    #[test]
    fn a_damaged_archive_never_looks_whole() {
        for lose_tree in [false, true] {
            let mut sample = Sample::new();
            let data = noise(1, CHUNK_BYTES * 9);
            let file = sample.file("file", &data);
            sample.flush();
            let last = file.content.as_ref().unwrap().ids().unwrap().pop().unwrap();
            let inner = sample.directory("inner", vec![sample_leaf()]);
            sample.flush();
            let tree = inner.tree.unwrap();
            let app = sample.directory("app", vec![file, inner]);
            let selected = sample.snapshot(vec![app]);
            sample.damage(if lose_tree { &tree } else { &last }, 0);
            let mut out = vec![];
            let done = archive(&sample.repo, &selected, b"app", &mut out, &Reporter::silent());
            assert!(matches!(done, Err(Error::Corrupt { .. })));
            assert!(!out.ends_with(&ZEROS) && out.len() > BLOCK_BYTES);
            let mut read = tar::Archive::new(&out[..]);
            let whole = read.entries().unwrap().all(|entry| {
                entry
                    .and_then(|mut entry| std::io::copy(&mut entry, &mut std::io::sink()).map(|n| (n, entry.size())))
                    .is_ok_and(|(n, size)| n == size)
            });
            assert!(!whole, "lose_tree {lose_tree}");
        }
    }

    fn sample_leaf() -> Node {
        Node::bare(b"pipe", NodeKind::Fifo)
    }
}
