//! Making a repository: for `init`, and for the first `create` with nothing configured.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot::crypto::KdfCost;
use snapshot::error::{Error, Result};
use snapshot::repo::{Repository, host, recovery_code, write_key_file};

use super::context::{Context, Session};
use super::location::Location;
use super::secrets::{self, Given, Secret};

/// A repository that was just made.
pub struct Made {
    /// It is open.
    pub session: Session,
    /// Its place, for people.
    pub at: String,
    /// Its key file, if it has one.
    pub key_file: Option<PathBuf>,
}

/// A secret for a new repository.
struct Fresh {
    secret: Secret,
    key_file: Option<PathBuf>,
    /// Whether the key file was written for this and goes again if nothing comes of it. The default key file stays:
    /// another process may have begun to use it.
    is_ours: bool,
}

/// Makes a repository at the place the options name. `reuse`: a key file that exists already is taken as it is.
///
/// # Errors
/// [`Error::Exists`], and when no secret can be had.
pub fn make(context: &Context, cost: KdfCost, reuse: bool) -> Result<Made> {
    let location = context.location()?;
    let backend = context.backend(&location)?;
    if Repository::exists(&*backend)? {
        return Err(Error::Exists { at: backend.describe(), what: "a repository" });
    }
    let Fresh { secret, key_file, is_ours } = fresh_secret(context, &location, reuse)?;
    let label = host();
    let repo = Repository::init(backend.clone(), &secret.unlock, cost, &label).inspect_err(|error| {
        // Not where the repository was made and only the copy of its config failed: that key opens it.
        let useless = matches!(error, Error::Exists { .. }) || matches!(Repository::exists(&*backend), Ok(false));
        if let (true, true, Some(path)) = (is_ours, useless, &key_file) {
            let _ = fs::remove_file(path);
        }
    })?;
    let made = Made { session: Session { repo: Arc::new(repo) }, at: backend.describe(), key_file };
    announce(context, &location, &made)?;
    Ok(made)
}

/// Opens the repository; makes the default one if it isn't there and nothing else was named.
///
/// # Errors
/// As [`Context::open`] and [`make`].
pub fn open_or_make(context: &Context) -> Result<Session> {
    match context.open() {
        Err(Error::NoRepository { .. }) if matches!(context.location()?, Location::Default { .. }) => {
            match make(context, KdfCost::default(), true) {
                // Another first run was faster. If it wasn't that, something else is in the way.
                Err(exists @ Error::Exists { .. }) => context.open().map_err(|e| match e {
                    Error::NoRepository { .. } => exists,
                    other => other,
                }),
                made => made.map(|made| made.session),
            }
        }
        opened => opened,
    }
}

fn fresh_secret(context: &Context, location: &Location, reuse: bool) -> Result<Fresh> {
    let keyed = |secret, path: &Path, is_ours| Fresh { secret, key_file: Some(path.to_path_buf()), is_ours };
    match (secrets::given(&context.global, &context.env), location) {
        (Some(Given::KeyFile(path)), _) if reuse && path.exists() => Ok(keyed(secrets::key_file(&path)?, &path, false)),
        (Some(Given::KeyFile(path)), _) => Ok(keyed(new_key_file(&path)?, &path, true)),
        (Some(given), _) => Ok(Fresh { secret: given.read()?, key_file: None, is_ours: false }),
        (None, Location::Named(_)) => Ok(Fresh { secret: secrets::ask_new()?, key_file: None, is_ours: false }),
        (None, Location::Default { key_file, .. }) => Ok(keyed(default_key(key_file)?, key_file, false)),
    }
}

/// Writes a new key file; leaves nothing half-written.
///
/// # Errors
/// As [`write_key_file`].
pub fn new_key_file(path: &Path) -> Result<Secret> {
    let unlock = write_key_file(path).inspect_err(|error| {
        if matches!(error, Error::File { action: "write", .. }) {
            let _ = fs::remove_file(path);
        }
    })?;
    Ok(Secret { unlock, name: format!("key file {}", path.display()) })
}

/// The default key file: the one that is there (a first run was cut short, or a home was restored), or a new one. It
/// appears whole, so that two first runs at the same time use the same.
fn default_key(path: &Path) -> Result<Secret> {
    match secrets::key_file(path) {
        Err(Error::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    let unfinished = path.with_file_name(format!(".default.key.{}", std::process::id()));
    // Left by a process of the same number that was killed.
    let _ = fs::remove_file(&unfinished);
    new_key_file(&unfinished)?;
    let placed = fs::hard_link(&unfinished, path);
    let _ = fs::remove_file(&unfinished);
    match placed {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::file("create", path, e)),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::file("write", path, e))?;
    secrets::key_file(path)
}

/// Says where the default repository and its key are, what it is no protection against, and how it opens without the
/// key file.
fn announce(context: &Context, location: &Location, made: &Made) -> Result<()> {
    let display = &context.display;
    if matches!(location, Location::Default { .. }) {
        display.notice(&format!("made a repository in {}", made.at));
        if let Some(key_file) = &made.key_file {
            display.notice(&format!("its key is in {}", key_file.display()));
        }
        display.notice(
            "a repository on the same disk is no backup of that disk: keep another elsewhere, named with --repo",
        );
    }
    if made.key_file.is_none() {
        return Ok(());
    }
    if matches!(location, Location::Default { .. }) && display.is_personal() {
        let (code, unlock) = recovery_code()?;
        made.session.repo.add_slot(&unlock, KdfCost::default(), "recovery code")?;
        display.notice(&format!("recovery code, for when the key file is lost (write it down): {code}"));
    } else {
        display.notice(
            "without the key file nobody can open it: run `snapshot key recovery-code` for a code to write down",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_default_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config/default.key");
        let first = default_key(&path).unwrap();
        let second = default_key(&path).unwrap();
        assert!(
            matches!((first.unlock, second.unlock), (snapshot::format::keyslot::Unlock::KeyFile(a), snapshot::format::keyslot::Unlock::KeyFile(b)) if a == b)
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::write(&path, "").unwrap();
        assert!(default_key(&path).is_err());
    }
}
