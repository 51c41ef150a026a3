use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::format::tree::{Node, Xattr};
use crate::id::BlobId;
use crate::job::sample::{CHUNK_BYTES, Sample, noise};

pub(super) fn options(target: &Path) -> Options {
    Options { target: target.to_path_buf(), ..Options::default() }
}

/// Restores and returns what was done, with the problems by severity.
pub(super) fn restore(
    sample: &Sample,
    selected: &Selected,
    options: &Options,
) -> (Result<Summary>, Vec<(Severity, String)>) {
    let reporter = Reporter::silent();
    let done = run(&sample.repo, selected, options, &reporter);
    let problems = reporter.problems().into_iter().map(|p| (p.severity, format!("{}: {}", p.what, p.why))).collect();
    (done, problems)
}

pub(super) fn restored(sample: &Sample, selected: &Selected, options: &Options) -> Summary {
    let (done, problems) = restore(sample, selected, options);
    assert!(problems.iter().all(|p| p.0 == Severity::Note), "{problems:?}");
    done.unwrap()
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn at(path: &str) -> Vec<Vec<u8>> {
    crate::repo::split_path(path.as_bytes())
}

#[test]
fn every_kind_of_node_comes_back() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let big = noise(1, CHUNK_BYTES * 5 + 77);
    let data = noise(2, 9000);
    let sparse =
        Node { size: Some(1 << 20), extents: Some(vec![4096, 5000, 100_000, 4000]), ..sample.file("sparse", &data) };
    let xattr = Xattr { name: b"user.note".to_vec().into(), value: b"hi".to_vec().into() };
    let big_node = Node { mode: 0o400, xattrs: Some(vec![xattr]), uid: 1234, gid: 2345, ..sample.file("big", &big) };
    let first = Node { hard_link: Some(9), ..sample.file("first", b"the same") };
    let second = Node { name: b"second".to_vec().into(), ..first.clone() };
    let inner = vec![sample.file("inner", b"inside")];
    let link = Node { target: Some(b"/nowhere/at all".to_vec().into()), ..Node::bare(b"link", NodeKind::Symlink) };
    let nodes = vec![
        Node { mode: 0o555, ..sample.directory("dir", inner) },
        sample.directory("void", vec![]),
        sample.file("empty", b""),
        Node { name: vec![0xff, b'x'].into(), ..sample.file("", b"not UTF-8") },
        big_node,
        sparse,
        first,
        second,
        link,
        Node { mode: 0o622, ..Node::bare(b"pipe", NodeKind::Fifo) },
        Node::bare(b"socket", NodeKind::Socket),
    ];
    let selected = sample.snapshot(nodes);
    let target = temp.path().join("made/target");
    let (done, problems) = restore(&sample, &selected, &options(&target));
    assert!(problems.iter().all(|p| p.0 == Severity::Note) && problems.iter().any(|p| p.1.contains("socket")));
    let done = done.unwrap();
    assert_eq!((done.files, done.directories, done.others), (7, 2, 2), "{problems:?}");

    assert_eq!(fs::read(target.join("big")).unwrap(), big);
    let meta = fs::metadata(target.join("big")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o400, 1_600_000_000, 123_456_789));
    if rustix::process::geteuid().is_root() {
        assert_eq!((meta.uid(), meta.gid()), (1234, 2345));
    }
    let mut value = [0; 8];
    if let Ok(n) = rustix::fs::getxattr(target.join("big"), "user.note", &mut value[..]) {
        assert_eq!(&value[..n], b"hi");
    } else {
        assert!(problems.iter().any(|p| p.1.contains("user.note")), "{problems:?}");
    }
    let mut want = vec![0; 1 << 20];
    want[4096..9096].copy_from_slice(&data[..5000]);
    want[100_000..104_000].copy_from_slice(&data[5000..]);
    assert_eq!(fs::read(target.join("sparse")).unwrap(), want);
    assert!(fs::metadata(target.join("sparse")).unwrap().blocks() < 200);
    let inode = |name| fs::metadata(target.join(name)).unwrap().ino();
    assert_eq!(inode("first"), inode("second"));
    assert_eq!(fs::read(target.join("second")).unwrap(), b"the same");
    assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("/nowhere/at all"));
    let pipe = fs::metadata(target.join("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo() && pipe.mode() & 0o7777 == 0o622);
    let dir = fs::metadata(target.join("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime(), dir.mtime_nsec()), (0o555, 1_500_000_000, 1));
    assert_eq!(fs::read(target.join("dir/inner")).unwrap(), b"inside");
    assert_eq!(fs::read(target.join("empty")).unwrap(), b"");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 10);
    fs::set_permissions(target.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn thousands_of_small_files_share_frames() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let mut dirs = vec![];
    for d in 0..8u8 {
        let files: Vec<_> = (0..300).map(|n| (format!("f{n}"), noise(d, 40 + n))).collect();
        let nodes = sample.small_files(&files);
        dirs.push(sample.directory(&format!("d{d}"), nodes));
    }
    let selected = sample.snapshot(dirs);
    assert_eq!(restored(&sample, &selected, &options(temp.path())).files, 2400);
    assert_eq!(fs::read(temp.path().join("d7/f299")).unwrap(), noise(7, 339));
    assert_eq!(names(&temp.path().join("d3")).len(), 300, "no temporary name is left");
}

#[test]
fn a_part_is_restored_by_sub_path_and_by_patterns() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let files = vec![sample.file("a.log", b"log"), sample.file("b.txt", b"text")];
    let app = sample.directory("app", files);
    let other = sample.file("c.txt", b"other");
    let home = vec![app, other];
    let home = sample.directory("home", home);
    let mut selected = sample.snapshot(vec![home]);
    let target = |n: &str| temp.path().join(n);

    selected.sub_path = at("home/app");
    restored(&sample, &selected, &options(&target("sub")));
    assert_eq!(names(&target("sub")), ["a.log", "b.txt"]);
    assert_eq!(fs::metadata(target("sub")).unwrap().mode() & 0o7777, 0o750);
    selected.sub_path = at("home/app/b.txt");
    restored(&sample, &selected, &options(&target("file")));
    assert_eq!(names(&target("file")), ["b.txt"]);
    selected.sub_path = at("home/nothing");
    assert!(matches!(restore(&sample, &selected, &options(&target("x"))).0, Err(Error::Unknown { .. })));

    selected.sub_path = vec![];
    let include = Options { include: vec!["/home/*.txt".into()], ..options(&target("include")) };
    assert_eq!(restored(&sample, &selected, &include).files, 1);
    assert_eq!(names(&target("include/home")), ["c.txt"]);
    let exclude = Options { exclude: vec!["*.log".into()], ..options(&target("exclude")) };
    restored(&sample, &selected, &exclude);
    assert_eq!(names(&target("exclude/home/app")), ["b.txt"]);
    let nothing = Options { include: vec!["nothing".into()], ..options(&target("nothing")) };
    assert!(matches!(restore(&sample, &selected, &nothing).0, Err(Error::Unknown { .. })));

    let dry = Options { dry_run: true, ..options(&target("dry")) };
    let planned = restored(&sample, &selected, &dry).planned;
    assert_eq!(planned.len(), 5);
    assert_eq!(planned[4].path, target("dry/home/c.txt"));
    assert!(!target("dry").exists());
}

#[test]
fn what_is_damaged_is_absent_and_the_rest_is_there() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let data = noise(3, CHUNK_BYTES * 3);
    let bad = sample.file("bad", &data);
    let chunk = bad.content.as_ref().unwrap().ids().unwrap()[1];
    let good = sample.file("good", b"good");
    sample.flush();
    let lost = sample.file("lost", b"in a pack of its own");
    let lost_chunk = lost.content.as_ref().unwrap().ids().unwrap()[0];
    sample.flush();
    let inner = vec![sample.file("x", b"x")];
    let no_tree = Node { tree: Some(BlobId([9; 32])), ..sample.directory("no-tree", inner) };
    let selected = sample.snapshot(vec![bad, good, lost, no_tree]);
    sample.damage(&chunk, 0);
    sample.lose_pack(&lost_chunk);

    let (done, problems) = restore(&sample, &selected, &options(temp.path()));
    assert_eq!(done.unwrap().files, 1);
    assert_eq!(names(temp.path()), ["good"]);
    let lost = |name: &str| problems.iter().any(|p| p.0 == Severity::Restore && p.1.contains(name));
    assert!(problems.len() == 3 && lost("/bad") && lost("/lost") && lost("no-tree"), "{problems:?}");

    // A second copy in another pack mends it.
    sample.chunks(&data);
    sample.flush();
    let target = temp.path().join("again");
    restore(&sample, &selected, &options(&target)).0.unwrap();
    assert_eq!(fs::read(target.join("bad")).unwrap(), data);
}

#[test]
fn planted_links_are_never_followed() {
    let temp = TempDir::new().unwrap();
    let (outside, target) = (temp.path().join("outside"), temp.path().join("target"));
    fs::create_dir_all(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"precious").unwrap();
    symlink(&outside, target.join("dir")).unwrap();
    symlink(outside.join("precious"), target.join("file")).unwrap();
    let mut sample = Sample::new();
    let inner = vec![sample.file("precious", b"overwritten")];
    let nodes = vec![sample.directory("dir", inner), sample.file("file", b"new")];
    let selected = sample.snapshot(nodes);
    let overwrite = Options { overwrite: Some(Overwrite::Always), ..options(&target) };
    let (done, problems) = restore(&sample, &selected, &overwrite);
    assert_eq!((done.unwrap().files, problems.len()), (1, 1), "{problems:?}");
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    assert_eq!(names(&outside), ["precious"]);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"new");

    restored(&sample, &selected, &Options { force: true, ..options(&target) });
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    assert_eq!(fs::read(target.join("dir/precious")).unwrap(), b"overwritten");
    assert!(!target.join("dir").is_symlink());
}

