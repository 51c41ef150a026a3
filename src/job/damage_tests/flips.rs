//! Every bit of a small repository flipped, and its objects cut, mixed up and replaced: noticed by a check, never wrong
//! bytes, never a panic; and after the repairs nothing is wrong that was not lost.
//!
//! By default one bit of each byte is flipped, and the repairs follow on some of them; `SNAPSHOT_TEST_ALL_BITS=1` does
//! all of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

type Objects = BTreeMap<String, Vec<u8>>;
/// Generation and path.
type Key = (u64, String);
/// The contents of all files and databases of all generations.
type Contents = BTreeMap<Key, Vec<u8>>;

/// Every so many flips are followed by the repairs.
const REPAIR_EVERY: usize = 5;
/// More than the day after which a silent session is dead.
const LONG_SECS: i64 = 90_000;

struct Tiny {
    objects: Objects,
    contents: Contents,
}

/// Two generations of some small files and of a database of five pages; a tomb, a record, a dead session, two slots.
fn tiny(seed: u8) -> Tiny {
    let store = Arc::new(Memory::default());
    let repo = Repository::init(store.clone(), &unlock(), KdfCost::default(), "a").unwrap();
    repo.add_slot(&other_unlock(), KdfCost::default(), "b").unwrap();
    let repo = Arc::new(repo);
    let mut contents = Contents::new();
    let first = (0..5).map(|n| text(seed + n, PAGE_BYTES)).collect::<Vec<_>>();
    let (mut leaf, mut previous) = (None, None);
    for generation in 1..=2u8 {
        let mut writer = Writer::new(&repo, 3);
        let w = &mut writer;
        let mut put = |path: &str, w: &mut Writer, bytes: Vec<u8>| {
            contents.insert((generation.into(), path.into()), bytes.clone());
            put_chunk(&repo, w, bytes)
        };
        let a = put("data/a", w, text(seed + 10 + generation, 60));
        let same = put("data/same", w, text(seed + 20, 80));
        let below = put("data/sub/b", w, text(seed + 30 + generation, 50));
        let (one, two) = (text(seed + 40, 40), text(seed + 41, 30));
        let listed = [one.clone(), two.clone()].map(|bytes| put_chunk(&repo, w, bytes));
        contents.insert((generation.into(), "data/listed".into()), [one, two].concat());
        let list = w.put(BlobType::List, &[listed[0].0, listed[1].0].concat()).unwrap();
        let pages: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
        let mut file = first.concat();
        let map = match &leaf {
            None => {
                let at = put_pages(&repo, w, &pages, None);
                let stored = StoredLeaf::full(&at);
                let id = w.put(BlobType::Map, &cbor::encode(&stored)).unwrap();
                leaf = Some((id, stored, at));
                put_root(w, &file, id)
            }
            Some((parent, older, at)) => {
                let mut page = first[2].clone();
                page[7] ^= 1;
                file[2 * PAGE_BYTES..3 * PAGE_BYTES].copy_from_slice(&page);
                let new = put_pages(&repo, w, &[&page], Some((&at[2..3], &pages[2..3])));
                let patch = StoredLeaf::patch(*parent, older, 5, &[(2, new[0])]);
                let id = w.put(BlobType::Map, &cbor::encode(&patch)).unwrap();
                put_root(w, &file, id)
            }
        };
        contents.insert((generation.into(), "data/live.db".into()), file.clone());
        let sub = put_tree(w, vec![super::file("b", 50, Content::new(0, &[below]))]);
        let data = put_tree(
            w,
            vec![
                super::file("a", 60, Content::new(0, &[a])),
                super::file("listed", 70, Content::new(1, &[list])),
                database("live.db", &file, map),
                super::file("same", 80, Content::new(0, &[same])),
                directory("sub", sub),
            ],
        );
        let root = put_tree(w, vec![directory("data", data)]);
        writer.finish().unwrap();
        let id = repo.put_snapshot(&snapshot("host", generation.into(), previous, root)).unwrap();
        if generation == 1 {
            let other = repo.put_snapshot(&snapshot("other", 1, None, root)).unwrap();
            repo.bury_snapshot(other).unwrap();
        }
        previous = Some(id);
    }
    repo.condemn(vec![PackId([1; 32])], vec![]).unwrap();
    let session = control::Session {
        kind: SessionKind::Write,
        host: "elsewhere".into(),
        boot: String::new(),
        pid: 1,
        started: Time::default(),
    };
    let bytes = control::seal(repo.keys(), Kind::Session, &session).unwrap();
    store.put(&layout::session("00ff", layout::FIRST), bytes).unwrap();
    Tiny { objects: objects(&*store), contents }
}

fn other_unlock() -> Unlock {
    Unlock::KeyFile(vec![8; 32])
}

/// Opens with whichever key still opens.
fn open_anyhow(store: &Arc<Memory>) -> Result<Arc<Repository>, Error> {
    let open = |unlock| Repository::open(store.clone(), &unlock, "the key", &Reporter::silent()).map(Arc::new);
    open(unlock()).or_else(|_| open(other_unlock()))
}

