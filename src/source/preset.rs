//! Known applications: how their directories are recognised, what of them need not be kept, and how their rows refer to
//! files.
//!
//! What stands here was read in the applications' own sources and documents, which are named beside it. What is left out
//! of a directory that was merely recognised must be what the application makes anew by itself; everything else takes the
//! user's word, that is `--preset NAME`. May depend on `error`; [`references`] and below it on SQLite.

pub mod pocketbase;
pub mod references;

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use references::Reader;

use super::sqlite::has_magic;

/// So many directories in a source are looked at, to see whether one of them is an application's.
const MAX_LOOKED_AT: usize = 100;
/// Characters that mean something in gitignore syntax.
const SPECIAL: &[char] = &['\\', '*', '?', '[', ']', '!', '#', ' '];

/// Something in an application's directory that may be left out.
#[derive(Debug)]
pub struct Omission {
    /// In gitignore syntax, from the application's directory on, with a leading slash.
    pub pattern: &'static str,
    /// What it is, for people.
    pub what: &'static str,
}

/// A known application.
#[derive(Debug)]
pub struct Preset {
    /// As in `--preset` and in snapshots.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Its database, from its directory on.
    pub database: &'static str,
    /// At least one of these lies there, too; none is needed if there are none.
    pub beside: &'static [&'static str],
    /// What it makes anew by itself.
    pub regenerable: &'static [Omission],
    /// What is left out when the user names the preset.
    pub on_request: &'static [Omission],
    /// Directories of the files that rows refer to.
    pub folders: &'static [&'static str],
    /// Whether a file in these directories is made from, or belongs to, another one, so that no row refers to it.
    pub is_byproduct: fn(&str) -> bool,
    /// Reads what rows refer to.
    pub reader: Reader,
}

/// The known applications.
pub static PRESETS: [Preset; 4] = [
    // core/base.go: LocalStorageDirName, LocalBackupsDirName, and LocalTempDirName, which is emptied at each start.
    // tools/filesystem: thumbnails are made when they are asked for, and are kept in thumbs_NAME/ beside the file; .attrs
    // files are gocloud.dev's. Before 0.23 the second database was logs.db.
    Preset {
        name: "pocketbase",
        title: "PocketBase",
        database: "data.db",
        beside: &["auxiliary.db", "logs.db"],
        regenerable: &[
            Omission { pattern: "/.pb_temp_to_delete/", what: "temporary files" },
            Omission { pattern: "/storage/*/*/thumbs_*/", what: "thumbnails" },
        ],
        on_request: &[Omission { pattern: "/backups/", what: "its own backups" }],
        folders: &["storage"],
        is_byproduct: pocketbase::is_byproduct,
        reader: pocketbase::read,
    },
    // The project's wiki, "Backing up your vault"; src/db/models/{attachment,send}.rs.
    Preset {
        name: "vaultwarden",
        title: "Vaultwarden",
        database: "db.sqlite3",
        beside: &["rsa_key.pem", "rsa_key.der"],
        regenerable: &[
            Omission { pattern: "/icon_cache/", what: "icons of web sites" },
            Omission { pattern: "/tmp/", what: "temporary files" },
        ],
        on_request: &[],
        folders: &["attachments", "sends"],
        is_byproduct: |_| false,
        reader: references::vaultwarden,
    },
    // docs: "Backup and Restore", which leaves sessions out, and the configuration's cheat sheet: APP_DATA_PATH;
    // models/repo/attachment.go. Search indexes are built anew at the start, archives when they are asked for.
    Preset {
        name: "gitea",
        title: "Gitea",
        database: "gitea.db",
        beside: &[],
        regenerable: &[
            Omission { pattern: "/indexers/", what: "search indexes" },
            Omission { pattern: "/repo-archive/", what: "archives of repositories" },
            Omission { pattern: "/tmp/", what: "temporary files" },
        ],
        on_request: &[Omission { pattern: "/sessions/", what: "sessions" }],
        folders: &["attachments"],
        is_byproduct: |_| false,
        reader: references::gitea,
    },
    // The documented Docker volumes; api/src/database/seeds/07-files.yaml. Transformed images are NAME__HASH.EXT.
    Preset {
        name: "directus",
        title: "Directus",
        database: "database/data.db",
        beside: &["uploads"],
        regenerable: &[],
        on_request: &[],
        folders: &["uploads"],
        is_byproduct: |path| path.contains("__"),
        reader: references::directus,
    },
];

