//! Databases of a real PostgreSQL server: into snapshots, and back.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::postgres_server::{PASSWORD, PASSWORD_IN_URL, Server, path, shared};
use super::world::{Ran, World, run, spawn};

/// A repository, and the server's programs along the PATH.
fn world() -> World {
    let mut world = World::new();
    world.set("PATH", path());
    world
}

/// What a table holds, in an order that doesn't depend on where its rows lie.
fn rows(server: &Server, database: &str, table: &str) -> String {
    server.sql(database, &format!("SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t"))
}

fn load(world: &World, snapshot: &str, url: &str, options: &[&str]) -> Ran {
    world.run([&["restore", snapshot, "--postgres", url], options].concat())
}

/// Everything that dumps are known to have trouble with.
const SCHEMA: &str = r#"
CREATE EXTENSION IF NOT EXISTS plpgsql;
CREATE SCHEMA "odd schema";
CREATE TYPE "odd schema"."Mood" AS ENUM ('so so', 'it''s "fine"');
CREATE TABLE "odd schema"."Ta""ble" ("Col ""umn" text, mood "odd schema"."Mood", "ünï" bytea);
INSERT INTO "odd schema"."Ta""ble" VALUES (E'tab\tnewline\nbackslash\\', 'so so', '\x00ff0a'), (NULL, 'it''s "fine"', '');
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
  shout text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE TABLE orders (id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, amount numeric CHECK (amount > 0));
INSERT INTO customers (name) SELECT 'customer ' || i FROM generate_series(1, 500) i;
INSERT INTO orders (customer, amount) SELECT i % 500 + 1, i FROM generate_series(1, 2000) i;
CREATE FUNCTION total(bigint) RETURNS numeric LANGUAGE sql AS 'SELECT sum(amount) FROM orders WHERE customer = $1';
CREATE VIEW rich AS SELECT name, total(id) FROM customers WHERE total(id) > 1000;
SELECT lo_from_bytea(4711, decode(repeat('deadbeef0a', 50000), 'hex'));
"#;

