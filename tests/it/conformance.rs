//! What every [`Backend`] must do: one list of checks, run on a store in memory, a local directory, a real sshd and a real
//! S3 server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use snapshot::backend::remote::{Credentials, Limits, Place, Remote, S3Settings, SftpSettings, Surroundings};
use snapshot::backend::{Backend, Local, Memory};
use snapshot::error::Error;
use snapshot::format::cbor::Time;

use crate::servers::{s3, sshd};
use crate::world::Dice;

/// A store to check.
struct Store {
    backend: Arc<dyn Backend>,
    /// Whether it has a new object only where there was none, whoever else tries.
    creates_exclusively: bool,
}

/// One thing that must hold, in a folder of its own.
type Check = fn(&Store, &str);

/// All of them, with their names.
const CHECKS: [(&str, Check); 13] = [
    ("put-and-get", put_and_get),
    ("replaced", replaced),
    ("missing", missing),
    ("limits", limits),
    ("ranges", ranges),
    ("lengths", lengths),
    ("names", names),
    ("listing", listing),
    ("pages", pages),
    ("deleting", deleting),
    ("new-only", new_only),
    ("racers", racers),
    ("whole-or-nothing", whole_or_nothing),
];

const MIB: usize = 1 << 20;
/// More than any limit in these checks.
const ANY: u64 = u64::MAX;

/// Runs all checks.
fn conforms(store: &Store) {
    // Before anything was written there is nothing, and asking for it leaves nothing.
    assert_eq!(store.backend.list("").unwrap(), []);
    for (name, check) in CHECKS {
        println!("check: {name}");
        check(store, name);
    }
    many_at_once(store, "many-at-once");
    let all = store.backend.list("").unwrap();
    let folders: BTreeSet<_> = all.iter().map(|o| o.path.split('/').next().unwrap()).collect();
    let known: BTreeSet<_> = CHECKS.iter().map(|(name, _)| *name).chain(["many-at-once"]).collect();
    assert!(folders.is_subset(&known), "something is left beside what was put: {folders:?}");
}

fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    Dice::new(seed).bytes(len)
}

#[track_caller]
fn assert_is(store: &Store, path: &str, expected: &[u8]) {
    let found = store.backend.get(path, ANY).unwrap();
    assert!(found == expected, "{path} has {} bytes, or others than the {} that were put", found.len(), expected.len());
}

#[track_caller]
fn assert_is_missing(store: &Store, path: &str) {
    for error in [store.backend.get(path, ANY).unwrap_err(), store.backend.get_range(path, 0, 1).unwrap_err()] {
        assert!(matches!(&error, Error::Missing { what } if what.contains(path)), "{path}: {error:?}");
    }
}

fn put_and_get(store: &Store, folder: &str) {
    let path = format!("{folder}/one");
    store.backend.put(&path, b"some bytes".to_vec()).unwrap();
    assert_is(store, &path, b"some bytes");
    assert!(!store.backend.describe().is_empty());
}

fn replaced(store: &Store, folder: &str) {
    let path = format!("{folder}/object");
    // Longer, shorter, the same again.
    for (seed, len) in [(1, 1000), (2, 5000), (3, 10), (3, 10)] {
        store.backend.put(&path, bytes_of(seed, len)).unwrap();
        assert_is(store, &path, &bytes_of(seed, len));
        assert_eq!(store.backend.list(&format!("{folder}/")).unwrap()[0].bytes, len as u64);
    }
    assert_eq!(store.backend.list(&format!("{folder}/")).unwrap().len(), 1);
}

fn missing(store: &Store, folder: &str) {
    assert_is_missing(store, &format!("{folder}/none"));
    assert_is_missing(store, &format!("{folder}/deep/er/none"));
    assert_eq!(store.backend.list(&format!("{folder}/none/")).unwrap(), []);
    // What begins like a name that exists is not there either.
    store.backend.put(&format!("{folder}/object"), vec![1]).unwrap();
    assert_is_missing(store, &format!("{folder}/obj"));
    assert_is_missing(store, &format!("{folder}/objects"));
}