/// Reads all files and databases of all snapshots, and returns those that can be read. Wrong bytes fail the test.
fn read_all(repo: &Arc<Repository>, contents: &Contents, what: &str) -> BTreeSet<Key> {
    repo.load_index(&Reporter::silent()).unwrap();
    let mut found = BTreeSet::new();
    for named in repo.read_snapshots().unwrap().0 {
        let mut waiting = vec![(named.snapshot.tree, String::new())];
        while let Some((tree, path)) = waiting.pop() {
            for node in repo.read_tree(&tree).unwrap_or_default() {
                let path = format!("{path}{}", node.display_name());
                let read = match node.kind {
                    NodeKind::File => read_file(repo, &node),
                    NodeKind::Database => read_database(repo, &node),
                    NodeKind::Directory => {
                        waiting.push((node.tree.unwrap(), path + "/"));
                        continue;
                    }
                    _ => panic!("{path}"),
                };
                let key = (named.snapshot.generation, path);
                if let Ok(bytes) = read {
                    assert!(contents.get(&key) == Some(&bytes), "{what}: wrong bytes of {key:?}");
                    found.insert(key);
                }
            }
        }
    }
    found
}

fn read_file(repo: &Repository, node: &Node) -> Result<Vec<u8>, Error> {
    let ids = repo.chunks(node.content.as_ref().unwrap())?;
    ids.iter().map(|id| repo.read_blob(id, BlobType::Chunk)).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
}

fn read_database(repo: &Repository, node: &Node) -> Result<Vec<u8>, Error> {
    let (_, leaves) = repo.read_map(&node.database.as_ref().unwrap().map)?;
    let mut bytes = Vec::new();
    for leaf in leaves {
        for page in repo.read_leaf(&leaf)?.pages {
            let segment = repo.read_segment(&page.segment)?;
            let found = segment.page_with(usize::from(page.slot), &page.hash);
            bytes.extend_from_slice(found.ok_or_else(|| Error::corrupt("page", "it is not there"))?);
        }
    }
    Ok(bytes)
}

/// What a check must say of the harm.
#[derive(Clone, Copy, PartialEq)]
enum Notice {
    /// It is damage.
    Must,
    /// Nobody can tell it from what a user may have done.
    May,
}

/// Reads a harmed repository, checks it, and if asked to repairs it and looks again.
fn ordeal(objects: &Objects, tiny: &Tiny, notice: Notice, with_repairs: bool, what: &str) {
    let store = copy(objects);
    store.advance(LONG_SECS);
    let repo = match open_anyhow(&store) {
        Ok(repo) => repo,
        // The header or the numbers in it ask for a newer program: refused, and mended by hand from the copy.
        Err(Error::Unsupported { .. }) if what.contains("config") => return,
        Err(e) => panic!("{what}: it can't be opened: {e}"),
    };
    let before = read_all(&repo, &tiny.contents, what);
    let (_, problems) = check(&repo, ReadData::All);
    assert!(notice == Notice::May || !damages(&problems).is_empty(), "{what}: not noticed");
    if !with_repairs {
        return;
    }
    let silent = Reporter::silent();
    let again = || open_anyhow(&store).unwrap();
    repair::repair_packs(&again(), &silent).unwrap();
    repair::repair_index(&again(), &silent).unwrap();
    for _ in 0..2 {
        let options = repair::Options { forget: true, ..Default::default() };
        repair::repair_snapshots(&again(), &options, &silent).unwrap();
    }
    let (_, problems) = check(&again(), ReadData::All);
    let left: Vec<_> = damages(&problems).into_iter().filter(|p| !p.what.starts_with(layout::KEYS)).collect();
    assert!(left.is_empty(), "{what}: after the repairs {left:#?}");
    let after = read_all(&again(), &tiny.contents, what);
    assert!(before.is_subset(&after), "{what}: lost by the repairs: {:?}", before.difference(&after));
}

/// Does many things, on all processors; rayon's own threads must stay free for what is tested.
fn each_of<T: Sync>(all: &[T], each: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = all.get(number) else { break };
                    each(number, one);
                }
            });
        }
    });
}

#[test]
fn every_flipped_bit() {
    let all = std::env::var_os("SNAPSHOT_TEST_ALL_BITS").is_some();
    let tiny = tiny(0);
    assert_eq!(read_all(&open(&copy(&tiny.objects)), &tiny.contents, "sound").len(), tiny.contents.len());
    let bits = |at: usize| if all { 0..8 } else { at % 8..at % 8 + 1 };
    let flips: Vec<_> = tiny
        .objects
        .iter()
        .flat_map(|(path, bytes)| (0..bytes.len()).flat_map(move |at| bits(at).map(move |bit| (path, at, bit))))
        .collect();
    assert!(flips.len() > 5000, "{}", flips.len());
    each_of(&flips, |number, (path, at, bit)| {
        let mut objects = tiny.objects.clone();
        objects.get_mut(*path).unwrap()[*at] ^= 1 << bit;
        let with_repairs = all || number % REPAIR_EVERY == 0;
        ordeal(&objects, &tiny, Notice::Must, with_repairs, &format!("{path}, bit {bit} of byte {at}"));
    });
}