#[test]
fn databases_and_files_in_one_snapshot() {
    let (world, server) = (world(), shared());
    server.new_database("shop");
    server.sql("shop", SCHEMA);
    server.new_database("o'd\"d / näme%");
    server.sql("o'd\"d / näme%", "CREATE TABLE one AS SELECT 1 AS n");
    world.write("files/a.txt", "beside");
    let odd = "o'd%22d%20%2F%20n%C3%A4me%25";
    let (shop, odd) = (server.url("shop"), server.url(odd));
    let made = world.json(["create", "--postgres", &shop, "--postgres", &odd, "files"]);
    assert_eq!(made["files"], 4, "two dumps, the roles, and a file");
    let source = made["source"].as_str().unwrap();
    assert!(source.contains("/shop") && source.contains("/files") && !source.contains("postgres@"), "{source}");

    let listed = world.json(["ls", "latest"]);
    let node = |path: &str| -> Value {
        let nodes = listed["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["path"] == path).unwrap_or_else(|| panic!("{path}: {listed}")).clone()
    };
    let dump = &node("postgres/shop.dump")["dump"];
    assert_eq!((&dump["kind"], &dump["database"]), (&"postgres".into(), &"shop".into()));
    for version in ["server_version", "tool_version"] {
        assert!(dump[version].as_str().unwrap().starts_with(|c: char| c.is_ascii_digit()), "{dump}");
    }
    assert_eq!(node("postgres/o'd\"d %2F näme%25.dump")["dump"]["database"], "o'd\"d / näme%");
    assert_eq!(node("postgres/globals.sql")["dump"]["kind"], "postgres-globals");
    assert!(world.ok(["ls", "-l", "latest"]).text().contains("database shop)"));

    // What is restored as files is what pg_restore takes.
    let out = world.restore("latest", "out");
    assert_eq!(fs::read(out.join("files/a.txt")).unwrap(), b"beside");
    let mut list = world.command_of("pg_restore");
    let list = run(list.arg("-l").arg(out.join("postgres/shop.dump"))).expect(0).text();
    assert!(list.contains("TABLE DATA public orders") && list.contains("BLOB"), "{list}");
    let globals = fs::read_to_string(out.join("postgres/globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE postgres"), "{globals}");

    // Among several the name in the URL, the option or the path decides.
    server.sql("postgres", "DROP DATABASE IF EXISTS shop_again");
    let (again, new) = (server.url("shop_again"), &["--create", "-q"][..]);
    load(&world, "latest", &again, new).expect(1).names(["several databases", "shop.dump", "--postgres-database"]);
    load(&world, "latest", &again, &["--create", "-q", "--postgres-database", "shop"]).expect(0);
    for table in ["customers", "orders", "rich", "\"odd schema\".\"Ta\"\"ble\""] {
        assert_eq!(rows(server, "shop_again", table), rows(server, "shop", table), "{table}");
    }
    let large = "SELECT md5(lo_get(4711)), length(lo_get(4711))";
    assert_eq!(server.sql("shop_again", large), server.sql("shop", large));
    server.sql(
        "shop_again",
        "INSERT INTO customers (name) VALUES ('the next'); INSERT INTO orders (customer, amount) VALUES (501, 1)",
    );
    server.sql("postgres", "DROP DATABASE IF EXISTS one_again");
    load(&world, "latest:postgres/o'd\"d %2F näme%25.dump", &server.url("one_again"), new).expect(0);
    assert_eq!(server.sql("one_again", "SELECT n FROM one"), "1");
    load(&world, "latest:files", &again, &[]).expect(1).names(["no dump of a PostgreSQL database"]);
}

#[test]
fn where_a_database_may_be_loaded() {
    let (world, server) = (world(), shared());
    server.new_database("origin");
    server.sql("origin", "CREATE TABLE t AS SELECT i AS id, 'row ' || i AS text FROM generate_series(1, 1000) i");
    world.ok(["create", "-q", "--postgres", &server.url("origin")]);
    server.sql("postgres", "DROP DATABASE IF EXISTS copy");
    let copy = server.url("copy");
    load(&world, "latest", &copy, &[]).expect(1).names(["no database", "--create"]);
    let done = world.json(["restore", "latest", "--postgres", &copy, "--create", "--dry-run"]);
    assert_eq!((&done["created"], &done["dry_run"]), (&true.into(), &true.into()));
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'copy'"), "0");
    // An empty one that is there needs no word.
    server.new_database("copy");
    load(&world, "latest", &copy, &[]).expect(0);
    assert_eq!(rows(server, "copy", "t"), rows(server, "origin", "t"));
    server.sql("copy", "DELETE FROM t; CREATE TABLE other AS SELECT 5 AS five");
    load(&world, "latest", &copy, &[]).expect(1).names(["not empty", "--clean"]);
    assert_eq!(server.sql("copy", "SELECT count(*) FROM t"), "0", "it was left alone");
    let said = load(&world, "latest", &copy, &["--clean"]).expect(0).text();
    assert!(said.contains("in place of what was there"), "{said}");
    assert_eq!(rows(server, "copy", "t"), rows(server, "origin", "t"));
    assert_eq!(server.sql("copy", "SELECT five FROM other"), "5", "what the snapshot doesn't know stays");

    // What can't be loaded whole is not loaded at all: here an object that others depend on.
    server.sql("copy", "DELETE FROM t WHERE id > 7; CREATE VIEW v AS SELECT * FROM t");
    load(&world, "latest", &copy, &["--clean"]).expect(1).names(["pg_restore into", "depend"]);
    assert_eq!(server.sql("copy", "SELECT count(*) FROM v"), "7");
    // Nor is a database left behind that was made for it.
    server.new_database("owned");
    server.sql(
        "postgres",
        "DROP DATABASE IF EXISTS owned_copy; DROP ROLE IF EXISTS owner_of_it; CREATE ROLE owner_of_it",
    );
    server.sql(
        "owned",
        "CREATE TABLE mine (n int); ALTER TABLE mine OWNER TO owner_of_it; GRANT SELECT ON mine TO owner_of_it",
    );
    world.ok(["create", "-q", "--postgres", &server.url("owned")]);
    let source = world.list().pop().unwrap()["source"].as_str().unwrap().to_owned();
    server.sql("owned", "DROP TABLE mine");
    server.sql("postgres", "DROP ROLE owner_of_it");
    let owned = ["--create", "-q", "--source", &source];
    let copy = server.url("owned_copy");
    load(&world, "latest", &copy, &owned).expect(1).names(["owner_of_it", "does not exist"]);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'owned_copy'"), "0");
    load(&world, "latest", &copy, &[&owned[..], &["--globals"]].concat()).expect(0);
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'mine'";
    assert_eq!(server.sql("owned_copy", owner), "owner_of_it");
    server.sql("postgres", "DROP DATABASE owned_copy; DROP ROLE owner_of_it");
    load(&world, "latest", &copy, &[&owned[..], &["--owner", "none"]].concat()).expect(0);
    assert_eq!(server.sql("owned_copy", owner), "postgres");
}

#[test]
fn dumps_that_fail_make_no_snapshot() {
    let (mut world, server) = (world(), shared());
    server.new_database("guarded");
    server.sql("guarded", "CREATE TABLE secret AS SELECT 1 AS n; CREATE TABLE open AS SELECT 2 AS n");
    server.sql(
        "guarded",
        &format!(
            "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'; GRANT SELECT ON open TO reader"
        ),
    );
    let create = |world: &World, url: &str| world.run(["create", "-q", "--postgres", url]);
    world.write("files/a", "a");
    let wrong = server.url_with("reader:wrong%20word", "guarded");
    let ran = create(&world, &wrong).expect(1).names(["password authentication failed", "hint: mend the password"]);
    assert!(!ran.stderr.contains("wrong word") && !ran.stderr.contains("wrong%20word"), "{}", ran.stderr);
    create(&world, &server.url_with("reader", "guarded")).expect(1).names(["no password supplied", ".pgpass"]);
    create(&world, &server.url("no such one")).expect(1).names(["no such one", "does not exist", "psql --list"]);
    create(&world, &server.url_of("reader", "guarded")).expect(1).names(["permission denied", "secret"]);
    create(&world, "postgres://127.0.0.1:1/app").expect(1).names(["connection to server", "127.0.0.1"]);
    create(&world, &server.url("")).expect(2).names(["names no database"]);
    let ran = create(&world, "mysql://u:hidden@h/d").expect(2).names(["no URL of a database"]);
    assert!(!ran.stderr.contains("hidden"), "{}", ran.stderr);
    // One of several is enough, and files beside don't matter.
    let (good, bad) = (server.url("postgres"), server.url("nothing"));
    world.run(["create", "-q", "--postgres", &good, "--postgres", &bad, "files"]).expect(1);
    world.write("postgres/x", "x");
    world.run(["create", "-q", "--postgres", &good, "postgres"]).expect(1).names(["named postgres", "absolute path"]);
    world.run(["create", "-q", "--postgres", &good, "."]).expect(1).names(["named postgres"]);

    world.set("PATH", "/nonexistent");
    create(&world, &good).expect(1).names(["pg_dump is not installed", "postgresql-client"]);
    let old = world.at("bin/pg_dump");
    fs::create_dir(world.at("bin")).unwrap();
    // As pg_dump 15 says of a newer server.
    let says = "pg_dump: error: aborting because of server version mismatch\npg_dump: detail: server version: 17.2; \
                pg_dump version: 15.14";
    script(&old, &format!("echo '{says}' >&2; exit 1"));
    world.set("PATH", format!("{}:/usr/bin:/bin", world.at("bin").display()));
    create(&world, &good).expect(1).names(["server version: 17.2", "must not be older", "postgresql-client-17"]);
    script(&old, "echo something else");
    create(&world, &good).expect(1).names(["made no archive"]);
    assert!(world.list().is_empty());
    assert!(!world.objects().iter().any(|path| path.starts_with("snapshots/")));
}

fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_role_that_may_not_read_roles_gets_its_database() {
    let (world, server) = (world(), shared());
    server.new_database("humble");
    server.sql("humble", "CREATE TABLE t AS SELECT 1 AS n");
    server.sql("postgres", "DROP ROLE IF EXISTS humble; CREATE ROLE humble LOGIN");
    server.sql("humble", "GRANT SELECT ON t TO humble");
    world.ok(["create", "--postgres", &server.url_of("humble", "humble")]);
    let out = world.restore("latest", "out");
    assert!(out.join("postgres/humble.dump").exists());
    // Passwords are for superusers; the roles themselves are for all.
    let roles = fs::read_to_string(out.join("postgres/globals.sql")).unwrap();
    assert!(roles.contains("CREATE ROLE humble") && !roles.contains("PASSWORD"), "{roles}");
    server.sql("postgres", "REVOKE SELECT ON pg_roles FROM PUBLIC");
    let ran = world.run(["create", "--postgres", &server.url_of("humble", "humble")]);
    server.sql("postgres", "GRANT SELECT ON pg_roles TO PUBLIC");
    // pg_dumpall asks the maintenance database, or the one in the URL, depending on its version.
    let ran = ran.expect(0);
    let has_roles = world.json(["ls", "latest"]).to_string().contains("globals.sql");
    assert!(has_roles || ran.stderr.contains("not in the snapshot"), "{}", ran.stderr);
}

/// A pg_dump that goes on and on, made from the real one: it stops for a file to appear while its output is half read.
fn slow_dump(world: &mut World, then: &str) -> (PathBuf, PathBuf) {
    let bin = world.at("slow");
    fs::create_dir(&bin).unwrap();
    let (begun, go) = (world.at("begun"), world.at("go"));
    let real: OsString = path();
    let real = std::env::split_paths(&real).map(|dir| dir.join("pg_dump")).find(|p| p.exists()).unwrap();
    let wait = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done", begun.display(), go.display());
    script(&bin.join("pg_dump"), &format!("{} \"$@\" | {{ head -c 300000; {wait}; {then}; }}", real.display()));
    let mut all = bin.into_os_string();
    all.push(":");
    all.push(path());
    world.set("PATH", all);
    (begun, go)
}

fn wait_for(path: &Path) {
    for _ in 0..1200 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} does not come", path.display());
}

