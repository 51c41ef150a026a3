//! Looking inside: `find`, `stats`, `cat`, and the forms of `ls`.

use std::fs;

use rusqlite::Connection;
use serde_json::Value;

use crate::world::{Dice, PROGRAM, Ran, World, run};

/// Path, and the first and last generation that have it.
fn hits(found: &Value) -> Vec<(String, u64, u64)> {
    let hit = |hit: &Value| {
        let generation = |of: &str| hit[of]["generation"].as_u64().unwrap();
        (hit["path"].as_str().unwrap().to_owned(), generation("first"), generation("last"))
    };
    found["matches"].as_array().unwrap().iter().map(hit).collect()
}

fn hit(path: &str, first: u64, last: u64) -> (String, u64, u64) {
    (path.into(), first, last)
}

#[test]
fn find_shows_ranges_of_generations() {
    let world = World::new();
    world.write("app/deep/stays.txt", "same");
    world.write("app/changes.txt", "one");
    let mut ids = vec![world.json(["create", "app"])["snapshot_id"].as_str().unwrap().to_owned()];
    world.write("app/deep/comes.TXT", "new");
    ids.push(world.json(["create", "app"])["snapshot_id"].as_str().unwrap().to_owned());
    fs::write(world.work("app/changes.txt"), "three").unwrap();
    ids.push(world.json(["create", "app", "--tag", "last"])["snapshot_id"].as_str().unwrap().to_owned());
    world.write("else/stays.txt", "elsewhere");
    world.ok(["create", "else", "--host", "other"]);

    let found = world.json(["find", "*.txt", "--source", world.work("app").to_str().unwrap()]);
    let expected = [hit("app/changes.txt", 1, 2), hit("app/changes.txt", 3, 3), hit("app/deep/stays.txt", 1, 3)];
    assert_eq!(hits(&found), expected);
    assert_eq!(found["snapshots_searched"], 3);
    let snapshots: Vec<&str> =
        found["matches"][2]["snapshots"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!((snapshots, &found["matches"][0]["count"]), (ids.iter().map(String::as_str).collect(), &2.into()));
    let first = &found["matches"][0];
    assert_eq!((&first["type"], &first["size"]), (&"file".into(), &3.into()));

    for (args, expected) in [
        (&["stays.txt"][..], &[hit("app/deep/stays.txt", 1, 3), hit("else/stays.txt", 1, 1)][..]),
        (&["stays.txt", "--host", "other"], &[hit("else/stays.txt", 1, 1)]),
        (&["/app/*.txt"], &[hit("app/changes.txt", 1, 2), hit("app/changes.txt", 3, 3)]),
        (&["-i", "COMES*"], &[hit("app/deep/comes.TXT", 2, 3)]),
        (&["*.txt", "--tag", "last"], &[hit("app/changes.txt", 3, 3), hit("app/deep/stays.txt", 3, 3)]),
        (&["changes.txt", "--latest", "1"], &[hit("app/changes.txt", 3, 3)]),
        (&["changes.txt", "--snapshot", &ids[0], "--snapshot", &ids[0][..9]], &[hit("app/changes.txt", 1, 1)]),
        (&["*", "--snapshot", "latest:else"], &[hit("else/stays.txt", 1, 1)]),
        (&["deep", "--type", "dir", "--latest", "1"], &[hit("app/deep", 3, 3)]),
        (&["deep", "--type", "file"], &[]),
        (&["stays.txt", "--newer", "1h", "--host", "other"], &[hit("else/stays.txt", 1, 1)]),
        (&["stays.txt", "--older", "1h"], &[]),
        (&["stays.txt", "--newer", "2200-01-01"], &[]),
    ] {
        assert_eq!(hits(&world.json(["find"].iter().chain(args))), expected, "{args:?}");
    }
    let text = world.ok(["find", "*.txt", "-l"]).text();
    let range = format!("1-3  {}..{}  -rw", &ids[0][..8], &ids[2][..8]);
    assert!(text.contains(&range) && text.contains("3 snapshots searched"), "{text}");
    let nothing = world.ok(["find", "nowhere"]);
    assert!(nothing.text().is_empty() && nothing.stderr.contains("nothing found in 4 snapshots"), "{}", nothing.stderr);
    assert_eq!(world.run(["find"]).status, 2);
    assert_eq!(world.run(["find", "a{b"]).status, 2);
    world.run(["find", "a", "--snapshot", "ffffffff"]).expect(1);
    world.run(["find", "a", "--snapshot", "latest:nowhere"]).expect(1).names(["nowhere"]);
}

#[test]
fn what_cannot_be_read_is_named_with_status_1() {
    let world = World::new();
    world.write("app/a.txt", "1");
    world.ok(["create", "app"]);
    let before = world.objects();
    world.write("app/b.txt", "2");
    world.ok(["create", "app"]);
    let new: Vec<_> =
        world.objects().into_iter().filter(|o| o.starts_with("packs/m/") && !before.contains(o)).collect();
    for object in new {
        fs::write(world.at("repo").join(object), [0; 600]).unwrap();
    }
    for args in [&["find", "*.txt"][..], &["diff", "latest~1", "latest"], &["stats"], &["stats", "latest"]] {
        let ran = world.run(args).expect(1);
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
    assert!(world.run(["find", "*.txt"]).text().contains("app/a.txt"), "the other snapshot is searched");
}

#[test]
fn stats_add_up() {
    let world = World::new();
    world.write("app/stays", Dice::new(1).bytes(3 << 20));
    world.write("app/changes", Dice::new(2).bytes(1 << 20));
    world.ok(["create", "app"]);
    world.write("app/changes", Dice::new(3).bytes(1 << 20));
    world.ok(["create", "app"]);
    world.write("other/text", "repeated ".repeat(100_000));
    world.ok(["create", "other"]);

    let stats = world.json(["stats"]);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {stats}"));
    let app = &stats["sources"][0];
    let mega = 1u64 << 20;
    let near = |value: &Value, expected: u64| {
        let n = number(value);
        assert!((expected..expected + 20_000).contains(&n), "{n} is not just above {expected}: {stats}");
    };
    near(&app["unique"]["plain"], 5 * mega);
    near(&app["unique"]["stored"], 5 * mega);
    near(&app["snapshots"][0]["alone"]["stored"], mega);
    near(&app["snapshots"][1]["alone"]["stored"], mega);
    near(&stats["whole"]["unique"]["plain"], 5 * mega + 900_000);
    assert_eq!((number(&app["logical"]), number(&stats["whole"]["snapshot_count"])), (8 * mega, 3));
    assert!(stats["whole"]["compression"].as_f64().unwrap() > 1.1);
    let on_disk: u64 = world.objects().iter().map(|o| fs::metadata(world.at("repo").join(o)).unwrap().len()).sum();
    let overhead = &stats["overhead"];
    assert_eq!(number(&overhead["total"]), on_disk);
    let sum = |parts: &[&str]| parts.iter().map(|part| number(&overhead[*part])).sum::<u64>();
    assert_eq!(sum(&["packs", "condemned", "unknown_packs", "index", "other"]), on_disk);
    let held = sum(&["directories", "padding", "unused"]) + number(&stats["whole"]["unique"]["stored"]);
    assert!(held.abs_diff(number(&overhead["packs"])) < 3, "{stats}");

    // What it says would be freed becomes unused.
    let first = app["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let one = world.json(["stats", &first]);
    assert_eq!((&one["alone"], &one["files"]), (&app["snapshots"][0]["alone"], &2.into()));
    world.ok(["forget", &first]);
    let after = world.json(["stats"]);
    let unused = number(&after["overhead"]["unused"]) - number(&overhead["unused"]);
    assert!(unused.abs_diff(number(&one["alone"]["stored"])) < 3, "{after}");
    world.ok(["prune", "--instant", "--max-unused", "0"]);
    assert!(number(&world.json(["stats"])["overhead"]["unused"]) < 3);

    let filtered = world.json(["stats", "--source", world.work("other").to_str().unwrap()]);
    assert_eq!(filtered["sources"].as_array().unwrap().len(), 1);
    assert_eq!(filtered["whole"], world.json(["stats"])["whole"]);
    let part = world.json(["stats", "latest:other"]);
    assert_eq!((&part["files"], &part["path"]), (&1.into(), &"other".into()));
    let text = world.ok(["stats"]).text();
    assert!(text.contains("whole repository: 2 snapshots") && text.contains("padding"), "{text}");
    world.run(["stats", "latest:other/text"]).expect(1);
}

#[test]
fn cat_shows_every_kind_of_object() {
    let world = World::new();
    world.write("app/file", "the bytes of a file");
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES ('a')").unwrap();
    drop(db);
    let created = world.json(["create", "app"]);
    let id = created["snapshot_id"].as_str().unwrap();
    let cat = |args: &[&str]| {
        let ran = world.ok(["cat"].iter().chain(args));
        // For people and for programs it is the same, but for the version.
        let mut document = world.json(["cat"].iter().chain(args));
        if let Some(object) = document.as_object_mut() {
            assert_eq!(object.remove("version"), Some(1.into()), "{args:?}");
        }
        assert_eq!(ran.json(), document, "{args:?}");
        ran.json()
    };
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
    assert_eq!(cat(&["config"])["id"].as_str().unwrap().len(), 32);
    let keys = cat(&["key"]);
    assert_eq!((keys.as_array().unwrap().len(), &keys[0]["kind"]), (1, &"key-file".into()));
    let secret = fs::read_to_string(world.at("key")).unwrap();
    let secret = secret.trim().rsplit(' ').next().unwrap();
    assert!(!keys.to_string().contains(secret) && keys[0].get("wrapped").is_none());
    assert_eq!(cat(&["key", &text(&keys[0]["id"])[..6]]), keys[0]);

    let snapshot = cat(&["snapshot", &id[..8]]);
    assert_eq!((&snapshot["id"], &snapshot["forgotten"]), (&id.into(), &false.into()));
    assert_eq!(cat(&["snapshot", "latest"]), snapshot);
    let root = cat(&["tree", &text(&snapshot["tree"])]);
    assert_eq!(root["nodes"][0]["name"], "app");
    let app = cat(&["tree", "latest:app"]);
    assert_eq!(app["id"], root["nodes"][0]["tree"]);
    let map = cat(&["map", &text(&app["nodes"][0]["database"]["map"])]);
    assert_eq!((&map["part"], &map["page_bytes"]), (&"root".into(), &4096.into()));
    assert_eq!(cat(&["map", "latest:app/data.db"]), map);
    let leaf = cat(&["map", &text(&map["children"][0])]);
    assert_eq!(leaf["entries"].as_array().unwrap().len() as u64, map["pages"].as_u64().unwrap());
    let chunk = text(&app["nodes"][1]["content"]["ids"][0]);
    assert_eq!(world.ok(["cat", "blob", &chunk[..10]]).stdout, b"the bytes of a file");
    assert!(world.ok(["cat", "blob", &text(&leaf["entries"][0]["segment"])]).stdout.starts_with(b"SQLite format 3\0"));
    let place = world.json(["cat", "blob", &chunk]);
    let pack = cat(&["pack", &text(&place["places"][0]["pack"])[..12]]);
    let frame = &pack["frames"][place["places"][0]["frame"].as_u64().unwrap() as usize];
    assert!(frame["blobs"].as_array().unwrap().iter().any(|blob| blob["id"] == chunk.as_str()));
    let index = cat(&["index"]);
    assert!(index["different_blobs"].as_u64() > Some(4));
    let file = cat(&["index", &text(&index["files"][0]["id"])]);
    assert!(file["blobs"].as_array().unwrap().len() >= 5);
    assert_eq!((cat(&["session"]), cat(&["gc"])), (Value::Array(vec![]), Value::Array(vec![])));

    world.ok(["forget", id]);
    assert_eq!(cat(&["snapshot", &id[..8]])["forgotten"], true);
    world.write("app/file", "other bytes");
    world.ok(["create", "app"]);
    world.ok(["prune"]);
    let record = cat(&["gc"])[0].clone();
    assert!(!record["packs"].as_array().unwrap().is_empty());
    assert_eq!(cat(&["gc", &text(&record["id"])[..8]]), record);

    assert_eq!(world.run(["cat", "blob"]).status, 2);
    assert_eq!(world.run(["cat", "nonsense"]).status, 2);
    for wrong in [["blob", "00ff00ff00"], ["pack", "xyz"], ["tree", &chunk], ["map", "latest:app/file"], ["key", "zz"]]
    {
        assert!(world.run(["cat"].iter().chain(&wrong)).expect(1).stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn ls_in_all_its_forms() {
    let world = World::new();
    let file = world.write("app/b/file", vec![7; 3000]);
    fs::hard_link(&file, world.work("app/b/second")).unwrap();
    std::os::unix::fs::symlink("b/file", world.work("app/link")).unwrap();
    let db = Connection::open(world.work("app/data.db")).unwrap();
    db.execute_batch("PRAGMA page_size=1024; CREATE TABLE t(x)").unwrap();
    drop(db);
    world.ok(["create", "app"]);
    let tree = "└── app\n    ├── b\n    │   ├── file\n    │   └── second\n    ├── data.db\n    └── link\n";
    assert_eq!(world.ok(["ls", "--tree", "latest"]).text(), tree);
    let line = |ran: Ran, name: &str| {
        let text = ran.text();
        text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    };
    let long = line(world.ok(["ls", "-l", "latest"]), "data.db");
    assert!(
        long.starts_with("-rw")
            && long.contains("* ")
            && long.ends_with("(database: 2 pages of 1024 bytes, 1 table, 0 rows)"),
        "{long}"
    );
    assert!(line(world.ok(["ls", "-l", "latest"]), "b/second").ends_with("(hard link 1)"));
    assert!(line(world.ok(["ls", "-l", "--human", "latest"]), "b/second").contains(" 2.9 KiB "));
    let user = rustix::process::geteuid().as_raw().to_string();
    let numeric = line(world.ok(["ls", "-l", "-n", "latest"]), "app/link");
    assert!(numeric.split_whitespace().nth(1) == Some(&user) && numeric.ends_with("app/link -> b/file"), "{numeric}");
    let named = world.json(["ls", "latest"]);
    let nodes = named["nodes"].as_array().unwrap();
    let node = |path: &str| nodes.iter().find(|node| node["path"] == path).unwrap();
    assert_eq!((&node("app/data.db")["database"]["pages"], &node("app/link")["target"]), (&2.into(), &"b/file".into()));
    assert_eq!(node("app/b/file")["hard_link"], node("app/b/second")["hard_link"]);
    assert!(node("app/b/file")["ctime"].is_string() && node("app/b/file")["inode"].is_u64());
    if crate::world::is_root() {
        assert_eq!((&node("app")["user"], &node("app")["group"]), (&"root".into(), &"root".into()));
    }
}

#[test]
fn no_name_commands_a_terminal() {
    let world = World::new();
    world.write("app/a\u{1b}[2Jb\u{9b}c", "1");
    world.ok(["create", "app"]);
    world.write("app/a\u{1b}[2Jb\u{9b}c", "changed");
    world.ok(["create", "app"]);
    for command in
        ["find 'a*'", "find -l 'a*'", "ls latest", "ls -l --tree latest", "diff latest~1 latest", "cat tree latest:app"]
    {
        let mut terminal = world.command_of("script");
        terminal.args(["-qec", &format!("{PROGRAM} {command}"), "/dev/null"]);
        let shown = run(&mut terminal).expect(0).text();
        assert!(
            shown.contains("2Jb") && !shown.contains("\u{1b}[2J") && !shown.contains('\u{9b}'),
            "{command}: {shown:?}"
        );
        let piped = world.command_of("sh").args(["-c", &format!("{PROGRAM} {command}")]).output().unwrap().stdout;
        let piped = String::from_utf8(piped).unwrap();
        // JSON has its own way of writing control characters.
        assert!(piped.contains('\u{9b}') && (command.starts_with("cat") || piped.contains("\u{1b}[2J")), "{command}");
    }
    for refused in ["dump latest", "cat blob 00"] {
        let mut terminal = world.command_of("script");
        terminal.args(["-qec", &format!("{PROGRAM} {refused}"), "/dev/null"]);
        assert_eq!(run(&mut terminal).status, 1, "{refused}");
    }
}