fn limits(store: &Store, folder: &str) {
    let path = format!("{folder}/object");
    store.backend.put(&path, bytes_of(5, 1000)).unwrap();
    assert_eq!(store.backend.get(&path, 1000).unwrap().len(), 1000);
    for max in [999, 1, 0] {
        let error = store.backend.get(&path, max).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { what, .. } if what.contains("object")), "{max}: {error:?}");
    }
}

fn ranges(store: &Store, folder: &str) {
    let path = format!("{folder}/object");
    let len = 3 * MIB + 17;
    let bytes = bytes_of(6, len);
    store.backend.put(&path, bytes.clone()).unwrap();
    let parts = [(0, 1), (0, 100), (1, 99), (MIB - 1, 2), (MIB, 2 * MIB), (len - 1, 1), (len - 100, 100), (0, len)];
    for (offset, part) in parts {
        let found = store.backend.get_range(&path, offset as u64, part as u64).unwrap();
        assert!(found == bytes[offset..offset + part], "{part} bytes at {offset}");
    }
    for (offset, part) in [(len - 1, 2), (len, 1), (len + 1, 1), (0, len + 1), (len * 2, 10)] {
        let error = store.backend.get_range(&path, offset as u64, part as u64).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { what, .. } if what.contains("object")),
            "{part} at {offset}: {error:?}"
        );
    }
}

fn lengths(store: &Store, folder: &str) {
    for len in [0, 1, 4095, 4096, 65_537, 5 * MIB + 1, 16 * MIB] {
        let path = format!("{folder}/{len}");
        let bytes = bytes_of(len as u64, len);
        store.backend.put(&path, bytes.clone()).unwrap();
        assert_is(store, &path, &bytes);
        let listed = store.backend.list(&format!("{folder}/")).unwrap();
        assert_eq!(listed.iter().find(|o| o.path == path).unwrap().bytes, len as u64);
    }
}

/// The names that repositories have, and those of other tools that may lie beside them.
fn names(store: &Store, folder: &str) {
    let long = "f".repeat(64);
    let names =
        ["config", "config.bak", "packs/d/ab/", "live/host.0", "a b", "a+b", "a%20b", "ü", "a&b=c?d#e", "-", "~x"];
    let whole = |name: &str| name.strip_suffix('/').map_or(name.to_owned(), |folder| format!("{folder}/{long}"));
    let paths: Vec<_> = names.iter().map(|name| format!("{folder}/{}", whole(name))).collect();
    for path in &paths {
        store.backend.put(path, path.as_bytes().to_vec()).unwrap();
    }
    for path in &paths {
        assert_is(store, path, path.as_bytes());
    }
    let mut expected = paths;
    expected.sort();
    let listed = store.backend.list(&format!("{folder}/")).unwrap();
    assert_eq!(listed.iter().map(|o| o.path.clone()).collect::<Vec<_>>(), expected);
    store.backend.delete(&expected).unwrap();
    assert_eq!(store.backend.list(&format!("{folder}/")).unwrap(), []);
}