#[test]
fn a_target_in_use_is_refused_and_overwrite_decides() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let nodes = vec![sample.file("a", b"from the snapshot"), sample.file("b", b"b")];
    let selected = sample.snapshot(nodes);
    fs::write(temp.path().join("a"), b"mine").unwrap();
    let left = format!(".snapshot-restore-{}-{}", "0".repeat(16), "1".repeat(8));
    fs::write(temp.path().join(&left), b"half").unwrap();
    assert!(matches!(restore(&sample, &selected, &options(temp.path())).0, Err(Error::Refused { .. })));
    assert_eq!(names(temp.path()), [left.as_str(), "a"]);

    let with = |overwrite| Options { overwrite: Some(overwrite), ..options(temp.path()) };
    assert_eq!(restored(&sample, &selected, &with(Overwrite::Never)).skipped, 1);
    assert_eq!(fs::read(temp.path().join("a")).unwrap(), b"mine");
    assert_eq!(names(temp.path()), ["a", "b"], "what a killed restore left is cleared");
    let changed = restored(&sample, &selected, &with(Overwrite::IfChanged));
    assert_eq!((changed.files, changed.skipped), (1, 1));
    assert_eq!(fs::read(temp.path().join("a")).unwrap(), b"from the snapshot");
    assert_eq!(restored(&sample, &selected, &with(Overwrite::Always)).files, 2);
    fs::write(temp.path().join("file"), b"").unwrap();
    assert!(matches!(restore(&sample, &selected, &options(&temp.path().join("file"))).0, Err(Error::File { .. })));
}

