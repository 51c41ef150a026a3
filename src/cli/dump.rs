//! `snapshot dump`

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use snapshot::crypto::random;
use snapshot::error::{Error, Result};
use snapshot::id::hex;
use snapshot::job::look;
use snapshot::repo::{Repository, Selected, Start, split_path};

use super::args::Dump;
use super::context::Context;
use super::output::{Out, document, put_path};

/// Writes a file, a database or an archive to standard output or into a file.
pub fn run(context: &Context, args: Dump, out: &mut Out) -> Result<()> {
    let session = context.open_indexed()?;
    let selected = session.repo.select(&args.snapshot, &args.filters.into(), &context.reporter)?;
    let path = args.path.unwrap_or_default().into_encoded_bytes();
    let start = selected.find(&session.repo, &split_path(&path))?;
    let what = What { repo: &session.repo, selected: &selected, path: &path };
    let archive = args.archive.is_some() || matches!(start, Start::Directory(..));
    let Some(file) = args.output else {
        if archive && out.is_terminal() {
            return Err(Error::refused("an archive is nothing for a terminal", "redirect it, or use --output FILE"));
        }
        return what.write(archive, out, context).map(|_| ());
    };
    let bytes = into_file(&file, |to| what.write(archive, to, context))?;
    if !context.global.json {
        return Ok(());
    }
    let mut object = document(json!({
        "snapshot_id": selected.named.id.to_string(),
        "archive": archive.then_some("tar"),
        "bytes": bytes,
    }));
    put_path(&mut object, "path", &path);
    put_path(&mut object, "output", file.as_os_str().as_bytes());
    out.json(&object.into())
}

struct What<'a> {
    repo: &'a Repository,
    selected: &'a Selected,
    path: &'a [u8],
}

impl What<'_> {
    fn write(&self, archive: bool, out: &mut dyn Write, context: &Context) -> Result<u64> {
        let dump = if archive { look::archive } else { look::dump };
        dump(self.repo, self.selected, self.path, out, &context.reporter)
    }
}

/// Writes a file beside the one that is wanted, which it becomes when all is there. What is no regular file (a device,
/// a pipe) is written to as it is.
fn into_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<u64>) -> Result<u64> {
    let failed = |action| move |e: io::Error| Error::file(action, path, e);
    // A link that leads to a file stays, and the file is replaced.
    let place = match fs::canonicalize(path) {
        Ok(place) if place.is_dir() => {
            return Err(Error::refused(format!("{} is a directory", path.display()), "name a file to write"));
        }
        Ok(place) if !place.is_file() => {
            let file = OpenOptions::new().write(true).open(&place).map_err(failed("write"))?;
            return write(&mut BufWriter::new(file));
        }
        Ok(place) => place,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(e) => return Err(failed("write")(e)),
    };
    let beside = beside(&place)?;
    let file = OpenOptions::new().write(true).create_new(true).open(&beside).map_err(failed("create"))?;
    let finish = |file: &File| {
        file.sync_all()?;
        if let Ok(old) = fs::metadata(&place) {
            file.set_permissions(old.permissions())?;
        }
        fs::rename(&beside, &place)?;
        let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    let mut buffered = BufWriter::with_capacity(1 << 20, &file);
    let written = write(&mut buffered).and_then(|bytes| {
        buffered.flush().and_then(|()| finish(&file)).map_err(failed("write"))?;
        Ok(bytes)
    });
    if written.is_err() {
        // The first error is what matters; what can't be removed is a file that says what it is.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn beside(path: &Path) -> Result<PathBuf> {
    let no_name = || Error::refused(format!("{} is no name for a file", path.display()), "name a file to write");
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(no_name)?);
    name.push(format!(".snapshot-dump-{}", hex(&random::<8>()?)));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let failing = into_file(&path, |to| {
            to.write_all(b"half").unwrap();
            Err(Error::Interrupted)
        });
        assert!(failing.is_err() && fs::read_dir(folder.path()).unwrap().next().is_none());
        for content in [&b"first"[..], b"2"] {
            let done = into_file(&path, |to| {
                to.write_all(content).unwrap();
                Ok(content.len() as u64)
            });
            assert_eq!((done.unwrap(), fs::read(&path).unwrap()), (content.len() as u64, content.to_vec()));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(into_file(folder.path(), |_| Ok(0)).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("out", &link).unwrap();
        into_file(&link, |to| to.write_all(b"by link").map(|()| 7).map_err(|e| Error::file("write", "it", e))).unwrap();
        assert!(link.is_symlink() && fs::read(&path).unwrap() == b"by link");
        assert_eq!(into_file(Path::new("/dev/null"), |_| Ok(3)).unwrap(), 3);
    }
}
