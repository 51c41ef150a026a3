//! The house rules that a compiler doesn't check: sizes, which way imports point, and who may use which crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 75;

/// Which rooms of the library a room may use, besides itself. `ARCHITECTURE.md` has the reasons.
const ROOMS: [(&str, &[&str]); 12] = [
    ("id", &[]),
    ("error", &[]),
    ("report", &["error"]),
    ("clock", &["format"]),
    ("chunker", &GROUND),
    ("crypto", &GROUND),
    ("format", &["id", "error", "report", "clock", "chunker", "crypto"]),
    ("backend", &["id", "error", "report", "clock", "chunker", "crypto", "format"]),
    ("index", &["id", "error", "report", "clock", "chunker", "crypto", "format"]),
    ("repo", &["id", "error", "report", "clock", "chunker", "crypto", "format", "backend", "index"]),
    ("source", &["id", "error", "report", "clock", "chunker", "crypto", "format", "backend", "index", "repo"]),
    ("job", &["id", "error", "report", "clock", "chunker", "crypto", "format", "backend", "index", "repo", "source"]),
];
const GROUND: [&str; 4] = ["id", "error", "report", "clock"];

/// Jobs never use each other; this one is no job but rules that several share.
const SHARED_BY_JOBS: &str = "policy";

/// Where each crate may be used.
const CRATES: [(&str, &[&str]); 33] = [
    ("argon2", &["crypto.rs"]),
    ("backon", &["backend/remote/retry.rs"]),
    ("blake3", &["backend/", "chunker.rs", "crypto.rs", "format/", "index.rs", "repo/", "source/", "job/"]),
    ("bytes", &["backend/remote/"]),
    ("chacha20poly1305", &["crypto.rs"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/args.rs", "cli/completions.rs"]),
    ("crossbeam_channel", &["repo/", "job/create/pipeline.rs"]),
    ("ctrlc", &["cli/context.rs"]),
    ("futures", &["backend/remote/"]),
    ("getrandom", &["crypto.rs"]),
    ("http", &["backend/remote/"]),
    ("http_body", &["backend/remote/http.rs"]),
    ("ignore", &["source/exclude.rs", "job/restore/plan.rs", "job/find.rs"]),
    ("indicatif", &["cli/progress.rs"]),
    ("jiff", &["cli/", "job/policy.rs"]),
    ("minicbor", &["id.rs", "chunker.rs", "crypto.rs", "format/"]),
    ("nix", &["repo/machine.rs", "source/", "job/create/", "job/restore/"]),
    ("opendal", &["backend/local.rs", "backend/remote/"]),
    ("openssh_sftp_client", &["backend/remote/sftp/"]),
    ("rayon", &["format/index.rs", "index.rs", "repo/", "source/", "job/"]),
    ("reqwest", &["backend/remote/http.rs"]),
    ("rpassword", &["cli/secrets.rs"]),
    ("rusqlite", &["source/exclusive.rs", "source/sqlite/examine.rs", "source/preset/"]),
    ("rustls", &["backend/remote/http.rs"]),
    ("rustix", &["backend/copies.rs", "source/", "job/create/", "job/restore/"]),
    ("serde", &["cli/"]),
    ("serde_json", &["cli/", "source/preset/"]),
    ("tar", &["job/look/archive.rs"]),
    ("thiserror", &["error.rs"]),
    ("tokio", &["backend/local.rs", "backend/remote/"]),
    ("zeroize", &["crypto.rs"]),
    ("zstd", &["format/zstd.rs"]),
];

/// A source file: its path below `src/`, and its lines.
struct Source {
    path: String,
    lines: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let mut out = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
                out.push(Source { path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), lines });
            }
        }
    }
    assert!(out.len() > 50, "the sources are there");
    out
}

/// Files that are compiled for tests alone.
fn is_for_tests(path: &str) -> bool {
    let parts: Vec<_> = path.trim_end_matches(".rs").split('/').collect();
    parts.iter().any(|part| part.contains("test") || matches!(*part, "races" | "sample"))
}

impl Source {
    /// The lines that are compiled into the program, less comments.
    fn code(&self) -> impl Iterator<Item = &str> {
        let lines = &self.lines;
        let is_test =
            |at: usize| lines[at] == "#[cfg(test)]" && lines.get(at + 1).is_some_and(|next| next == "mod tests {");
        let end = (0..lines.len()).find(|at| is_test(*at)).unwrap_or(lines.len());
        lines[..end].iter().map(|line| line.split("//").next().unwrap_or_default())
    }

