//! Every way in which SQLite is run, and in which its files may lie there.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::roles::{JOURNAL, LOCKING, PACE, Player, Role, check_bank, make_bank, make_bank_with};
use crate::world::{self, PROGRAM, Ran, World, in_private_mounts, is_root, mount_tmpfs, run};

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn world_with(mode: &str, page_bytes: u32) -> (World, PathBuf) {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    make_bank(&path, mode, page_bytes);
    (world, path)
}

/// Fails unless a run has captured so many databases, and nothing was left as a plain file.
#[track_caller]
fn assert_captured(ran: Ran, databases: u64) {
    let done = ran.expect(0).json();
    assert_eq!((&done["databases"], &done["unverified"]), (&databases.into(), &0.into()));
}

#[track_caller]
fn capture(world: &World) {
    assert_captured(world.run(["create", "app", "--json", "-q"]), 1);
}

/// What SQLite makes of a database and what lies beside it, in a copy.
fn as_sqlite_opens_it(world: &World, path: &Path) -> Vec<u8> {
    let copy = world.at("tmp/copy.db");
    for suffix in ["", "-wal", "-journal"] {
        let _ = fs::remove_file(beside(&copy, suffix));
        if beside(path, suffix).exists() {
            fs::copy(beside(path, suffix), beside(&copy, suffix)).unwrap();
        }
    }
    let db = Connection::open(&copy).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    db.query_row("SELECT count(*) FROM entry", [], |_| Ok(())).unwrap();
    drop(db);
    fs::read(&copy).unwrap()
}

/// Names and contents.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    out.sort();
    out
}

#[test]
fn writers_with_every_journal_mode_page_size_and_auto_vacuum() {
    let ways: [(&str, u32, &str); 8] = [
        ("DELETE", 512, "NONE"),
        ("TRUNCATE", 4096, "FULL"),
        ("PERSIST", 65536, "INCREMENTAL"),
        ("MEMORY", 1024, "NONE"),
        ("WAL", 512, "FULL"),
        ("WAL", 2048, "INCREMENTAL"),
        ("WAL", 16384, "FULL"),
        ("WAL", 65536, "NONE"),
    ];
    // All of them at once, in one snapshot.
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let start = |(i, (mode, page_bytes, auto_vacuum)): (usize, &(&str, u32, &str))| {
        let path = world.work(format!("app/{i}.db"));
        let is_wal = *mode == "WAL";
        make_bank_with(&path, if is_wal { mode } else { "DELETE" }, *page_bytes, auto_vacuum);
        let variables = [(PACE, "100"), (JOURNAL, *mode)];
        Role::Transfer.start_with(&path, if is_wal { &variables[..1] } else { &variables })
    };
    let players: Vec<Player> = ways.iter().enumerate().map(start).collect();
    for _ in 0..3 {
        assert_captured(world.run(["create", "app", "--json", "-q"]), ways.len() as u64);
    }
    players.into_iter().for_each(Player::end);
    for i in 0..3 {
        let out = world.restore(&format!("latest~{i}"), &format!("out{i}"));
        assert_eq!(fs::read_dir(out.join("app")).unwrap().count(), ways.len(), "no sidecars");
        for (n, (mode, page_bytes, auto_vacuum)) in ways.iter().enumerate() {
            let path = out.join(format!("app/{n}.db"));
            check_bank(&path);
            let db = Connection::open(&path).unwrap();
            let setting = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0)).unwrap();
            let vacuum = ["NONE", "FULL", "INCREMENTAL"][setting("auto_vacuum") as usize];
            assert_eq!((setting("page_size"), vacuum), (*page_bytes, *auto_vacuum), "{mode}");
        }
    }
}

#[test]
fn an_interrupted_transaction_is_rolled_back_in_what_is_stored() {
    for (mode, page_bytes) in [("DELETE", 4096), ("TRUNCATE", 512), ("PERSIST", 65536)] {
        let (world, path) = world_with("DELETE", page_bytes);
        Role::Spill.start_with(&path, &[(JOURNAL, mode)]).kill();
        let before = files(&world.work("app"));
        assert!(before[1].1.len() > 512 && before[1].0 == "data.db-journal", "a journal is left");
        let expected = as_sqlite_opens_it(&world, &path);
        assert!(expected != before[0].1, "and it matters");
        capture(&world);
        assert!(files(&world.work("app")) == before, "the source is as it was");
        let out = world.restore("latest", "out").join("app");
        assert!(files(&out) == [("data.db".to_owned(), expected)], "{mode}, pages of {page_bytes}");
        assert_eq!(check_bank(&out.join("data.db")), 2000);
        world.ok(["check", "--read-data", "--databases"]);
        // The application comes back, rolls back itself, and goes on.
        Connection::open(&path).unwrap().execute("DELETE FROM entry WHERE id = 1", []).unwrap();
        capture(&world);
        assert_eq!(check_bank(&world.restore("latest", "after").join("app/data.db")), 1999);
    }
}