#[test]
fn a_server_that_goes_and_a_user_who_interrupts() {
    let (world, server) = (world(), Server::start());
    server.new_database("big");
    server.sql("big", "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 20) AS text FROM generate_series(1, 60000) i");
    // The dump waits for a table that somebody has locked, and the server is killed meanwhile.
    let lock = "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let hold = || {
        let mut psql = world.command_of("psql");
        spawn(psql.args(["-X", "-q", "-d", &server.url("big"), "-c", lock]).stdin(Stdio::null()))
    };
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump'";
    let wait_until = |count: &str| {
        for _ in 0..1200 {
            if server.sql("postgres", waiting) == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("pg_dump: not {count}");
    };
    let mut holder = hold();
    std::thread::sleep(Duration::from_millis(300));
    let create = || {
        let mut command = world.command(["create", "-q", "--postgres", &server.url("big")]);
        let child = spawn(&mut command);
        (command, child)
    };
    // An interrupt ends the program and its child, also while nothing comes.
    let (command, child) = create();
    wait_until("1");
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    Ran::new(&command, child.wait_with_output().unwrap()).expect(130);
    wait_until("0");
    let (command, child) = create();
    wait_until("1");
    server.kill();
    Ran::new(&command, child.wait_with_output().unwrap()).expect(1).names(["pg_dump of", "hint: "]);
    let _ = holder.kill();
    let _ = holder.wait();
    assert!(world.list().is_empty());
}

