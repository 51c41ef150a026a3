use std::fs;

use tempfile::TempDir;

use super::tests::{PAGE, names, options, restored};
use super::*;
use crate::format::tree::Node;
use crate::job::sample::{CHUNK_BYTES, Sample, noise};

#[test]
fn what_a_killed_restore_left_is_gone_on_with() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let data = noise(9, (1 << 20) + 3 * CHUNK_BYTES);
    let zeros = [vec![0; PAGE], noise(4, PAGE * 1500)].concat();
    let pages = sample.pages(PAGE, &zeros);
    let nodes = vec![sample.file("big", &data), sample.database("db", PAGE, &zeros, &pages)];
    let selected = sample.snapshot(nodes);
    let target = Folder::target(temp.path()).unwrap();
    let options = Options { overwrite: Some(Overwrite::IfChanged), ..options(temp.path()) };
    // Half of each is there; the rest, the page of zeros as well, is something else.
    for (name, whole) in [("big", &data), ("db", &zeros)] {
        let left = target.temporary(name.as_bytes());
        left.make_file().unwrap();
        left.set_len(whole.len() as u64 + 5).unwrap();
        left.write_at(&vec![7; PAGE], 0).unwrap();
        left.write_at(&whole[whole.len() / 2..], whole.len() as u64 / 2).unwrap();
        target.keep_unfinished();
    }
    assert_eq!(names(temp.path()).len(), 2);
    let done = restored(&sample, &selected, &options);
    assert!(done.reused > done.bytes * 2 / 5 && done.reused < done.bytes * 3 / 5, "{done:?}");
    assert_eq!(names(temp.path()), ["big", "db"]);
    assert_eq!(fs::read(temp.path().join("big")).unwrap(), data);
    assert_eq!(fs::read(temp.path().join("db")).unwrap(), zeros);
}

#[test]
fn a_sparse_file_is_gone_on_with_and_its_holes_are_empty() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let data = noise(2, CHUNK_BYTES * 4);
    let extents = Some(vec![65_536, data.len() as u64 / 2, 1_000_000, data.len() as u64 / 2]);
    let node = Node { size: Some(2 << 20), extents, ..sample.file("sparse", &data) };
    let selected = sample.snapshot(vec![node]);
    let mut want = vec![0; 2 << 20];
    want[65_536..65_536 + data.len() / 2].copy_from_slice(&data[..data.len() / 2]);
    want[1_000_000..1_000_000 + data.len() / 2].copy_from_slice(&data[data.len() / 2..]);
    // What is there has data where holes must be, and half of the data.
    let mut there = want.clone();
    there[..65_536].fill(1);
    there[500_000..1_000_000 + CHUNK_BYTES].fill(2);
    there.extend([3; 1000]);
    let path = temp.path().join("sparse");
    fs::write(&path, &there).unwrap();
    let in_place = Options { in_place: true, verify: true, ..options(temp.path()) };
    let done = restored(&sample, &selected, &in_place);
    assert_eq!((done.reused, done.fetched), (3 * CHUNK_BYTES as u64, CHUNK_BYTES as u64));
    assert!(fs::read(&path).unwrap() == want && done.verified_files == 1);
    let target = Folder::target(temp.path()).unwrap();
    let left = target.temporary(b"sparse");
    left.make_file().unwrap();
    left.write_at(&there, 0).unwrap();
    target.keep_unfinished();
    drop(left);
    fs::remove_file(&path).unwrap();
    restored(&sample, &selected, &in_place);
    assert!(fs::read(&path).unwrap() == want);
    // Equal but for something in a hole: not equal.
    std::os::unix::fs::FileExt::write_all_at(&fs::File::options().write(true).open(&path).unwrap(), b"x", 5).unwrap();
    assert_eq!(restored(&sample, &selected, &in_place).files, 1);
    assert!(fs::read(&path).unwrap() == want);
}

#[test]
fn what_does_not_read_back_as_it_was_written_is_removed() {
    let temp = TempDir::new().unwrap();
    let mut sample = Sample::new();
    let (data, db) = (noise(1, CHUNK_BYTES * 3), noise(2, PAGE * 9));
    let pages = sample.pages(PAGE, &db);
    let file = sample.file("file", &data);
    let database = sample.database("db", PAGE, &db, &pages);
    let selected = sample.snapshot(vec![file.clone(), database.clone()]);
    restored(&sample, &selected, &options(temp.path()));
    let reporter = Reporter::silent();
    let options = options(temp.path());
    let context = Context::new(&sample.repo, &options, &reporter, Owners::default());
    let folder = Folder::target(temp.path()).unwrap();
    let part = |node: &Node| write::Part {
        folder: folder.clone(),
        node: node.clone(),
        stale: None,
        reuse: existing::Reuse::No,
    };
    let written = || {
        let written = write::File::new(part(&file), write::Layout::of(&file), 0);
        written.set(write::State::Done);
        context.tally.files.add(1);
        written
    };
    verify::file(&context, &written()).unwrap();
    assert_eq!((context.tally.verified.get(), reporter.problems().len()), (1, 0));
    for (name, at) in [("file", CHUNK_BYTES + 5), ("db", 7)] {
        let path = temp.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let again = written();
    verify::file(&context, &again).unwrap();
    assert!(again.is(|state| matches!(state, write::State::Lost)));
    assert_eq!((context.tally.files.get(), reporter.worst()), (1, Some(Severity::Restore)));
    assert!(matches!(verify::database(&context, &part(&database)), Err(Error::Refused { .. })));
    assert!(names(temp.path()).is_empty());
}