#[test]
fn where_the_first_name_is_lost_the_second_is_written() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let first = Node { hard_link: Some(1), ..sample.file("1", b"shared") };
    let again = |name: &[u8]| Node { name: name.to_vec().into(), ..first.clone() };
    let nodes = vec![first.clone(), again(b"2"), again(b"3")];
    let selected = sample.snapshot(nodes);
    fs::create_dir_all(temp.path().join("1/full")).unwrap();
    let (done, problems) =
        restore(&sample, &selected, &Options { overwrite: Some(Overwrite::Always), ..options(temp.path()) });
    assert_eq!((done.unwrap().files, problems.len()), (2, 1), "{problems:?}");
    let inode = |name| fs::metadata(temp.path().join(name)).unwrap().ino();
    assert_eq!(inode("2"), inode("3"));
    // Links to the same file as before: nothing is left under a temporary name.
    let (_, problems) =
        restore(&sample, &selected, &Options { overwrite: Some(Overwrite::Always), ..options(temp.path()) });
    assert_eq!(problems.len(), 1);
    assert_eq!(names(temp.path()), ["1", "2", "3"]);
}

#[test]
fn an_interrupt_and_a_full_disk_end_the_restore() {
    static STOP: AtomicBool = AtomicBool::new(true);
    struct Quiet;
    impl crate::report::Sink for Quiet {
        fn problem(&self, _: &crate::report::Problem) {}
    }
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let nodes = vec![sample.file("a", &noise(1, 50_000)), sample.file("empty", b"")];
    let selected = sample.snapshot(nodes);
    let reporter = Reporter::new(Box::new(Quiet), &STOP);
    let options = options(temp.path());
    assert!(matches!(run(&sample.repo, &selected, &options, &reporter), Err(Error::Interrupted)));
    assert_eq!(names(temp.path()), [".snapshot-restore"], "only the mark for the next run");

    let context = Context::new(&sample.repo, &options, &reporter, Owners::default());
    let full = |kind: std::io::ErrorKind| context.lose(temp.path(), Error::file("write", temp.path(), kind));
    assert!(matches!(full(std::io::ErrorKind::StorageFull), Err(Error::File { .. })));
    assert!(full(std::io::ErrorKind::PermissionDenied).is_ok());
    assert_eq!(reporter.worst(), Some(Severity::Restore));
}