#[test]
fn every_object_cut_emptied_lengthened_or_deleted() {
    let tiny = tiny(0);
    let mut harms = Vec::new();
    for (path, bytes) in &tiny.objects {
        let n = bytes.len();
        let cuts = [0, 1, 15, 47, 48, 49, 63, 64, 65, n / 4, n / 2, n * 3 / 4, n - 33, n - 17, n - 16, n - 15, n - 1];
        for cut in cuts.into_iter().filter(|cut| *cut < n) {
            harms.push((path, format!("{path} cut to {cut} of {n}"), Some(bytes[..cut].to_vec())));
        }
        harms.push((path, format!("{path} with more behind it"), Some([&bytes[..], &[0; 100]].concat())));
        harms.push((path, format!("{path} zeroed"), Some(vec![0; n])));
        harms.push((path, format!("{path} deleted"), None));
    }
    each_of(&harms, |_, (path, what, harmed)| {
        let mut objects = tiny.objects.clone();
        let notice = if harmed.is_some() { Notice::Must } else { Notice::May };
        match harmed {
            Some(bytes) => drop(objects.insert((*path).clone(), bytes.clone())),
            None => drop(objects.remove(*path)),
        }
        ordeal(&objects, &tiny, notice, true, what);
    });
}

#[test]
fn objects_swapped_replaced_and_copied_to_other_names() {
    let (tiny, foreign) = (tiny(0), tiny(100));
    let class =
        |path: &str| path.rsplit_once('/').map_or("config", |(folder, _)| &folder[..folder.len().min(7)]).to_owned();
    let mut harms: Vec<(String, Objects)> = Vec::new();
    for (path, bytes) in &tiny.objects {
        for (other, others) in tiny.objects.iter().filter(|(other, _)| *other > path) {
            let mut swapped = tiny.objects.clone();
            swapped.insert(path.clone(), others.clone());
            swapped.insert(other.clone(), bytes.clone());
            harms.push((format!("{path} and {other} swapped"), swapped));
        }
        for (theirs, others) in foreign.objects.iter().filter(|(theirs, _)| class(theirs) == class(path)) {
            let mut replaced = tiny.objects.clone();
            replaced.insert(path.clone(), others.clone());
            harms.push((format!("{path} replaced by another repository's {theirs}"), replaced));
        }
        let name = hex(&[7; 32]);
        let copied_to = match path.rsplit_once('/') {
            Some(_) if layout::parse_session(path).is_some() => continue,
            None => continue,
            Some((folder, _)) if folder.starts_with("packs/") => format!("{}07/{name}", &folder[..8]),
            Some((folder, _)) => format!("{folder}/{name}"),
        };
        let mut copied = tiny.objects.clone();
        copied.insert(copied_to.clone(), bytes.clone());
        harms.push((format!("{path} copied to {copied_to}"), copied));
        let mut moved = tiny.objects.clone();
        moved.remove(path);
        moved.insert(copied_to.clone(), bytes.clone());
        harms.push((format!("{path} moved to {copied_to}"), moved));
    }
    each_of(&harms, |_, (what, objects)| {
        // The same bytes at both places: nothing has changed.
        let notice = if *objects == tiny.objects { Notice::May } else { Notice::Must };
        ordeal(objects, &tiny, notice, true, what);
    });
}

/// A repair that is cut off at any write leaves nothing worse, and can be run again.
#[test]
fn every_repair_cut_off_anywhere() {
    let tiny = tiny(0);
    let packs = tiny.objects.keys().filter(|p| p.starts_with("packs/"));
    for (number, pack) in packs.enumerate() {
        let mut objects = tiny.objects.clone();
        let bytes = objects.get_mut(pack).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        for kind in 0..3 {
            let options = repair::Options { forget: true, ..Default::default() };
            let mut fail_from = 0;
            loop {
                let store = copy(&objects);
                if kind == 2 {
                    repair::repair_packs(&open(&store), &Reporter::silent()).unwrap();
                }
                let before = read_all(&open(&store), &tiny.contents, pack);
                let faulty = Arc::new(Faulty::new(store.clone(), fail_from));
                let repo = Repository::open(faulty, &unlock(), "the key", &Reporter::silent()).map(Arc::new).unwrap();
                let done = match kind {
                    0 => repair::repair_packs(&repo, &Reporter::silent()).map(drop),
                    1 => repair::repair_index(&repo, &Reporter::silent()).map(drop),
                    _ => repair::repair_snapshots(&repo, &options, &Reporter::silent()).map(drop),
                };
                let what = format!("pack {number}, repair {kind}, cut off at write {fail_from}");
                let after = read_all(&open(&store), &tiny.contents, &what);
                assert!(before.is_subset(&after), "{what}: {:?}", before.difference(&after));
                // The process died: its session is dead.
                store.delete(&testing::sessions(&*store)).unwrap();
                ordeal(&super::objects(&*store), &tiny, Notice::May, true, &what);
                if done.is_ok() {
                    assert!(fail_from >= 2, "{what}");
                    break;
                }
                fail_from += 1;
            }
        }
    }
}