fn listing(store: &Store, folder: &str) {
    let names = ["a", "a/b", "a/b/c", "a/b/d", "a-", "a.b", "ab/c", "b/a/a/a/a/a", "z"];
    // One that is a folder as well is possible in some stores only.
    let names = names.into_iter().filter(|name| *name != "a" && *name != "a/b");
    for name in names.clone() {
        store.backend.put(&format!("{folder}/{name}"), vec![7; name.len()]).unwrap();
    }
    let listed = |below: &str| {
        let found = store.backend.list(&format!("{folder}/{below}")).unwrap();
        found.into_iter().map(|o| (o.path[folder.len() + 1..].to_owned(), o.bytes)).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = names.map(|name| (name.to_owned(), name.len() as u64)).collect();
    expected.sort();
    assert_eq!(listed(""), expected);
    for below in ["a/", "a/b/", "ab/", "b/", "b/a/a/"] {
        let part: Vec<_> = expected.iter().filter(|(name, _)| name.starts_with(below)).cloned().collect();
        assert!(!part.is_empty());
        assert_eq!(listed(below), part, "{below}");
    }
    let modified: BTreeSet<_> =
        store.backend.list(&format!("{folder}/")).unwrap().iter().map(|o| o.modified.secs).collect();
    assert!(modified.iter().all(|secs| *secs > 1_000_000_000), "times of the store: {modified:?}");
}

/// More names than a store lists at once.
fn pages(store: &Store, folder: &str) {
    let name = |n: usize| format!("{folder}/{:02x}/{n:05}", n % 3);
    let count = 1_100;
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(n) = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok().filter(|n| *n < count) {
                    store.backend.put(&name(n), vec![1; n % 7]).unwrap();
                }
            });
        }
    });
    let mut expected: Vec<_> = (0..count).map(|n| (name(n), (n % 7) as u64)).collect();
    expected.sort();
    let listed = store.backend.list(&format!("{folder}/")).unwrap();
    assert_eq!(listed.into_iter().map(|o| (o.path, o.bytes)).collect::<Vec<_>>(), expected);
    // Deleted all at once, and some of those a second time.
    store.backend.delete(&(0..count).map(name).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.backend.list(&format!("{folder}/")).unwrap(), []);
    store.backend.delete(&(0..10).map(name).collect::<Vec<_>>()).unwrap();
}

fn deleting(store: &Store, folder: &str) {
    let name = |name: &str| format!("{folder}/{name}");
    for kept in ["kept", "gone", "deep/kept", "deep/gone"] {
        store.backend.put(&name(kept), vec![1]).unwrap();
    }
    store.backend.delete(&[]).unwrap();
    store.backend.delete(&["gone", "deep/gone", "never", "never/was/there"].map(name)).unwrap();
    let left: Vec<_> = store.backend.list(&name("")).unwrap().into_iter().map(|o| o.path).collect();
    assert_eq!(left, ["deep/kept", "kept"].map(name));
    assert_is_missing(store, &name("gone"));
    assert_is(store, &name("kept"), &[1]);
    store.backend.put(&name("gone"), vec![2]).unwrap();
    assert_is(store, &name("gone"), &[2]);
}

fn new_only(store: &Store, folder: &str) {
    let path = format!("{folder}/object");
    assert!(store.backend.put_new(&path, vec![1]).unwrap());
    assert!(!store.backend.put_new(&path, vec![2, 2]).unwrap());
    assert_is(store, &path, &[1]);
    store.backend.delete(std::slice::from_ref(&path)).unwrap();
    assert!(store.backend.put_new(&path, vec![3]).unwrap());
    assert_is(store, &path, &[3]);
}

/// Of many who make the same object at the same time, one succeeds, and it is theirs.
fn racers(store: &Store, folder: &str) {
    let path = format!("{folder}/object");
    let won: Vec<u8> = thread::scope(|scope| {
        let racers: Vec<_> = (0..64u8)
            .map(|n| {
                let path = &path;
                scope.spawn(move || store.backend.put_new(path, vec![n; 1000]).unwrap().then_some(n))
            })
            .collect();
        racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
    });
    let left = store.backend.get(&path, ANY).unwrap();
    assert!(left.len() == 1000 && left.iter().all(|byte| *byte == left[0]), "two are mixed");
    assert!(won.contains(&left[0]), "{} is there, and {won:?} believe that they made it", left[0]);
    if store.creates_exclusively {
        assert_eq!(won.len(), 1, "{won:?}");
    }
}

