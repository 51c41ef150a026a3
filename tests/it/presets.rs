//! Known applications: recognised or named, what is left out of them, and whether their rows and files agree.
//!
//! The directory is made as PocketBase 0.23 and later make theirs: the tables as its migrations create them, and
//! collections as it writes them into `_collections`.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::one_unit::Vanished;
use crate::roles::{Role, attachment};
use crate::world::World;

/// The tables of core's migrations.
const SCHEMA: &str = "
    CREATE TABLE `_params` (`id` TEXT PRIMARY KEY DEFAULT ('r'||lower(hex(randomblob(7)))) NOT NULL,
        `value` JSON DEFAULT NULL,
        `created` TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%fZ')) NOT NULL,
        `updated` TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%fZ')) NOT NULL);
    CREATE TABLE `_collections` (`id` TEXT PRIMARY KEY DEFAULT ('r'||lower(hex(randomblob(7)))) NOT NULL,
        `system` BOOLEAN DEFAULT FALSE NOT NULL, `type` TEXT DEFAULT \"base\" NOT NULL, `name` TEXT UNIQUE NOT NULL,
        `fields` JSON DEFAULT \"[]\" NOT NULL, `indexes` JSON DEFAULT \"[]\" NOT NULL,
        `listRule` TEXT DEFAULT NULL, `viewRule` TEXT DEFAULT NULL, `createRule` TEXT DEFAULT NULL,
        `updateRule` TEXT DEFAULT NULL, `deleteRule` TEXT DEFAULT NULL, `options` JSON DEFAULT \"{}\" NOT NULL,
        `created` TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%fZ')) NOT NULL,
        `updated` TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%fZ')) NOT NULL);
    CREATE INDEX IF NOT EXISTS idx__collections_type on `_collections` (`type`);
    CREATE TABLE `users` (`avatar` TEXT DEFAULT '' NOT NULL, `email` TEXT DEFAULT '' NOT NULL,
        `id` TEXT PRIMARY KEY DEFAULT ('r'||lower(hex(randomblob(7)))) NOT NULL, `name` TEXT DEFAULT '' NOT NULL);
    CREATE TABLE `posts` (`id` TEXT PRIMARY KEY DEFAULT ('r'||lower(hex(randomblob(7)))) NOT NULL,
        `title` TEXT DEFAULT '' NOT NULL, `images` JSON DEFAULT '[]' NOT NULL);
    CREATE VIEW `recent` AS SELECT id, images FROM posts;";

const USERS: &str = r#"[{"autogeneratePattern":"[a-z0-9]{15}","hidden":false,"id":"text3208210256","max":15,"min":15,"name":"id","pattern":"^[a-z0-9]+$","presentable":false,"primaryKey":true,"required":true,"system":true,"type":"text"},{"exceptDomains":null,"hidden":false,"id":"email3885137012","name":"email","onlyDomains":null,"presentable":false,"required":true,"system":true,"type":"email"},{"autogeneratePattern":"","hidden":false,"id":"text1579384326","max":255,"min":0,"name":"name","pattern":"","presentable":false,"primaryKey":false,"required":false,"system":false,"type":"text"},{"hidden":false,"id":"file376926767","maxSelect":1,"maxSize":0,"mimeTypes":["image/jpeg","image/png"],"name":"avatar","presentable":false,"protected":false,"required":false,"system":false,"thumbs":["70x50"],"type":"file"}]"#;
const POSTS: &str = r#"[{"autogeneratePattern":"[a-z0-9]{15}","hidden":false,"id":"text3208210256","max":15,"min":15,"name":"id","pattern":"^[a-z0-9]+$","presentable":false,"primaryKey":true,"required":true,"system":true,"type":"text"},{"autogeneratePattern":"","hidden":false,"id":"text724990059","max":0,"min":0,"name":"title","pattern":"","presentable":false,"primaryKey":false,"required":false,"system":false,"type":"text"},{"hidden":false,"id":"file3760176746","maxSelect":99,"maxSize":5242880,"mimeTypes":null,"name":"images","presentable":false,"protected":false,"required":false,"system":false,"thumbs":null,"type":"file"}]"#;
const SETTINGS: &str =
    r#"{"smtp":{"enabled":false},"backups":{"cron":"","s3":{"enabled":false}},"s3":{"enabled":false,"bucket":""}}"#;

/// Makes a data directory with two users, one with a picture, and a post with two.
fn make_pocketbase(world: &World, at: &str) -> PathBuf {
    let root = world.work(at);
    fs::create_dir_all(&root).unwrap();
    let db = Connection::open(root.join("data.db")).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.execute_batch(SCHEMA).unwrap();
    db.execute("INSERT INTO _params(id, value) VALUES('settings', ?1)", [SETTINGS]).unwrap();
    let collection = "INSERT INTO _collections(id, type, name, fields) VALUES(?1, ?2, ?3, ?4)";
    db.execute(collection, ["_pb_users_auth_", "auth", "users", USERS]).unwrap();
    db.execute(collection, ["pbc_1125843985", "base", "posts", POSTS]).unwrap();
    db.execute(collection, ["pbc_3142635823", "view", "recent", POSTS]).unwrap();
    db.execute_batch(
        r#"INSERT INTO users(id, email, avatar) VALUES('u00000000000001', 'ada@x', 'ada_k3J9.png'), ('u00000000000002', 'b@x', '');
           INSERT INTO posts(id, title, images) VALUES('p00000000000001', 'first', '["one_aa.png","two_bb.png"]'), ('p00000000000002', 'none', '[]');"#,
    )
    .unwrap();
    drop(db);
    let aux = Connection::open(root.join("auxiliary.db")).unwrap();
    aux.execute_batch("CREATE TABLE `_logs`(id TEXT PRIMARY KEY, data JSON); INSERT INTO _logs VALUES('l', '{}');")
        .unwrap();
    for (path, bytes) in [
        ("storage/_pb_users_auth_/u00000000000001/ada_k3J9.png", "ada"),
        ("storage/_pb_users_auth_/u00000000000001/ada_k3J9.png.attrs", "{}"),
        ("storage/_pb_users_auth_/u00000000000001/thumbs_ada_k3J9.png/70x50_ada_k3J9.png", "thumb"),
        ("storage/pbc_1125843985/p00000000000001/one_aa.png", "one"),
        ("storage/pbc_1125843985/p00000000000001/two_bb.png", "two"),
        ("backups/@auto_pb_backup_x_20260101.zip", "zip"),
        (".pb_temp_to_delete/pb_backup_x", "part"),
        ("types.d.ts", "// types"),
    ] {
        world.write(Path::new(at).join(path), bytes);
    }
    root
}

/// The paths of files and databases in the newest snapshot, without the directory in front.
fn kept(world: &World, below: &str) -> Vec<String> {
    let nodes = world.json(["ls", "latest"])["nodes"].clone();
    let nodes = nodes.as_array().unwrap().iter().filter(|node| node["type"] != "directory");
    let path = |node: &serde_json::Value| node["path"].as_str().unwrap().strip_prefix(below).unwrap().to_owned();
    nodes.map(path).collect()
}

fn has(list: &[String], part: &str) -> bool {
    list.iter().any(|path| path.contains(part))
}

#[test]
fn a_directory_is_recognised_and_only_what_is_made_anew_is_left_out() {
    let world = World::new();
    make_pocketbase(&world, "pb_data");
    let ran = world.ok(["create", "pb_data"]).names([
        "note: pb_data: recognised as PocketBase",
        "thumbnails",
        ".pb_temp_to_delete/",
    ]);
    assert!(ran.stderr.contains("kept, but left out with `--preset pocketbase`: backups/"), "{}", ran.stderr);
    assert_eq!(world.list()[0]["preset"], "pocketbase");
    let list = kept(&world, "pb_data/");
    assert!(!has(&list, "thumbs_") && !has(&list, ".pb_temp"), "{list:?}");
    assert!(
        has(&list, "backups/@auto") && has(&list, "auxiliary.db") && has(&list, "ada_k3J9.png") && has(&list, ".attrs")
    );
    // Quiet nights say nothing.
    assert_eq!(world.ok(["create", "-q", "pb_data"]).stderr, "");
    assert!(world.ok(["list", "-v"]).text().contains("pocketbase"));
    assert_eq!(world.json(["cat", "snapshot", "latest"])["preset"], "pocketbase");
}

#[test]
fn a_preset_that_is_named_leaves_more_out_and_none_leaves_nothing_out() {
    let world = World::new();
    make_pocketbase(&world, "pb_data");
    let done = world.json(["create", "pb_data", "--preset", "pocketbase"]);
    assert_eq!((&done["preset"], &done["databases"]), (&"pocketbase".into(), &2.into()));
    let list = kept(&world, "pb_data/");
    assert!(!has(&list, "backups/") && !has(&list, "thumbs_") && has(&list, "auxiliary.db"), "{list:?}");
    world.ok(["create", "pb_data", "--preset", "pocketbase", "--exclude", "auxiliary.db*", "--exclude", "!/backups/"]);
    let list = kept(&world, "pb_data/");
    assert!(has(&list, "backups/") && !has(&list, "auxiliary.db"), "{list:?}");
    let done = world.json(["create", "pb_data", "--preset", "none"]);
    assert_eq!(done["preset"], serde_json::Value::Null);
    let list = kept(&world, "pb_data/");
    assert!(has(&list, "backups/") && has(&list, "thumbs_") && has(&list, ".pb_temp"), "{list:?}");
    world
        .run(["create", "pb_data", "--preset", "pocketbas"])
        .expect(2)
        .names(["pocketbase, vaultwarden, gitea, directus"]);
}

#[test]
fn it_is_found_one_level_down_and_beside_other_sources() {
    let world = World::new();
    make_pocketbase(&world, "srv/pb [1]");
    world.write("srv/.pb_temp_to_delete/mine", "not PocketBase's");
    world.write("gitea/indexers/issues.bleve/x", "index");
    world.write("gitea/attachments/a/b/ab12", "attachment");
    let db = Connection::open(world.work("gitea/gitea.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE attachment(id INTEGER PRIMARY KEY, uuid UUID); INSERT INTO attachment VALUES(1, 'ab12');",
    )
    .unwrap();
    let done = world.json(["create", "srv", "gitea"]);
    assert_eq!(done["preset"], "gitea,pocketbase");
    let list = kept(&world, "");
    assert!(
        has(&list, "srv/.pb_temp_to_delete/mine") && !has(&list, "pb [1]/.pb_temp") && !has(&list, "indexers"),
        "{list:?}"
    );
    let checked = world.json(["check", "--references"])["references"].clone();
    let of =
        |n: usize| (checked[n]["preset"].clone(), checked[n]["references"].clone(), checked[n]["dangling"].clone());
    assert_eq!(of(0), ("gitea".into(), 1.into(), 0.into()));
    assert_eq!(of(1), ("pocketbase".into(), 3.into(), 0.into()));
}

#[test]
fn what_only_resembles_an_application_is_left_alone() {
    let world = World::new();
    make_pocketbase(&world, "app");
    fs::remove_file(world.work("app/auxiliary.db")).unwrap();
    let ran = world.ok(["create", "app"]);
    assert!(ran.stderr.is_empty() && has(&kept(&world, "app/"), "thumbs_"), "{}", ran.stderr);
    world.ok(["create", "app", "--preset", "pocketbase"]).names(["not recognised as the directory of PocketBase"]);
    assert!(!has(&kept(&world, "app/"), "thumbs_"));
    // Named at the time, it is checked later though it is not recognised.
    assert_eq!(world.json(["check", "--references"])["references"][0]["references"], 3);
    world.write("app/data.db", "no database at all");
    world.ok(["create", "app", "--preset", "pocketbase"]);
    world.ok(["check", "--references"]).names(["it was stored as a plain file"]);
}

#[test]
fn rows_without_their_file_are_found() {
    let world = World::new();
    let root = make_pocketbase(&world, "pb_data");
    let ran = world.ok(["create", "pb_data", "--check-references"]);
    assert!(
        ran.text().contains("rows refer to 3 files, 0 of them missing; no row refers to 0 others"),
        "{}",
        ran.text()
    );
    fs::remove_file(root.join("storage/pbc_1125843985/p00000000000001/two_bb.png")).unwrap();
    world.write("pb_data/storage/pbc_1125843985/p00000000000001/stray_cc.png", "nobody's");
    let said = [
        "missing from the snapshot: 1 of the 3 files that its rows refer to",
        "two_bb.png (images of record p00000000000001 in posts)",
    ];
    world.run(["create", "pb_data", "--check-references", "-q"]).expect(3).names(said);
    let ran =
        world.run(["check", "--references"]).expect(4).names(said).names(["no row refers to 1 files below storage/"]);
    assert!(ran.text().contains("1 of them missing; no row refers to 1 others"), "{}", ran.text());
    let checked = world.json_of(4, ["check", "--references", "latest", "latest~1"]);
    let dangling: Vec<_> = checked["references"].as_array().unwrap().iter().map(|c| c["dangling"].clone()).collect();
    assert_eq!(dangling, [1, 0]);
    // The check of the structure alone has nothing against it.
    world.ok(["check"]);
    world.ok(["check", "--references", "latest~1"]);
}

#[test]
fn files_in_s3_are_not_missed() {
    let world = World::new();
    let root = make_pocketbase(&world, "pb_data");
    fs::remove_dir_all(root.join("storage")).unwrap();
    world.ok(["create", "pb_data"]);
    world.run(["check", "--references"]).expect(4);
    let db = Connection::open(root.join("data.db")).unwrap();
    db.execute("UPDATE _params SET value = 'bm90IEpTT046IGVuY3J5cHRlZA=='", []).unwrap();
    world.ok(["create", "pb_data"]);
    world.ok(["check", "--references"]).names(["right if they are kept elsewhere"]);
    db.execute(
        "UPDATE _params SET value = replace(?1, '\"s3\":{\"enabled\":false,\"b', '\"s3\":{\"enabled\":true,\"b')",
        [SETTINGS],
    )
    .unwrap();
    world.ok(["create", "pb_data"]);
    world.ok(["check", "--references"]).names(["its files are kept in S3"]);
    assert_eq!(world.json(["check", "--references"])["references"][0]["elsewhere"], true);
}

#[test]
fn a_hostile_database_is_only_read() {
    let world = World::new();
    let root = make_pocketbase(&world, "pb_data");
    let db = Connection::open(root.join("data.db")).unwrap();
    db.execute("DELETE FROM _collections WHERE id = 'pbc_3142635823'", []).unwrap();
    let collection = "INSERT INTO _collections(id, type, name, fields) VALUES(?1, 'base', ?2, ?3)";
    let field = r#"[{"name":"f","type":"file"}]"#;
    let deep = "[".repeat(1_000_000);
    for (id, name, fields) in [
        ("../..", "climbs", field),
        ("h2", "virtual", field),
        ("h3", "recent", field),
        ("h4", "x\" UNION SELECT 1,2 --", field),
        ("h5", "deep", &deep),
        ("h6", "cut", r#"[{"name""#),
        ("h7", "huge", r#"[{"name":"big","type":"file"}]"#),
        ("h8", "nul\0name", field),
    ] {
        db.execute(collection, [id, name, fields]).unwrap();
    }
    db.execute_batch(
        "CREATE TABLE climbs(id TEXT, f TEXT); INSERT INTO climbs VALUES('../../..', 'etc/passwd'), (x'ff00', 'f'), ('r', zeroblob(10));
         CREATE VIRTUAL TABLE virtual USING fts5(id, f);
         CREATE TABLE huge(id TEXT, big TEXT); INSERT INTO huge VALUES('r', hex(zeroblob(3000000)));
         CREATE TRIGGER t AFTER INSERT ON posts BEGIN SELECT raise(ABORT, 'ran'); END;",
    )
    .unwrap();
    world.ok(["create", "pb_data"]);
    let ran = world.run(["check", "--references"]).expect(4);
    for said in [
        "etc/passwd",
        "collection virtual has no table",
        "collection recent has no table",
        "the fields of collection deep",
    ] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    assert!(ran.stderr.contains("1 of the 4 files that its rows refer to"), "{}", ran.stderr);
}

#[test]
fn vaultwarden_and_directus_are_checked_too() {
    let world = World::new();
    fs::create_dir_all(world.work("vw")).unwrap();
    let db = Connection::open(world.work("vw/db.sqlite3")).unwrap();
    db.execute_batch(
        r#"CREATE TABLE attachments(id CHAR(36) NOT NULL PRIMARY KEY, cipher_uuid CHAR(36) NOT NULL, file_name TEXT NOT NULL, file_size INTEGER NOT NULL, akey TEXT);
           CREATE TABLE sends(uuid TEXT NOT NULL PRIMARY KEY, atype INTEGER NOT NULL, data TEXT NOT NULL);
           INSERT INTO attachments VALUES('a1', 'c1', '2.x', 3, NULL), ('a2', 'c1', '2.y', 3, NULL);
           INSERT INTO sends VALUES('s1', 1, '{"id":"f1","fileName":"2.z","size":3}'), ('s2', 0, '{"text":"2.t"}'), ('s3', 1, 'no JSON');"#,
    )
    .unwrap();
    for path in ["rsa_key.pem", "attachments/c1/a1", "sends/s1/f1", "icon_cache/example.com.png"] {
        world.write(Path::new("vw").join(path), "x");
    }
    let done = world.json(["create", "vw"]);
    assert_eq!((&done["preset"], &done["files"]), (&"vaultwarden".into(), &3.into()));
    world
        .run(["check", "--references"])
        .expect(4)
        .names(["attachments/c1/a2 (attachment a2 of cipher c1)", "send s3 does not say"]);

    fs::create_dir_all(world.work("directus/database")).unwrap();
    let db = Connection::open(world.work("directus/database/data.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE directus_files(id char(36) PRIMARY KEY, storage varchar(255) NOT NULL, filename_disk varchar(255));
         INSERT INTO directus_files VALUES('1', 'local', '1.png'), ('2', 's3', '2.png'), ('3', 'local', NULL), ('4', 'local', '4.png');",
    )
    .unwrap();
    world.write("directus/uploads/1.png", "x");
    world.write("directus/uploads/1__4f2a.png", "smaller");
    world.ok(["create", "directus"]);
    let checked = world.json_of(4, ["check", "--references", "latest"])["references"][0].clone();
    assert_eq!(
        (&checked["preset"], &checked["references"], &checked["dangling"], &checked["orphans"]),
        (&"directus".into(), &2.into(), &1.into(), &0.into())
    );
}

/// Files under load, by PocketBase's own order: the file, then its row; the row's end, then the file's.
#[test]
fn a_busy_pocketbase_has_no_dangling_rows_but_those_that_were_named() {
    let world = World::new();
    let root = make_pocketbase(&world, "pb_data");
    let db = Connection::open(root.join("data.db")).unwrap();
    db.execute_batch("CREATE TABLE shelf(id INTEGER PRIMARY KEY, file TEXT NOT NULL)").unwrap();
    let fields = r#"[{"name":"id","type":"text"},{"name":"file","type":"file"}]"#;
    db.execute("INSERT INTO _collections(id, type, name, fields) VALUES('shelf', 'base', 'shelf', ?1)", [fields])
        .unwrap();
    drop(db);
    let writer = Role::AttachRecords(root.join("storage/shelf")).start(&root.join("data.db"));
    let mut named = 0;
    for _ in 0..10 {
        let ran = world.run(["create", "pb_data", "--check-references", "-q"]);
        assert!(ran.status == 0 || ran.status == 3, "{}", ran.stderr);
        let dangling = match ran.stderr.split_once("missing from the snapshot: ") {
            Some((_, after)) => after.split(' ').next().unwrap().parse().unwrap(),
            None => 0,
        };
        let vanished = Vanished::of(&ran.stderr).count() as u64;
        // A directory that has vanished is named once, and it had one file.
        assert!(dangling <= vanished, "{}", ran.stderr);
        named += vanished;
    }
    writer.end();
    world.ok(["create", "pb_data", "--check-references"]);
    let out = world.restore("latest", "out").join("pb_data");
    let db = Connection::open(out.join("data.db")).unwrap();
    let (count, id, file): (i64, i64, String) = db
        .query_row("SELECT count(*), max(id), file FROM shelf", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap();
    assert!(
        count > 0 && fs::read(out.join(format!("storage/shelf/{id}/{file}"))).unwrap() == attachment(id),
        "{named}"
    );
}
