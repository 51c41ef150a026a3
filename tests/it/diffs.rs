//! `diff`: names and contents, and for databases the tables, compared with what SQLite itself says of the pages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;

use crate::world::World;

fn change<'v>(changes: &'v Value, path: &str) -> &'v Value {
    let all = changes["changes"].as_array().unwrap();
    all.iter().find(|change| change["path"] == path).unwrap_or_else(|| panic!("no change of {path}: {changes}"))
}

#[test]
fn names_contents_and_attributes() {
    let world = World::new();
    for (name, content) in
        [("stays", "1"), ("changes", "before"), ("goes", "22"), ("becomes", "a file"), ("moded", "x")]
    {
        world.write(format!("app/{name}"), content);
    }
    world.write("app/same/deep/file", "never read again");
    world.ok(["create", "app"]);
    world.write("app/changes", "after that");
    world.write("app/comes/in", "333");
    fs::remove_file(world.work("app/goes")).unwrap();
    fs::remove_file(world.work("app/becomes")).unwrap();
    fs::create_dir(world.work("app/becomes")).unwrap();
    fs::set_permissions(world.work("app/moded"), fs::Permissions::from_mode(0o600)).unwrap();
    world.ok(["create", "app"]);

    let text = world.ok(["diff", "latest~1", "latest"]).text();
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "T    app/becomes/  (directory, was file; mode 0755, was 0644)",
        "M    app/changes  (10 B, was 6 B)",
        "+    app/comes/",
        "+    app/comes/in  (3 B)",
        "-    app/goes  (2 B)",
    ];
    assert_eq!(lines[..5], expected);
    assert!(
        lines[5].starts_with("added 1 file, 1 directory, 3 B; removed 1 file, 2 B; changed 1 file, 1 directory"),
        "{text}"
    );
    let all = world.json(["diff", "latest~1", "latest", "--metadata"]);
    assert_eq!(change(&all, "app/moded")["aspects"], serde_json::json!(["mode"]));
    assert_eq!(
        (&change(&all, "app/moded")["mode_before"], &change(&all, "app/moded")["mode"]),
        (&0o644.into(), &0o600.into())
    );
    assert_eq!(
        (&change(&all, "app/goes")["change"], &change(&all, "app/goes")["size_before"]),
        (&"removed".into(), &2.into())
    );
    assert_eq!((&all["summary"]["added"]["files"], &all["before"]["generation"]), (&1.into(), &1.into()));
    assert!(!all.to_string().contains("app/same"), "{all}");
    let back = world.json(["diff", "latest", "latest~1"]);
    assert_eq!(
        (&back["summary"]["added"], &back["summary"]["removed"]),
        (&all["summary"]["removed"], &all["summary"]["added"])
    );
    assert_eq!(world.ok(["diff", "latest", "latest"]).text(), "no differences\n");
    assert_eq!(world.ok(["diff", "latest:app/same", "latest~1:app/same"]).text(), "no differences\n");
    assert!(world.ok(["diff", "latest~1:app/changes", "latest:app/changes"]).text().starts_with("M    changes  (10 B"));
    world.run(["diff", "latest", "latest~5"]).expect(1);
    assert_eq!(world.run(["diff", "latest"]).status, 2);
}

/// Which table or index each page is of, by SQLite's own account, and the file's pages.
fn by_sqlite(path: &Path, page_bytes: usize) -> (BTreeMap<usize, String>, Vec<Vec<u8>>) {
    let db = Connection::open(path).unwrap();
    let mut query = db.prepare("SELECT pageno, name FROM dbstat").unwrap();
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)? as usize, row.get::<_, String>(1)?))).unwrap();
    let owners = rows.map(|row| row.unwrap()).collect();
    (owners, fs::read(path).unwrap().chunks(page_bytes).map(<[u8]>::to_vec).collect())
}

/// Changed and new pages of each table by SQLite's account, and the rows of each.
type Truth = (BTreeMap<String, u64>, BTreeMap<String, i64>);

fn rows(path: &Path) -> BTreeMap<String, i64> {
    let db = Connection::open(path).unwrap();
    let mut query = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
    let names: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(|name| name.unwrap()).collect();
    let count =
        |name: &String| db.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0)).unwrap();
    names.iter().map(|name| (name.clone(), count(name))).collect()
}

fn truth(before: &Path, after: &Path, page_bytes: usize) -> Truth {
    let (_, old) = by_sqlite(before, page_bytes);
    let (owners, new) = by_sqlite(after, page_bytes);
    let mut pages = BTreeMap::new();
    for (number, page) in (1..).zip(&new) {
        if number == 1 && old[0][100..] == page[100..] {
            // The file's header, which every write changes, is no row of the schema.
            continue;
        }
        if let Some(owner) = owners.get(&number).filter(|_| old.get(number - 1) != Some(page)) {
            *pages.entry(owner.clone()).or_insert(0) += 1;
        }
    }
    let (rows_before, rows_after) = (rows(before), rows(after));
    let mut more = BTreeMap::new();
    for name in rows_before.keys().chain(rows_after.keys()) {
        let of = |rows: &BTreeMap<String, i64>| rows.get(name).copied().unwrap_or(0);
        more.insert(name.clone(), of(&rows_after) - of(&rows_before));
    }
    (pages, more)
}