#[test]
fn a_dump_that_is_cut_off_half_way_makes_no_snapshot() {
    let (mut world, server) = (world(), shared());
    server.new_database("cut");
    server.sql("cut", "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 20) AS text FROM generate_series(1, 20000) i");
    let (begun, go) = slow_dump(&mut world, "kill -KILL $$");
    let mut command = world.command(["create", "-q", "--postgres", &server.url("cut")]);
    let child = spawn(&mut command);
    wait_for(&begun);
    fs::write(go, "").unwrap();
    Ran::new(&command, child.wait_with_output().unwrap()).expect(1).names(["pg_dump of", "signal: 9"]);
    assert!(world.list().is_empty());
}

#[test]
fn a_password_is_seen_nowhere() {
    let (mut world, server) = (world(), shared());
    server.new_database("private");
    server.sql("private", "CREATE TABLE t AS SELECT 1 AS n");
    server.sql(
        "postgres",
        &format!("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{PASSWORD}'"),
    );
    let url = server.url_with(&format!("keeper:{PASSWORD_IN_URL}"), "private");
    let (begun, go) = slow_dump(&mut world, "cat");
    let mut command = world.command(["create", "--json", "--postgres", &url]);
    let child = spawn(&mut command);
    wait_for(&begun);
    // Of all processes but the one that the user gave it to.
    let mut seen = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        seen += usize::from(line.contains("pg_dump"));
        let is_own = entry.file_name().to_str() == Some(&child.id().to_string());
        assert!(is_own || !(line.contains(PASSWORD) || line.contains(PASSWORD_IN_URL)), "{line}");
    }
    assert!(seen > 0, "pg_dump runs");
    fs::write(go, "").unwrap();
    let ran = Ran::new(&command, child.wait_with_output().unwrap()).expect(0);
    for text in [ran.text(), ran.stderr, world.ok(["list", "--json"]).text(), world.ok(["ls", "-l", "latest"]).text()] {
        assert!(!text.contains(PASSWORD) && !text.contains(PASSWORD_IN_URL), "{text}");
    }
    let out = world.restore("latest", "out");
    let globals = fs::read_to_string(out.join("postgres/globals.sql")).unwrap();
    assert!(globals.contains("SCRAM-SHA-256") && !globals.contains(PASSWORD), "roles have their passwords' hashes");
    let id = world.list()[0]["id"].as_str().unwrap().to_owned();
    let shown = world.ok(["cat", "snapshot", &id]).text();
    assert!(shown.contains("private") && !shown.contains("keeper") && !shown.contains("s3cret"), "{shown}");
    // The password may come from elsewhere, and then is in no command line at all.
    world.set("PGPASSWORD", PASSWORD);
    world.ok(["create", "-q", "--postgres", &server.url_with("keeper", "private")]);
    assert_eq!(world.list().last().unwrap()["generation"], 2, "the same source, whoever asks");
}