/// States in which a database may have been left, or be in use. Returns who uses it, and how many entries it has.
fn states(path: &Path) -> Vec<(&'static str, fn(&Path) -> Option<Player>, i64)> {
    assert!(path.exists());
    fn killed(path: &Path) -> Option<Player> {
        Role::CommitToLog.start(path).kill();
        None
    }
    fn without_index(path: &Path) -> Option<Player> {
        killed(path);
        fs::remove_file(beside(path, "-shm")).unwrap();
        None
    }
    fn used(path: &Path) -> Option<Player> {
        Some(Role::CommitToLog.start(path))
    }
    fn interrupted(path: &Path) -> Option<Player> {
        Connection::open(path).unwrap().pragma_update(None, "journal_mode", "DELETE").unwrap();
        Role::Spill.start(path).kill();
        None
    }
    vec![
        ("closed", |_| None, 2000),
        ("killed, with a log and its index", killed, 1624),
        ("killed, the index is lost", without_index, 1624),
        ("in use", used, 1624),
        ("interrupted in rollback-journal mode", interrupted, 2000),
    ]
}

#[test]
fn who_may_only_read_captures_everything() {
    for (what, arrange, entries) in states(Path::new("/")) {
        let (world, path) = world_with("WAL", 4096);
        let player = arrange(&path);
        let before = files(&world.work("app"));
        let app = world.work("app");
        let mut command = if is_root() {
            // The user nobody, who owns all that the program writes to, and may read the rest.
            for folder in ["", "home", "work", "tmp", "repo"] {
                own(&world.at(folder), folder == "repo");
            }
            fs::set_permissions(world.at(""), Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(world.at("key"), Permissions::from_mode(0o644)).unwrap();
            let _ = fs::remove_dir_all(world.at("cache"));
            let program = world.at("program");
            fs::copy(PROGRAM, &program).unwrap();
            let mut command = world.command_of("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
            command
        } else {
            world.command_of(PROGRAM)
        };
        for file in fs::read_dir(&app).unwrap() {
            fs::set_permissions(file.unwrap().path(), Permissions::from_mode(0o444)).unwrap();
        }
        fs::set_permissions(&app, Permissions::from_mode(0o555)).unwrap();
        assert_captured(run(command.args(["create", "app", "--json", "-q"])), 1);
        fs::set_permissions(&app, Permissions::from_mode(0o755)).unwrap();
        assert!(files(&app) == before, "{what}");
        if let Some(player) = player {
            player.end();
        }
        let restored = world.restore("latest", "out").join("app/data.db");
        fs::set_permissions(&restored, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(check_bank(&restored), entries, "{what}");
    }
}

/// Gives a directory to the user nobody.
fn own(path: &Path, with_contents: bool) {
    chown(path, Some(65534), Some(65534)).unwrap();
    if with_contents && path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path(), true));
    }
}

#[test]
fn a_file_system_that_is_mounted_read_only() {
    in_private_mounts("sqlite_modes::a_file_system_that_is_mounted_read_only", || {
        for (what, arrange, entries) in states(Path::new("/")) {
            let world = World::new();
            let real = world.at("real");
            mount_tmpfs(&real, 64 << 20);
            make_bank(&real.join("data.db"), "WAL", 4096);
            let player = arrange(&real.join("data.db"));
            fs::create_dir(world.work("app")).unwrap();
            let mount = |args: &[&str]| assert_eq!(run(Command::new("mount").args(args)).status, 0, "{args:?}");
            let app = world.work("app");
            mount(&["--bind", real.to_str().unwrap(), app.to_str().unwrap()]);
            mount(&["-o", "remount,bind,ro", app.to_str().unwrap()]);
            assert!(fs::write(app.join("x"), "x").is_err());
            if player.is_none() {
                // Nobody can write to it at all.
                mount(&["-o", "remount,ro", real.to_str().unwrap()]);
                assert!(fs::write(real.join("x"), "x").is_err());
            }
            capture(&world);
            let restored = world.restore("latest", "out").join("app/data.db");
            assert_eq!(check_bank(&restored), entries, "{what}");
            if let Some(player) = player {
                player.end();
            }
        }
    });
}