fn compare_with_sqlite(pragmas: &str, page_bytes: usize) {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(&format!("PRAGMA page_size={page_bytes}; {pragmas}")).unwrap();
    db.execute_batch(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, who TEXT, body TEXT); CREATE INDEX by_who ON messages(who);
         CREATE TABLE pairs(a TEXT PRIMARY KEY, b) WITHOUT ROWID;
         CREATE TABLE long(x BLOB); CREATE TABLE still(x); CREATE TABLE doomed(z); CREATE VIEW v AS SELECT * FROM long;
         CREATE TABLE \"a table with quite a long name, so that its row in the schema is longer than a small page\"(
           column_one, column_two, column_three, column_four, column_five, column_six, column_seven, column_eight);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 8000)
           INSERT INTO messages SELECT i, 'user ' || (i * 7919 % 1000), hex(randomblob(i % 60)) FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000)
           INSERT INTO pairs SELECT 'key ' || i, i FROM n;
         INSERT INTO still SELECT body FROM messages; INSERT INTO doomed SELECT who FROM messages;
         INSERT INTO long VALUES (randomblob(40000)), (randomblob(9));",
    )
    .unwrap();
    drop(db);
    world.ok(["create", "app"]);
    let before = world.at("before.db");
    fs::copy(&path, &before).unwrap();
    let steps = [
        "INSERT INTO messages(who, body) SELECT who, 'again' FROM messages WHERE id % 50 = 0;
         DELETE FROM pairs WHERE b <= 100",
        "DROP TABLE doomed; CREATE TABLE fresh(q); INSERT INTO fresh SELECT 'something' FROM messages LIMIT 500;
         INSERT INTO long VALUES (randomblob(60000))",
        "DELETE FROM messages WHERE id > 6000; UPDATE messages SET body = 'short' WHERE id % 100 = 3",
        "VACUUM",
    ];
    for (n, step) in steps.iter().enumerate() {
        Connection::open(&path).unwrap().execute_batch(step).unwrap();
        world.ok(["create", "app"]);
        let shown = world.json(["diff", "latest~1", "latest"]);
        let database = &change(&shown, "app/data.db")["database"];
        assert_eq!(database["tables_unknown"], Value::Null);
        let (pages, more) = truth(&before, &path, page_bytes);
        let tables = database["tables"].as_array().unwrap();
        let found: BTreeMap<String, u64> = tables
            .iter()
            .map(|table| (table["name"].as_str().unwrap().to_owned(), table["pages"].as_u64().unwrap()))
            .filter(|(_, pages)| *pages > 0)
            .collect();
        assert_eq!(found, pages, "step {n} of {pragmas} {page_bytes}");
        for table in tables.iter().filter(|table| table["type"] == "table" && table["name"] != "sqlite_schema") {
            let name = table["name"].as_str().unwrap();
            assert_eq!(table["rows_more"].as_i64(), Some(more[name]), "step {n}: {table}");
            if let (Some(after), Some(before)) = (table["rows"].as_i64(), table["rows_before"].as_i64()) {
                assert_eq!(after - before, more[name]);
                assert_eq!(after, rows(&path).get(name).copied().unwrap_or(0));
            }
        }
        for (name, more) in more {
            assert!(more == 0 || tables.iter().any(|table| table["name"] == name.as_str()), "step {n}: {name}");
        }
        let fate = |name: &str| tables.iter().find(|t| t["name"] == name).map(|t| t["change"].clone());
        if n == 1 {
            assert_eq!((fate("doomed"), fate("fresh")), (Some("removed".into()), Some("added".into())));
        }
        // What nobody touched stays out of it, unless SQLite moves it to where others were.
        assert!(n == 3 || pragmas.contains("FULL") || fate("still").is_none(), "{shown}");
        let (_, old) = by_sqlite(&before, page_bytes);
        let (owners, new) = by_sqlite(&path, page_bytes);
        let changed = old.iter().zip(&new).filter(|(a, b)| a != b).count() as u64;
        assert_eq!(database["pages_changed"].as_u64(), Some(changed));
        let unowned =
            (1..).zip(&new).filter(|(n, page)| !owners.contains_key(n) && old.get(n - 1) != Some(page)).count();
        let others = ["free", "overflow", "pointer_map", "lock"].map(|kind| database[kind].as_u64().unwrap());
        assert_eq!(others.iter().sum::<u64>(), unowned as u64, "step {n}: {database}");
        assert_eq!(database["header"].as_u64(), Some(u64::from(old[0][100..] == new[0][100..])), "step {n}");
        assert_eq!(others[1], 0, "no page of a long row is left over: {database}");
        fs::copy(&path, &before).unwrap();
    }
}

#[test]
fn tables_as_sqlite_sees_them() {
    compare_with_sqlite("", 4096);
    compare_with_sqlite("PRAGMA encoding='UTF-16'", 512);
}

#[test]
fn tables_of_databases_with_pointer_maps() {
    compare_with_sqlite("PRAGMA auto_vacuum=INCREMENTAL", 1024);
    compare_with_sqlite("PRAGMA auto_vacuum=FULL; PRAGMA encoding='UTF-16be'", 512);
}

#[test]
fn a_database_with_other_pages_or_no_sense() {
    let world = World::new();
    fs::create_dir(world.work("app")).unwrap();
    let path = world.work("app/data.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(x); CREATE TABLE u(y)").unwrap();
    world.ok(["create", "app"]);
    Connection::open(&path).unwrap().execute_batch("PRAGMA page_size=8192; VACUUM").unwrap();
    world.ok(["create", "app"]);
    let text = world.ok(["diff", "latest~1", "latest"]).text();
    assert!(text.contains("another length than before"), "{text}");
    // A root page that is none: the application's file is captured as it is, and its tables can't be told.
    let mut bytes = fs::read(&path).unwrap();
    bytes[8192] = 99;
    fs::write(&path, bytes).unwrap();
    world.ok(["create", "app"]);
    let shown = world.json(["diff", "latest~1", "latest"]);
    let database = &change(&shown, "app/data.db")["database"];
    assert_eq!(database["pages_changed"], 1);
    assert!(database["tables_unknown"].as_str().unwrap().contains("page 2"), "{database}");
}
