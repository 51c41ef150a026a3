//! Databases and the files that their rows refer to: captured and read in an order that keeps them together, wherever they
//! lie in the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::roles::{Role, attachment, make_shelf};
use crate::world::{Dice, World};

/// Snapshots taken while the writer is at work; more if nothing has vanished by then.
const SNAPSHOTS: usize = 12;
const MAX_SNAPSHOTS: usize = 100;
/// What else lies there and changes, so that a snapshot takes its time.
const BALLAST_BYTES: usize = 8 << 20;

/// What a snapshot said of files that vanished: their names, and how many more there were.
#[derive(Debug, Default)]
pub struct Vanished {
    names: BTreeSet<String>,
    more: usize,
}

impl Vanished {
    /// Reads standard error.
    pub fn of(stderr: &str) -> Self {
        let mut out = Self::default();
        for line in stderr.lines().filter(|line| line.contains("vanished after the databases were captured")) {
            let what = line.trim_start_matches("warning: ").split(": ").next().unwrap();
            match what.strip_suffix(" more files") {
                Some(more) => out.more = more.parse().unwrap(),
                None => drop(out.names.insert(Path::new(what).file_name().unwrap().to_str().unwrap().to_owned())),
            }
        }
        out
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.names.len() + self.more
    }
}

/// Fails unless every row has its file, whole, or that file was said to have vanished. Returns the number of rows.
#[track_caller]
fn check_rows(database: &Path, files: &Path, vanished: &Vanished) -> usize {
    let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = db.prepare("SELECT id, file FROM shelf").unwrap();
    let rows: Vec<(i64, String)> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    let mut unnamed = 0;
    for (id, name) in &rows {
        match fs::read(files.join(name)) {
            Ok(bytes) => assert!(bytes == attachment(*id), "{name} is another file"),
            Err(_) => unnamed += usize::from(!vanished.names.contains(name)),
        }
    }
    assert!(unnamed <= vanished.more, "{unnamed} rows have no file, and nobody said so: {vanished:?}");
    rows.len()
}

fn rows_have_their_files(mode: &str, sources: &[&str], database: &str, files: &str) {
    let world = World::new();
    fs::create_dir_all(world.work(files)).unwrap();
    let path = world.work(database);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    make_shelf(&path, mode);
    let mut dice = Dice::new(11);
    let ballast = format!("{files}/attic.bin");
    world.write(&ballast, dice.bytes(BALLAST_BYTES));
    let writer = Role::Attach(world.work(files)).start(&path);
    let mut said = Vec::new();
    while said.len() < SNAPSHOTS || (said.iter().all(|v: &Vanished| v.count() == 0) && said.len() < MAX_SNAPSHOTS) {
        world.write(&ballast, dice.bytes(BALLAST_BYTES));
        let ran = world.run([&["create", "-q", "--source", "app"], sources].concat());
        // A file may be caught while it is written; then no row refers to it yet.
        let is_expected = |line: &str| line.contains("vanished after") || line.contains("it changed while it was read");
        let is_silent = ran.stderr.is_empty();
        assert!(ran.stderr.lines().all(is_expected), "{}", ran.stderr);
        said.push(Vanished::of(&ran.expect(if is_silent { 0 } else { 3 }).stderr));
    }
    writer.end();
    assert!(said.iter().any(|v| v.count() > 0), "the writer removes files all the time");
    let mut rows = Vec::new();
    for (i, names) in said.iter().rev().enumerate().take(SNAPSHOTS) {
        let out = world.restore(&format!("latest~{i}"), &format!("out{i}"));
        rows.push(check_rows(&out.join(database), &out.join(files), names));
    }
    assert!(rows.iter().all(|rows| *rows > 0), "{rows:?}");
}

#[test]
fn rows_have_their_files_when_the_database_sorts_last() {
    rows_have_their_files("WAL", &["app"], "app/zz/data.db", "app/aa");
    rows_have_their_files("DELETE", &["app"], "app/zz/data.db", "app/aa");
}