#[test]
fn a_night_costs_what_changed() {
    let (world, server) = (world(), shared());
    server.new_database("nights");
    server.sql(
        "nights",
        "SELECT setseed(0.5); CREATE TABLE t AS SELECT i AS id, md5(random()::text) || md5(random()::text) AS title,
         md5(random()::text) || repeat(md5((i % 1000)::text), 3) AS body, 0 AS price FROM generate_series(1, 60000) i",
    );
    let create = || world.json(["create", "--postgres", &server.url("nights")]);
    let stored = |made: &Value| made["bytes_stored"].as_u64().unwrap();
    let first = create();
    let dump_bytes = first["bytes"].as_u64().unwrap();
    assert!(dump_bytes > 10 << 20 && stored(&first) > dump_bytes / 4, "{first}");
    let quiet = stored(&create());
    assert!(quiet < dump_bytes / 500, "{quiet} of {dump_bytes}");
    let mut wanted = Vec::new();
    for night in 1..=6 {
        server
            .sql("nights", &format!("SELECT setseed(0.0{night}); UPDATE t SET price = {night} WHERE random() < 0.01"));
        server.sql("nights", "VACUUM t");
        let grown = stored(&create());
        assert!(grown < dump_bytes * 3 / 100, "night {night}: {grown} of {dump_bytes}");
        wanted.push(rows(server, "nights", "t"));
    }
    world.ok(["check", "--read-data"]);
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/reader.py");
    let mut python = world.command_of("python3");
    python.arg(reader).arg("-r").arg(world.at("repo")).arg("--key-file").arg(world.at("key")).arg("verify");
    assert!(run(&mut python).expect(0).text().contains("packs verified"), "by the independent reader");
    // Each is what it was, whatever it leans on; and so it is when the others are gone.
    let proven = |snapshot: &str, wanted: &String| {
        load(&world, snapshot, &server.url("nights_again"), &["--create", "-q"]).expect(0);
        assert_eq!(&rows(server, "nights_again", "t"), wanted, "{snapshot}");
        server.sql("postgres", "DROP DATABASE nights_again");
    };
    server.sql("postgres", "DROP DATABASE IF EXISTS nights_again");
    proven("latest", &wanted[5]);
    proven("latest~5", &wanted[0]);
    for _ in 0..2 {
        world.ok(["prune", "-q", "--keep-last", "1", "--grace", "0s"]);
    }
    world.ok(["check", "--read-data"]);
    proven("latest", &wanted[5]);
    for how in [&["--verify"][..], &["--overwrite", "always", "--verify"]] {
        world.ok([&["restore", "latest", "--target", "out", "-q"], how].concat());
    }
    // A copy, with other keys, leans on what it brings along.
    let mut copied = World::bare();
    copied.set("PATH", path());
    copied.use_repository("other", "key");
    copied.ok(["init", "-q"]);
    copied.set("SNAPSHOT_FROM_REPO", world.at("repo"));
    copied.set("SNAPSHOT_FROM_KEY_FILE", world.at("key"));
    copied.ok(["copy", "-q"]);
    load(&copied, "latest", &server.url("nights_again"), &["--create", "-q"]).expect(0);
    assert_eq!(rows(server, "nights_again", "t"), wanted[5]);
}