    /// The room it is in.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// What the code names just after `prefix`, at the beginning of a word.
    fn named_after<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = &'s str> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        self.code().flat_map(move |line| {
            line.match_indices(prefix).filter_map(move |(at, _)| {
                let starts = !line[..at].ends_with(|c| is_word(c) || c == ':');
                let rest = &line[at + prefix.len()..];
                starts.then(|| &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())])
            })
        })
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut found = Vec::new();
    for source in sources() {
        if source.lines.len() > MAX_FILE_LINES {
            found.push(format!("{} has {} lines", source.path, source.lines.len()));
        }
        for (at, line) in source.lines.iter().enumerate() {
            let word = line.trim_start();
            let indent = &line[..line.len() - word.len()];
            let is_function = word.starts_with("fn ") || (word.starts_with("pub") && word.contains(" fn "));
            if !is_function || word.ends_with(';') || word.ends_with('}') {
                continue;
            }
            let end = format!("{indent}}}");
            let lines = source.lines[at..].iter().take_while(|line| **line != end).count() + 1;
            if lines > MAX_FUNCTION_LINES {
                found.push(format!("{}:{} has {lines} lines", source.path, at + 1));
            }
        }
    }
    assert!(found.is_empty(), "too long:\n{}", found.join("\n"));
}

#[test]
fn imports_point_one_way() {
    let mut found = BTreeSet::new();
    for source in sources().into_iter().filter(|source| !is_for_tests(&source.path)) {
        let room = source.room();
        if matches!(room, "cli" | "main" | "lib") {
            continue;
        }
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("a new room: {room}")).1;
        for used in source.named_after("crate::").filter(|used| ROOMS.iter().any(|(name, _)| name == used)) {
            if used != room && !allowed.contains(&used) {
                found.insert(format!("{} uses {used}", source.path));
            }
        }
        // An import of several rooms at once would not be seen above.
        assert!(!source.code().any(|line| line.contains("crate::{")), "{}: one line for each room", source.path);
    }
    assert!(found.is_empty(), "imports against the direction:\n{}", Vec::from_iter(found).join("\n"));
}

#[test]
fn jobs_do_not_use_each_other() {
    let mut found = BTreeSet::new();
    for source in sources().into_iter().filter(|s| s.path.starts_with("job/") && !is_for_tests(&s.path)) {
        let own = source.path.split('/').nth(1).unwrap().trim_end_matches(".rs");
        let is_own_file = source.path.matches('/').count() == 1;
        let above: &[&str] = if is_own_file { &["super::"] } else { &["super::super::"] };
        for prefix in [&["crate::job::"], above].concat() {
            let others = source.named_after(prefix).filter(|used| *used != own && *used != SHARED_BY_JOBS);
            found.extend(others.map(|used| format!("{} uses {prefix}{used}", source.path)));
        }
    }
    assert!(found.is_empty(), "jobs that use each other:\n{}", Vec::from_iter(found).join("\n"));
}

#[test]
fn crates_stay_where_they_belong() {
    let manifest = fs::read_to_string(root().with_file_name("Cargo.toml")).unwrap();
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names: Vec<_> = dependencies
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim().replace('-', "_"))
        .collect();
    assert!(names.len() > 15);
    let mut found = BTreeSet::new();
    for name in &names {
        let Some((_, places)) = CRATES.iter().find(|(known, _)| known == name) else {
            found.insert(format!("a new dependency, {name}: say where it may be used"));
            continue;
        };
        let path = format!("{name}::");
        for source in sources().into_iter().filter(|source| !is_for_tests(&source.path)) {
            // A module of ours may have a crate's name.
            let ours = [format!("::{name};"), format!("::{name}::"), format!("{{{name}"), format!(", {name}")];
            let is_ours = source.code().any(|line| line.contains("use ") && ours.iter().any(|our| line.contains(our)));
            let is_used = source.named_after(&path).next().is_some()
                || source.named_after(&format!("use {name}")).next() == Some("");
            if is_used && !is_ours && !places.iter().any(|place| source.path.starts_with(place)) {
                found.insert(format!("{} uses {name}", source.path));
            }
        }
    }
    assert!(found.is_empty(), "{}", Vec::from_iter(found).join("\n"));
}
