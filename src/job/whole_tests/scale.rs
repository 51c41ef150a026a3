//! A repository of many years and many machines: measures, and proves nothing. In a release build:
//! `cargo test --release --lib whole_tests::scale -- --ignored --nocapture`.

use super::*;
use crate::backend::Local;
use crate::format::snapshot::Snapshot;
use crate::repo::Closed;
use crate::repo::testing::{memory_mib, store_index};

#[test]
#[ignore = "it measures the create of an unchanged source among five million blobs and ten thousand snapshots"]
fn an_unchanged_source_among_millions_of_blobs() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (blobs, snapshots) = (number("BLOBS", 5_000_000), number("SNAPSHOTS", 10_000));
    let folder = tempfile::tempdir().unwrap();
    let (source, copies) = (folder.path().join("source"), folder.path().join("copies"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(1, 100_000)).unwrap();
    let store = Arc::new(Local::new(&folder.path().join("repository")).unwrap());
    let repo = init(store.clone());
    store_index(&repo, blobs);
    let first = create(&repo, &source, 0).unwrap();
    let snapshot = repo.snapshots(&Reporter::silent()).unwrap().pop().unwrap().snapshot;
    let mut previous = vec![first; 10];
    for n in 0..snapshots {
        let of = (n % 10) as usize;
        let source = if of == 0 { snapshot.source.clone() } else { format!("source {of}") };
        let (generation, time) = (n / 10 + 2, Time { secs: snapshot.time.secs + 60 * n as i64, nanos: 0 });
        let next = Snapshot { generation, time, source, previous: Some(previous[of]), ..snapshot.clone() };
        previous[of] = repo.put_snapshot(&next).unwrap();
    }
    drop(repo);
    std::thread::sleep(Duration::from_millis(2100));
    for turn in ["without copies", "with copies", "with copies"] {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let begun = std::time::Instant::now();
        let closed = Closed::find(store.clone()).unwrap().cached(Some((copies.clone(), 8 << 30)));
        let repo = Arc::new(closed.open(&unlock(), "the key", &Reporter::silent()).unwrap());
        create(&repo, &source, 9_999).unwrap();
        println!("{turn}: {:.2} s, peak {} MiB", begun.elapsed().as_secs_f64(), memory_mib("VmHWM"));
    }
}