/// The preset of this name.
pub fn named(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// The presets that a snapshot says it was taken with: names, separated by commas. Unknown ones are left out.
pub fn of_snapshot(text: Option<&str>) -> Vec<&'static Preset> {
    text.unwrap_or_default().split(',').filter_map(named).collect()
}

/// An application's directory in a source.
#[derive(Debug)]
pub struct Application {
    /// Which it is.
    pub preset: &'static Preset,
    /// Its directory, from the source on; empty for the source itself.
    pub below: PathBuf,
}

impl Application {
    /// What is left out, and where it lies; all that may be if the user has named the preset.
    pub fn omissions(&self, asked: bool) -> impl Iterator<Item = &'static Omission> {
        let more: &[Omission] = if asked { self.preset.on_request } else { &[] };
        self.preset.regenerable.iter().chain(more)
    }

    /// A pattern as one of the source.
    pub fn pattern(&self, omission: &Omission) -> String {
        if self.below.as_os_str().is_empty() {
            return omission.pattern.to_owned();
        }
        let below: String = self.below.to_string_lossy().chars().flat_map(escaped).collect();
        format!("/{below}{}", omission.pattern)
    }
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    SPECIAL.contains(&c).then_some('\\').into_iter().chain([c])
}

/// Whether a directory is that of an application, as far as names and the beginning of its database tell.
pub fn is_of(preset: &Preset, directory: &Path) -> bool {
    let mut start = [0; 16];
    let is_database = File::open(directory.join(preset.database))
        .and_then(|mut file| if file.metadata()?.is_file() { file.read_exact(&mut start) } else { Ok(()) })
        .is_ok_and(|()| has_magic(&start));
    is_database && (preset.beside.is_empty() || preset.beside.iter().any(|name| directory.join(name).exists()))
}

/// The applications whose directory a source is, or has in it.
pub fn recognise(source: &Path, among: &'static [Preset]) -> Vec<Application> {
    let of = |directory: &Path, below: PathBuf| {
        let preset = among.iter().find(|preset| is_of(preset, directory))?;
        Some(Application { preset, below })
    };
    if let Some(found) = of(source, PathBuf::new()) {
        return vec![found];
    }
    let entries = std::fs::read_dir(source).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.file_name()).collect();
    names.sort();
    // A name that is not UTF-8 can't be written as a pattern.
    names.retain(|name| std::str::from_utf8(name.as_bytes()).is_ok());
    names.truncate(MAX_LOOKED_AT);
    names.into_iter().filter_map(|name| of(&source.join(&name), PathBuf::from(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_taken_literally() {
        let preset = named("pocketbase").unwrap();
        let at = |below: &str| Application { preset, below: PathBuf::from(below) };
        let first = &preset.regenerable[0];
        assert_eq!(at("").pattern(first), "/.pb_temp_to_delete/");
        assert_eq!(at("my [data]").pattern(first), "/my\\ \\[data\\]/.pb_temp_to_delete/");
        assert_eq!(at("").omissions(false).count() + 1, at("").omissions(true).count());
    }

    #[test]
    fn names_are_unique_and_can_be_recorded() {
        for (n, preset) in PRESETS.iter().enumerate() {
            assert!(PRESETS[..n].iter().all(|other| other.name != preset.name));
            assert!(preset.name.bytes().all(|b| b.is_ascii_lowercase()) && preset.name != "none");
            assert!(preset.regenerable.iter().chain(preset.on_request).all(|o| o.pattern.starts_with('/')));
        }
        let names: Vec<_> = of_snapshot(Some("gitea,future,pocketbase")).iter().map(|p| p.name).collect();
        assert_eq!(names, ["gitea", "pocketbase"]);
        assert!(of_snapshot(None).is_empty());
    }
}
