//! A repository of many years and many machines: measures, and proves nothing. Run twice with the same `FOLDER`: the first
//! run fills it, the second measures, in a process that has done nothing else. In a release build:
//! `FOLDER=/tmp/millions cargo test --release --lib whole_tests::scale -- --ignored --nocapture`.

use super::*;
use crate::backend::Local;
use crate::format::snapshot::Snapshot;
use crate::repo::Closed;
use crate::repo::testing::{memory_mib, store_index};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

/// A small source with its snapshot, among so many others of ten sources, and an index of blobs that nobody needs.
fn fill(folder: &Path, source: &Path, store: Arc<Local>) {
    fs::create_dir_all(source).unwrap();
    fs::write(source.join("file"), noise(1, 100_000)).unwrap();
    let repo = init(store);
    store_index(&repo, number("BLOBS", 5_000_000));
    let first = create(&repo, source, 0).unwrap();
    let snapshot = repo.snapshots(&Reporter::silent()).unwrap().pop().unwrap().snapshot;
    let mut previous = [first; 10];
    for n in 0..number("SNAPSHOTS", 10_000) {
        let of = (n % 10) as usize;
        let source = if of == 0 { snapshot.source.clone() } else { format!("source {of}") };
        let (generation, time) = (n / 10 + 2, Time { secs: snapshot.time.secs + 60 * n.cast_signed(), nanos: 0 });
        let next = Snapshot { generation, time, source, previous: Some(previous[of]), ..snapshot.clone() };
        previous[of] = repo.put_snapshot(&next).unwrap();
    }
    println!("filled {}", folder.display());
}

#[test]
#[ignore = "it measures the create of an unchanged source among five million blobs and ten thousand snapshots"]
fn an_unchanged_source_among_millions_of_blobs() {
    let folder = PathBuf::from(std::env::var("FOLDER").unwrap());
    let (source, copies, repository) = (folder.join("source"), folder.join("copies"), folder.join("repository"));
    let store = Arc::new(Local::new(&repository).unwrap());
    if !repository.exists() {
        return fill(&folder, &source, store);
    }
    for turn in ["without copies", "with copies", "with copies"] {
        let begun = std::time::Instant::now();
        let closed = Closed::find(store.clone()).unwrap().cached(Some((copies.clone(), 8 << 30)));
        let repo = Arc::new(closed.open(&unlock(), "the key", &Reporter::silent()).unwrap());
        create(&repo, &source, 9_999).unwrap();
        println!("{turn}: {:.2} s, peak so far {} MiB", begun.elapsed().as_secs_f64(), memory_mib("VmHWM"));
    }
}
