//! What a directory looks like, down to the last attribute: to compare a restored one with its source.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A name in the directory, as bytes in which whatever is not ASCII is escaped, and everything known of it.
pub type Picture = BTreeMap<String, String>;

/// Everything below a directory, and the directory itself as ".".
pub fn of(directory: &Path) -> Picture {
    let mut out = Picture::new();
    add(directory, ".", &mut out);
    out
}

/// As [`of`], without the directory itself.
pub fn within(directory: &Path) -> Picture {
    let mut out = of(directory);
    out.remove(".");
    out
}

/// Names and contents alone.
pub fn contents(directory: &Path) -> Picture {
    let strip = |line: String| line.split_once(" | ").map_or(line.clone(), |(content, _)| content.to_owned());
    within(directory).into_iter().map(|(name, line)| (name, strip(line))).collect()
}

fn add(path: &Path, name: &str, out: &mut Picture) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("link to {}", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii())
    } else if kind.is_dir() {
        "directory".into()
    } else if kind.is_fifo() {
        "fifo".into()
    } else {
        format!("{} bytes {}", meta.len(), blake3::hash(&fs::read(path).unwrap()).to_hex())
    };
    let attributes = format!(
        "{:o} {}:{} {}.{:09} {}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        xattrs(path)
    );
    out.insert(name.to_owned(), format!("{content} | {attributes}"));
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let below = entry.file_name().as_bytes().escape_ascii().to_string();
            let below = if name == "." { below } else { format!("{name}/{below}") };
            add(&entry.path(), &below, out);
        }
    }
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else { return String::new() };
    let mut out = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        out.push(format!("{}={}", name.escape_ascii(), value[..len].escape_ascii()));
    }
    out.sort();
    out.join(" ")
}

/// Fails and shows the differences alone unless the two are the same.
#[track_caller]
pub fn assert_same(found: &Picture, expected: &Picture) {
    let only = |a: &Picture, b: &Picture| -> Vec<String> {
        a.iter()
            .filter(|(name, line)| b.get(*name) != Some(line))
            .map(|(name, line)| format!("  {name}: {line}"))
            .collect()
    };
    let (extra, missing) = (only(found, expected), only(expected, found));
    assert!(extra.is_empty() && missing.is_empty(), "found:\n{}\nexpected:\n{}", extra.join("\n"), missing.join("\n"));
}
