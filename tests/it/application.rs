//! A real application that nobody wrote for this: Trac, with its wiki and tickets in SQLite and its attachments in files,
//! used through its own web interface while snapshots are taken, and started from what they restore.
//!
//! What plays the author, the browser and the judge is `tests/application/application.py`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::world::{Dice, Ran, World, run};

/// Snapshots taken while the author is at work; more if none of them took long enough for him to get something done.
const SNAPSHOTS: usize = 4;
const MAX_SNAPSHOTS: usize = 20;
/// What else has to be stored each time, before the database comes to its turn.
const BALLAST_BYTES: usize = 16 << 20;
/// Things that the author gets done between two of them.
const THINGS_BETWEEN: usize = 8;
/// The step with which the author goes on after a restore; no name is used twice.
const SECOND_RUN: &str = "10000";
const PATIENCE: Duration = Duration::from_secs(120);

/// A part of the script, at work in another process.
struct Part {
    child: Child,
    said: BufReader<ChildStdout>,
    /// Where its standard error goes.
    log: PathBuf,
}

/// What stood in the journal around a snapshot.
struct Moment {
    acknowledged: usize,
    sent: usize,
}

fn script(world: &World, args: &[&str]) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/application/application.py");
    let mut command = world.command_of("python3");
    command.arg("-B").arg(path).args(args);
    command
}

impl Part {
    /// Starts a part and waits until it is ready; returns what it says then.
    fn start(world: &World, name: &str, args: &[&str]) -> (Self, String) {
        let log = world.at(format!("{name}.log"));
        let mut command = script(world, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut part = Self { child, said, log };
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            assert!(part.said.read_line(&mut line).unwrap() > 0, "{args:?} has ended: {}", part.complaints());
        }
        (part, line["ready".len()..].trim().to_owned())
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it in order; fails if it met an error. Returns its standard error.
    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.complaints());
        self.complaints()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Ended already, or the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(world: &World, env: &str) -> (Part, String) {
    Part::start(world, "server", &["serve", world.work(env).to_str().unwrap()])
}

/// Stops the application; fails if it ever met an error.
fn stop(server: Part) {
    let said = server.end();
    for unwanted in ["locked", "malformed", "ERROR", "Traceback"] {
        assert!(!said.contains(unwanted), "the application says: {said}");
    }
}

fn things_done(journal: &Path) -> usize {
    fs::read_to_string(journal).unwrap_or_default().matches('\n').count()
}

fn wait_for_things(journal: &Path, count: usize, author: &mut Part) {
    let begun = Instant::now();
    while things_done(journal) < count {
        let is_at_work = begun.elapsed() < PATIENCE && author.child.try_wait().unwrap().is_none();
        assert!(is_at_work, "the author gets nothing done: {}", author.complaints());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fails unless a snapshot of everything was made. An attachment may have been caught in the middle of its upload.
fn expect_snapshot(created: Ran) {
    let is_upload = |line: &str| line.contains("/files/attachments/") && line.contains("it changed while it was read");
    if created.status != 3 || !created.stderr.lines().all(is_upload) {
        let created = created.expect(0).json();
        assert_eq!((&created["databases"], &created["unverified"]), (&1.into(), &0.into()));
    }
}

/// Starts the application from a restored directory and fails unless it serves the state of that moment.
fn expect_state(world: &World, env: &str, database: &str, journal: &Path, moment: &Moment) {
    let path = world.work(env).join(database);
    let found: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(found, ["trac.db"], "no sidecars");
    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{env}");
    drop(db);
    let (server, url) = serve(world, env);
    let (env, journal) = (world.work(env), journal.to_str().unwrap());
    let (acknowledged, sent) = (moment.acknowledged.to_string(), moment.sent.to_string());
    let args = ["verify", &url, env.to_str().unwrap(), database, journal, &acknowledged, &sent];
    run(&mut script(world, &args)).expect(0);
    stop(server);
}

/// `database` is where it lies in the environment; attachments are in `files/`.
fn application(mode: &str, database: &str) {
    let world = World::new();
    let has_trac = run(world.command_of("python3").args(["-c", "import trac.web.standalone"])).status == 0;
    assert!(has_trac, "an application is needed: python3 -m pip install Trac 'setuptools<81'");
    run(&mut script(&world, &["make", world.work("app").to_str().unwrap(), database, mode])).expect(0);
    let journal = world.at("journal");
    let (server, url) = serve(&world, "app");
    let (mut author, _) = Part::start(&world, "author", &["use", &url, journal.to_str().unwrap(), "0"]);
    let mut moments: Vec<Moment> = Vec::new();
    let mut dice = Dice::new(7);
    while moments.len() < SNAPSHOTS || moments.iter().all(|m| m.sent == m.acknowledged + 1) {
        assert!(moments.len() < MAX_SNAPSHOTS, "nothing is ever done while a snapshot is taken");
        world.write("app/attic.bin", dice.bytes(BALLAST_BYTES));
        wait_for_things(&journal, (moments.len() + 1) * THINGS_BETWEEN, &mut author);
        let acknowledged = things_done(&journal);
        expect_snapshot(world.run(["create", "app", "--json", "-q"]));
        moments.push(Moment { acknowledged, sent: things_done(&journal) + 1 });
    }
    let last = moments.last().unwrap();
    wait_for_things(&journal, last.sent + THINGS_BETWEEN, &mut author);
    author.end();
    stop(server);
    world.ok(["check", "--read-data", "--databases"]);

    for (i, moment) in moments.iter().rev().enumerate() {
        let env = format!("out{i}");
        world.ok(["restore", &format!("latest~{i}:app"), "--target", &env, "-q"]);
        expect_state(&world, &env, database, &journal, moment);
    }

    // Back to an earlier state, over the directory that has gone on, and on from there.
    world.ok(["restore", "latest~1:app", "--target", "app", "--overwrite", "always", "-q"]);
    expect_state(&world, "app", database, &journal, &moments[moments.len() - 2]);
    let journal = world.at("second journal");
    let (server, url) = serve(&world, "app");
    let (mut author, _) = Part::start(&world, "author", &["use", &url, journal.to_str().unwrap(), SECOND_RUN]);
    wait_for_things(&journal, THINGS_BETWEEN, &mut author);
    author.end();
    stop(server);
}

#[test]
fn a_wiki_whose_database_is_in_wal_mode() {
    application("WAL", "db/trac.db");
}

#[test]
fn a_wiki_whose_database_is_in_rollback_mode() {
    application("DELETE", "db/trac.db");
}

#[test]
fn a_wiki_whose_database_sorts_after_its_attachments() {
    application("WAL", "zz/trac.db");
}