#[test]
fn a_damaged_repository_never_fills_a_database_by_half() {
    let (world, server) = (world(), shared());
    server.new_database("fragile");
    server.sql(
        "fragile",
        "CREATE TABLE first AS SELECT i, md5(i::text) AS text FROM generate_series(1, 150000) i;
         CREATE TABLE second AS SELECT i, md5(i::text) AS text FROM generate_series(1, 150000) i",
    );
    world.ok(["create", "-q", "--postgres", &server.url("fragile")]);
    server.new_database("target");
    server.sql("target", "CREATE TABLE first AS SELECT 1 AS old");
    // A byte in the largest pack, near its end: the first pieces are sound.
    let packs = world.objects().into_iter().filter(|path| path.starts_with("packs/d/"));
    let pack = packs.max_by_key(|path| fs::metadata(world.at("repo").join(path)).unwrap().len()).unwrap();
    let pack = world.at("repo").join(pack);
    let mut bytes = fs::read(&pack).unwrap();
    let at = bytes.len() * 9 / 10;
    bytes[at] ^= 1;
    fs::set_permissions(&pack, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&pack, bytes).unwrap();
    load(&world, "latest", &server.url("target"), &["--clean"]).expect(1).names(["damaged"]);
    assert_eq!(server.sql("target", "SELECT old FROM first"), "1", "nothing was changed");
    server.sql("postgres", "DROP DATABASE IF EXISTS not_there");
    load(&world, "latest", &server.url("not_there"), &["--create"]).expect(1).names(["damaged"]);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'not_there'"), "0");
    world.run(["check", "--read-data"]).expect(4);
}