#[test]
fn rows_have_their_files_in_another_source() {
    rows_have_their_files("WAL", &["files", "z.db"], "z.db", "files");
}

fn make_database(path: PathBuf) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(5000));").unwrap();
}

fn types(world: &World) -> Vec<(String, String)> {
    let nodes = world.json(["ls", "latest"])["nodes"].clone();
    let text = |node: &serde_json::Value, field: &str| node[field].as_str().unwrap().to_owned();
    let all = nodes.as_array().unwrap().iter().map(|n| (text(n, "path"), text(n, "type")));
    all.filter(|(_, kind)| kind != "directory").collect()
}

fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(path, kind)| ((*path).to_owned(), (*kind).to_owned())).collect()
}

#[test]
fn every_name_of_a_database_is_one() {
    let world = World::new();
    for folder in ["a", "b", "c"] {
        fs::create_dir_all(world.work("app").join(folder)).unwrap();
    }
    make_database(world.work("app/b/one.db"));
    fs::hard_link(world.work("app/b/one.db"), world.work("app/a.db")).unwrap();
    fs::hard_link(world.work("app/b/one.db"), world.work("app/c/last.db")).unwrap();
    let expected = [("app/a.db", "database"), ("app/b/one.db", "database"), ("app/c/last.db", "database")];
    for round in 0..2 {
        world.ok(["create", "app"]);
        assert_eq!(types(&world), owned(&expected));
        let out = world.restore("latest", &format!("out{round}"));
        for (path, _) in expected {
            assert_eq!(fs::read(out.join(path)).unwrap(), fs::read(world.work(path)).unwrap());
        }
    }
}

#[test]
fn a_file_that_becomes_a_database_in_place_is_captured() {
    let world = World::new();
    world.write("app/empty.db", "");
    world.write("app/other.db", vec![b'x'; 8192]);
    world.ok(["create", "app"]);
    assert_eq!(types(&world), owned(&[("app/empty.db", "file"), ("app/other.db", "file")]));
    make_database(world.work("app/empty.db"));
    make_database(world.work("model.db"));
    // The inode stays.
    fs::write(world.work("app/other.db"), fs::read(world.work("model.db")).unwrap()).unwrap();
    world.ok(["create", "app"]);
    assert_eq!(types(&world), owned(&[("app/empty.db", "database"), ("app/other.db", "database")]));
}

#[test]
fn what_is_left_out_is_not_captured_either() {
    let world = World::new();
    for folder in ["app/keep", "app/cache", "app/no"] {
        fs::create_dir_all(world.work(folder)).unwrap();
        make_database(world.work(folder).join("x.db"));
    }
    world.write("app/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
    let args = ["create", "app", "--exclude", "no/", "--exclude-caches"];
    let wanted = fs::metadata(world.work("app/keep/x.db")).unwrap().len();
    let tag = fs::metadata(world.work("app/cache/CACHEDIR.TAG")).unwrap().len();
    let done = world.json(args);
    assert_eq!((&done["databases"], &done["bytes_read"]), (&1.into(), &(wanted + tag).into()));
    assert_eq!(types(&world), owned(&[("app/cache/CACHEDIR.TAG", "file"), ("app/keep/x.db", "database")]));
    // Nor is anything of it missed later.
    fs::remove_file(world.work("app/no/x.db")).unwrap();
    world.ok(args);
}

#[test]
fn a_link_to_a_directory_is_searched_for_databases_too() {
    let world = World::new();
    fs::create_dir_all(world.work("real")).unwrap();
    make_database(world.work("real/x.db"));
    std::os::unix::fs::symlink("real", world.work("link")).unwrap();
    for _ in 0..2 {
        world.ok(["create", "link", "real"]);
        assert_eq!(types(&world), owned(&[("link/x.db", "database"), ("real/x.db", "database")]));
    }
}