/// Whoever reads while others write sees one of what was written, whole.
fn whole_or_nothing(store: &Store, folder: &str) {
    let path = &format!("{folder}/object");
    let versions: Vec<_> = [(1, 2 * MIB), (2, 3 * MIB + 1), (3, 100)].map(|(seed, len)| bytes_of(seed, len)).into();
    let (ended, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                match store.backend.get(path, ANY) {
                    Ok(found) => assert!(versions.contains(&found), "{} bytes of something", found.len()),
                    Err(e) => assert!(matches!(e, Error::Missing { .. }), "{e:?}"),
                }
                for listed in store.backend.list(&format!("{folder}/")).unwrap() {
                    assert!(versions.iter().any(|v| v.len() as u64 == listed.bytes), "{listed:?}");
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in (0..).take_while(|n| (*n < 12 || seen.load(Ordering::Relaxed) < 4) && !reader.is_finished()) {
            store.backend.put(path, versions[round % versions.len()].clone()).unwrap();
            if round % 4 == 3 {
                store.backend.delete(std::slice::from_ref(path)).unwrap();
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// Many threads with calls of all kinds: nobody gets what another asked for.
fn many_at_once(store: &Store, folder: &str) {
    thread::scope(|scope| {
        for thread in 0..12u64 {
            scope.spawn(move || {
                let mut dice = Dice::new(thread);
                for round in 0..8 {
                    let path = format!("{folder}/{thread}/{round}");
                    let bytes = dice.bytes(1 + usize::try_from(thread * 1000 + round).unwrap());
                    store.backend.put(&path, bytes.clone()).unwrap();
                    assert_is(store, &path, &bytes);
                    assert_eq!(store.backend.get_range(&path, 0, 1).unwrap(), bytes[..1]);
                    let listed = store.backend.list(&format!("{folder}/{thread}/")).unwrap();
                    assert_eq!(listed.len() as u64, round + 1 - round / 2);
                    if round % 2 == 1 {
                        store.backend.delete(&[path]).unwrap();
                    }
                }
            });
        }
    });
    let listed = store.backend.list(&format!("{folder}/")).unwrap();
    assert_eq!(listed.len(), 12 * 4);
}

#[test]
fn memory() {
    let backend = Memory::at(Time { secs: 1_800_000_000, nanos: 0 });
    conforms(&Store { backend: Arc::new(backend), creates_exclusively: true });
}

#[test]
fn local_directory() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Local::new(&folder.path().join("deep/er")).unwrap();
    conforms(&Store { backend: Arc::new(backend), creates_exclusively: true });
}

/// A store on a network.
fn far(place: &str, ssh: Option<String>, endpoint: String) -> Remote {
    let limits = Limits::default();
    let tell = Box::new(|_, text: &str| println!("{text}"));
    let surroundings = Surroundings { tell, ..Surroundings::default() };
    match Place::parse(place).unwrap().unwrap() {
        Place::Sftp(place) => Remote::sftp(&place, SftpSettings { command: ssh }, limits, surroundings),
        Place::Other(_) => unreachable!("{place}"),
        Place::S3(place) => {
            let (id, secret) = (s3::OWNER.0.to_owned(), s3::OWNER.1.to_owned());
            let credentials = Credentials::Keys { id, secret, token: None };
            let settings =
                S3Settings { endpoint: Some(endpoint), region: None, credentials, addressing: None, authorities: None };
            Remote::s3(&place, &settings, limits, surroundings)
        }
    }
    .unwrap()
}

#[test]
fn directory_of_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = sshd::shared();
    let place = sshd::url(server.port(), &folder.path().join("deep/er"));
    let backend = far(&place, Some(server.ssh().to_str().unwrap().to_owned()), String::new());
    conforms(&Store { backend: Arc::new(backend), creates_exclusively: true });
}

#[test]
fn bucket_of_s3() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let backend = far(&format!("s3://{bucket}/deep/er"), None, server.url());
    conforms(&Store { backend: Arc::new(backend), creates_exclusively: true });
}

#[test]
fn whole_bucket_of_s3() {
    let server = s3::shared();
    let bucket = server.new_bucket();
    let backend = far(&format!("s3://{bucket}"), None, server.url());
    let store = Store { backend: Arc::new(backend), creates_exclusively: true };
    assert_eq!(store.backend.list("").unwrap(), []);
    listing(&store, "listing");
    assert_eq!(store.backend.list("").unwrap().len(), 7);
}