#[test]
fn an_application_that_keeps_a_database_in_wal_mode_to_itself() {
    let (world, path) = world_with("WAL", 4096);
    let user = Role::LockForItself.start(&path);
    assert!(!beside(&path, "-shm").exists(), "the index of the log is in its memory");
    capture(&world);
    user.end();
    let writer = Role::Transfer.start_with(&path, &[(LOCKING, "EXCLUSIVE"), (PACE, "50")]);
    for _ in 0..4 {
        capture(&world);
    }
    writer.end();
    let out: Vec<_> = (0..5)
        .rev()
        .map(|i| check_bank(&world.restore(&format!("latest~{i}"), &format!("out{i}")).join("app/data.db")))
        .collect();
    assert!(out.is_sorted() && out[0] < out[4], "{out:?}");
    // One that writes so fast that its log is copied into the file again and again may not be had.
    let writer = Role::Transfer.start_with(&path, &[(LOCKING, "EXCLUSIVE")]);
    let ran = world.run(["create", "app"]);
    writer.end();
    match ran.status {
        0 => _ = check_bank(&world.restore("latest", "fast").join("app/data.db")),
        3 => {
            ran.names(["data.db", "unverified"]);
            // The log that lies beside it then may have changed too.
            assert!(world.list().pop().unwrap()["unverified"].as_u64() >= Some(1));
        }
        other => panic!("status {other}: {}", ran.stderr),
    }
}

#[test]
fn writers_are_not_held_up_for_longer_than_allowed() {
    let (world, path) = world_with("DELETE", 4096);
    let writer = Role::Transfer.start(&path);
    let refused = (0..10).map(|_| world.run(["create", "app", "--max-lock", "0"])).find(|ran| {
        // It is whole all the same, where the writer gets no time to do anything.
        assert!(ran.status == 0 || ran.status == 3, "{}", ran.stderr);
        ran.status == 3
    });
    writer.end();
    refused.unwrap().names(["data.db", "unverified", "hold up its writers for longer than --max-lock"]);
    assert_eq!(world.list().pop().unwrap()["unverified"], 1);
}

#[test]
fn a_database_that_is_replaced_while_it_is_read() {
    for is_used in [false, true] {
        let (world, path) = world_with("WAL", 4096);
        let fill = |path: &Path, text: &str| {
            let db = Connection::open(path).unwrap();
            db.execute_batch("CREATE TABLE filling(text TEXT); PRAGMA synchronous = OFF").unwrap();
            db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                 INSERT INTO filling SELECT ?1 || hex(randomblob(1000)) FROM n",
                [text],
            )
            .unwrap();
        };
        let other = world.at("tmp/other.db");
        make_bank(&other, "WAL", 4096);
        fill(&path, "old");
        fill(&other, "new");
        let user = is_used.then(|| Connection::open(&path).unwrap());
        if let Some(user) = &user {
            user.execute("UPDATE account SET money = money", []).unwrap();
        }
        let mut create = world.command(["create", "app", "--json", "-q"]);
        let running = world::spawn(&mut create);
        // As soon as it has it open, it is replaced.
        let opened = format!("/proc/{}/fd", running.id());
        let has_it_open = |entry: std::io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.ends_with("app/data.db")))
        };
        let begun = Instant::now();
        while !fs::read_dir(&opened).is_ok_and(|fds| fds.into_iter().any(has_it_open)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is never opened");
        }
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(beside(&path, suffix));
        }
        fs::rename(&other, &path).unwrap();
        assert_captured(Ran::new(&create, running.wait_with_output().unwrap()), 1);
        drop(user);
        let restored = world.restore("latest", "out").join("app/data.db");
        assert_eq!(check_bank(&restored), 2000);
        let db = Connection::open(&restored).unwrap();
        let is_new = "SELECT count(*) FROM filling WHERE substr(text, 1, 3) = 'new'";
        let rows: i64 = db.query_row(is_new, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 20000, "in use: {is_used}");
    }
}

/// Makes a file of almost 1 GiB of a database of pages of 64 KiB: what is in between is leaked and never read.
fn stretch(path: &Path, pages: u32) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(u64::from(pages) * 65536).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
}

#[test]
fn a_database_past_the_page_that_is_locked() {
    const LOCK_PAGE: u64 = (1 << 30) / 65536;
    for in_log in [true, false] {
        let (world, path) = world_with("WAL", 65536);
        stretch(&path, LOCK_PAGE as u32 - 1);
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        for i in 0..8 {
            db.execute("INSERT INTO entry(id, text) VALUES (?1, hex(randomblob(60000)))", [5000 + i]).unwrap();
        }
        if !in_log {
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
        let expected = [fs::metadata(&path).unwrap().len() > 1 << 30, in_log];
        assert_eq!(expected, [!in_log, in_log], "where the pages past it lie");
        capture(&world);
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(db);
        let restored = world.restore("latest", "out").join("app/data.db");
        assert_eq!(fs::metadata(&restored).unwrap().size(), fs::metadata(&path).unwrap().size());
        assert_eq!(run(Command::new("cmp").args([&path, &restored])).status, 0, "every byte is the same");
        let db = Connection::open(&restored).unwrap();
        let long = "SELECT count(*) FROM entry WHERE length(text) = 120000";
        assert_eq!(db.query_row(long, [], |row| row.get::<_, i64>(0)).unwrap(), 8);
    }
}