/// A database file, and the same after an update.
fn two_generations(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let path = dir.join("source.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA synchronous = off; PRAGMA page_size = 1024; CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        .unwrap();
    for id in 0..600 {
        db.execute("INSERT INTO t VALUES (?1, ?2)", (id, noise(id as u8, 300))).unwrap();
    }
    let before = fs::read(&path).unwrap();
    db.execute("UPDATE t SET v = 'short' || v WHERE id % 97 = 5", ()).unwrap();
    (before, fs::read(&path).unwrap())
}

pub(super) const PAGE: usize = 1024;

/// A snapshot of the first generation, and one of the second that stores its changed pages as a delta.
fn database_sample(before: &[u8], after: &[u8]) -> (Sample, [Selected; 2], Vec<BlobId>) {
    let mut sample = Sample::new();
    let mut pages = sample.pages(PAGE, before);
    let first = sample.database("data.db", PAGE, before, &pages);
    let first = sample.snapshot(vec![first]);
    let (old, new): (Vec<_>, Vec<_>) = (before.chunks(PAGE).collect(), after.chunks(PAGE).collect());
    assert!(new.len() >= old.len());
    let mut changed: Vec<_> = (0..new.len()).filter(|n| old.get(*n) != Some(&new[*n])).collect();
    let fresh: Vec<_> = changed.extract_if(.., |n| *n >= old.len()).collect();
    assert!(changed.len() > 3, "{}", changed.len());
    // The base segment holds the older versions in its first slots.
    let older: Vec<u8> = changed.iter().take(60).flat_map(|n| old[*n]).copied().collect();
    let newer: Vec<u8> = changed.iter().take(60).flat_map(|n| new[*n]).copied().collect();
    let base = sample.segment(PAGE, &older, None)[0].segment;
    let delta = sample.segment(PAGE, &newer, Some((base, &older)));
    let ids = vec![base, delta[0].segment];
    for (n, page) in changed.iter().zip(delta) {
        pages[*n] = page;
    }
    for n in changed.into_iter().skip(60).chain(fresh) {
        let page = sample.segment(PAGE, new[n], None)[0];
        if n < pages.len() { pages[n] = page } else { pages.push(page) }
    }
    let second = sample.database("data.db", PAGE, after, &pages);
    let second = sample.snapshot(vec![second]);
    (sample, [first, second], ids)
}

#[test]
fn a_database_comes_back_byte_for_byte_and_no_old_wal_blends_in() {
    let temp = TempDir::new().unwrap();
    let (before, after) = two_generations(temp.path());
    let (sample, [first, second], ids) = database_sample(&before, &after);
    let target = temp.path().join("target");
    let db = target.join("data.db");
    let verify = Options { verify: true, ..options(&target) };
    let done = restored(&sample, &first, &verify);
    assert_eq!((done.databases, done.verified_databases, done.bytes), (1, 1, before.len() as u64));
    assert_eq!(fs::read(&db).unwrap(), before);

    let wal = target.join("data.db-wal");
    fs::write(&wal, b"old").unwrap();
    fs::write(target.join("data.db-shm"), vec![0; 32 << 10]).unwrap();
    fs::write(target.join("data.db-journal"), b"old").unwrap();
    // Equal in size and time, but its WAL may hold more: not left as it is.
    let overwrite = Options { overwrite: Some(Overwrite::IfChanged), ..verify.clone() };
    assert_eq!(restored(&sample, &first, &overwrite).databases, 1);
    assert_eq!(names(&target), ["data.db"]);
    assert_eq!(restored(&sample, &second, &overwrite).databases, 1);
    assert_eq!(fs::read(&db).unwrap(), after);
    assert_eq!(restored(&sample, &second, &overwrite).skipped, 1);
    let by_content = Options { dry_run: true, verify_content: true, ..overwrite.clone() };
    let dry = |selected| restored(&sample, selected, &by_content).planned;
    assert_eq!((dry(&second)[0].action, dry(&first)[0].action), (Action::Keep, Action::Replace));
    // In place, only pages that differ are fetched.
    let in_place = Options { in_place: true, ..verify.clone() };
    let done = restored(&sample, &first, &in_place);
    assert_eq!((done.databases, done.verified_databases), (1, 1));
    assert!(done.fetched > 0 && done.fetched < done.reused && done.fetched + done.reused == done.bytes, "{done:?}");
    assert_eq!(fs::read(&db).unwrap(), before);
    restored(&sample, &second, &overwrite);

    // Somebody has it open.
    let shm = fs::File::options().create_new(true).read(true).write(true).open(target.join("data.db-shm")).unwrap();
    let lock = shm_lock();
    fcntl(&shm, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let always = Options { overwrite: Some(Overwrite::Always), ..options(&target) };
    let refused = restore(&sample, &first, &always).0.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }) && refused.to_string().contains("open"), "{refused}");
    assert_eq!(fs::read(&db).unwrap(), after);
    restored(&sample, &first, &Options { force: true, ..always.clone() });
    assert_eq!(fs::read(&db).unwrap(), before);

    // Without its base the delta is lost, and so is the whole database: what is there stays.
    sample.damage(&ids[0], 0);
    sample.repo.forget_bases();
    let (done, problems) = restore(&sample, &second, &always);
    assert_eq!((done.unwrap().databases, problems.len()), (0, 1), "{problems:?}");
    assert_eq!(names(&target), ["data.db"]);
    assert_eq!(fs::read(&db).unwrap(), before);
}

/// A shared lock on the byte that everyone holds who has the database open.
fn shm_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 128,
        l_len: 1,
        l_pid: 0,
    }
}

#[test]
fn a_database_that_is_not_the_captured_one_is_absent() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let file = noise(5, PAGE * 130);
    let pages = sample.pages(PAGE, &file);
    let mut swapped = pages.clone();
    swapped.swap(3, 100);
    let nodes = vec![
        sample.database("good", PAGE, &file, &pages),
        sample.database("swapped", PAGE, &file, &swapped),
        Node { unverified: Some("it is encrypted".into()), ..sample.file("plain.db", b"?") },
    ];
    let selected = sample.snapshot(nodes);
    let (done, problems) = restore(&sample, &selected, &Options { verify: true, ..options(temp.path()) });
    let done = done.unwrap();
    assert_eq!((done.databases, done.verified_databases), (1, 0));
    assert_eq!(names(temp.path()), ["good", "plain.db"]);
    let count = |s| problems.iter().filter(|p| p.0 == s).count();
    assert_eq!((count(Severity::Restore), count(Severity::Note)), (2, 1), "{problems:?}");
    assert!(problems.iter().any(|p| p.1.contains("good") && p.1.contains("not sound")), "{problems:?}");
}
