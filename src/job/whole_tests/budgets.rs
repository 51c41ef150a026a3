//! What commands ask of the store, call by call: each call is a round trip to a server and has its price there, so a
//! new one must be meant.

use super::*;
use crate::job::look;

/// A store that lists what is asked, and a directory.
struct Scene {
    folder: tempfile::TempDir,
    store: Arc<Faulty>,
}

impl Scene {
    /// Three generations of files and a database, the last one long enough ago that what stat says is believed.
    fn new() -> Self {
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            store: Arc::new(Faulty::recorder(Arc::new(Memory::at(clock::now())))),
        };
        init(scene.store.clone());
        fs::create_dir_all(scene.source().join("inner")).unwrap();
        for generation in 0..3 {
            for n in 0..5 {
                fs::write(scene.source().join(format!("inner/{n}")), noise(100 * generation + n, 50_000)).unwrap();
            }
            sql(&scene.source().join("app.db"), false, &insert(300, generation));
            if generation == 2 {
                std::thread::sleep(Duration::from_millis(2100));
            }
            create(&open(scene.store.clone()).unwrap(), &scene.source(), generation as u32).unwrap();
        }
        scene
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn create(&self, hour: u32) -> Vec<(Op, &'static str, usize)> {
        self.calls(|repo| {
            create(repo, &self.source(), hour).unwrap();
        })
    }

    /// The kinds of calls that a command makes once the repository is open, with the folders that they concern, in
    /// order; calls of a kind that follow each other are counted.
    fn calls(&self, command: impl FnOnce(&Arc<Repository>)) -> Vec<(Op, &'static str, usize)> {
        const FOLDERS: [&str; 10] = [
            layout::CONFIG_COPY,
            layout::CONFIG,
            layout::KEYS,
            layout::DATA_PACKS,
            layout::METADATA_PACKS,
            layout::INDEX,
            layout::SNAPSHOTS,
            layout::TOMBS,
            layout::MARKS,
            layout::LIVE,
        ];
        let repo = open(self.store.clone()).unwrap();
        self.store.take_calls();
        command(&repo);
        let mut out: Vec<(Op, &'static str, usize)> = Vec::new();
        for call in self.store.take_calls() {
            let folder = FOLDERS.into_iter().find(|f| call.path.starts_with(f)).unwrap_or("elsewhere");
            match out.last_mut().filter(|(op, last, _)| (*op, *last) == (call.op, folder)) {
                Some((_, _, count)) => *count += 1,
                None => out.push((call.op, folder, 1)),
            }
        }
        out
    }
}

fn writes(calls: &[(Op, &'static str, usize)]) -> Vec<(Op, &'static str, usize)> {
    calls.iter().copied().filter(|(op, ..)| matches!(op, Op::Put | Op::Delete)).collect()
}

/// How many objects of a folder are read.
fn gets(calls: &[(Op, &'static str, usize)], folder: &str) -> usize {
    calls.iter().filter(|(op, at, _)| *op == Op::Get && *at == folder).map(|(.., n)| n).sum()
}

#[test]
fn opening_reads_the_config_and_the_slots() {
    let scene = Scene::new();
    scene.store.take_calls();
    open(scene.store.clone()).unwrap();
    let calls: Vec<_> = scene.store.take_calls().into_iter().map(|c| (c.op, c.path)).collect();
    let [config, slots, (Op::Get, slot)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(*config, (Op::Get, layout::CONFIG.into()));
    assert_eq!(*slots, (Op::List, layout::KEYS.into()));
    assert!(slot.starts_with(layout::KEYS));
}

#[test]
fn create_writes_what_is_new_and_reads_no_data() {
    let scene = Scene::new();
    let unchanged = scene.create(3);
    // Where what is named by its hash is at hand, reading it costs no request: with the config and the list of key slots,
    // ten in all.
    let asked: Vec<_> = unchanged.iter().copied().filter(|(op, ..)| *op != Op::Get).collect();
    let (put, list) = (|folder| (Op::Put, folder, 1), |folder| (Op::List, folder, 1));
    let live = list(layout::LIVE);
    let (listed, end) = ([live, list(layout::INDEX), list(layout::SNAPSHOTS)], (Op::Delete, layout::LIVE, 1));
    assert_eq!(asked, [&[put(layout::LIVE)], &listed[..], &[live, put(layout::SNAPSHOTS), live, end]].concat());
    assert_eq!(gets(&unchanged, layout::LIVE) + gets(&unchanged, layout::MARKS), 0);
    // Nothing but the session that keeps prunes off, and the snapshot.
    assert_eq!(
        writes(&unchanged),
        [(Op::Put, layout::LIVE, 1), (Op::Put, layout::SNAPSHOTS, 1), (Op::Delete, layout::LIVE, 1)]
    );
    assert_eq!(gets(&unchanged, layout::DATA_PACKS), 0);
    // One index file for each create so far; each earlier snapshot, for which is the newest of this source.
    assert_eq!((gets(&unchanged, layout::INDEX), gets(&unchanged, layout::SNAPSHOTS)), (3, 3));
    // The trees of five directories above and two in the source, and the root and leaf of the page map.
    assert!(gets(&unchanged, layout::METADATA_PACKS) <= 9, "{unchanged:?}");

    fs::write(scene.source().join("inner/1"), noise(9, 50_000)).unwrap();
    let changed = scene.create(4);
    // What is written later names what was written before, so that what is there is whole at any time.
    assert_eq!(
        writes(&changed),
        [
            (Op::Put, layout::LIVE, 1),
            (Op::Put, layout::DATA_PACKS, 1),
            (Op::Put, layout::METADATA_PACKS, 1),
            (Op::Put, layout::INDEX, 1),
            (Op::Put, layout::SNAPSHOTS, 1),
            (Op::Delete, layout::LIVE, 1)
        ]
    );
    assert_eq!(gets(&changed, layout::DATA_PACKS), 0);
}

#[test]
fn listing_reads_snapshots_alone() {
    let scene = Scene::new();
    let calls = scene.calls(|repo| drop(repo.snapshots(&Reporter::silent()).unwrap()));
    let marks = (Op::List, layout::MARKS, 1);
    assert_eq!(calls, [marks, (Op::List, layout::SNAPSHOTS, 1), (Op::Get, layout::SNAPSHOTS, 3)]);
}

#[test]
fn first_contact_reads_the_index_and_no_pack() {
    let scene = Scene::new();
    let calls = scene.calls(|repo| repo.load_index(&Reporter::silent()).unwrap());
    assert_eq!(calls, [(Op::List, layout::LIVE, 1), (Op::List, layout::INDEX, 1), (Op::Get, layout::INDEX, 3)]);
    prune(&open(scene.store.clone()).unwrap(), keep_last(1), true).unwrap();
    let calls = scene.calls(|repo| repo.load_index(&Reporter::silent()).unwrap());
    assert_eq!(gets(&calls, layout::INDEX), scene.store.list(layout::INDEX).unwrap().len());
    assert_eq!(gets(&calls, layout::DATA_PACKS) + gets(&calls, layout::METADATA_PACKS), 0);
}

#[test]
fn looking_reads_the_trees_on_the_way() {
    let scene = Scene::new();
    let depth = scene.source().components().count() - 1;
    let id = SnapshotId::parse(scene.store.list(layout::SNAPSHOTS).unwrap()[0].name()).unwrap();
    let calls = scene.calls(|repo| {
        repo.load_index(&Reporter::silent()).unwrap();
        let selected = selected(repo, id, &scene.source()).unwrap();
        look::ls(repo, &selected, false, &mut |_| Ok(())).unwrap();
    });
    assert_eq!(writes(&calls), []);
    assert_eq!(gets(&calls, layout::DATA_PACKS), 0);
    assert_eq!(gets(&calls, layout::SNAPSHOTS), 1);
    // All trees of one create share a frame: with the frame in memory, the next one costs nothing.
    assert!(gets(&calls, layout::METADATA_PACKS) <= depth + 1, "{calls:?}");
}

#[test]
fn restoring_one_file_reads_one_frame() {
    let scene = Scene::new();
    let id = create(&open(scene.store.clone()).unwrap(), &scene.source(), 3).unwrap();
    let target = tempfile::tempdir().unwrap();
    let calls = scene.calls(|repo| {
        restore(repo, id, &scene.source().join("inner/1"), target.path(), false);
    });
    assert_eq!(fs::read(target.path().join("1")).unwrap(), noise(201, 50_000));
    assert_eq!(writes(&calls), []);
    assert_eq!(gets(&calls, layout::DATA_PACKS), 1);
    // A database that has just been written is captured again, which may make one more.
    let index_files = scene.store.list(layout::INDEX).unwrap().len();
    assert_eq!((gets(&calls, layout::SNAPSHOTS), gets(&calls, layout::INDEX)), (1, index_files));
    let depth = scene.source().components().count();
    assert!(gets(&calls, layout::METADATA_PACKS) <= depth, "{calls:?}");
}

#[test]
fn a_prune_with_nothing_to_do_writes_its_session_alone() {
    let scene = Scene::new();
    // What forgetting and merging there is to do is done by two runs.
    for _ in 0..2 {
        prune(&open(scene.store.clone()).unwrap(), Policy::default(), true).unwrap();
    }
    let calls = scene.calls(|repo| drop(prune(repo, keep_last(10), false).unwrap()));
    assert_eq!(writes(&calls), [(Op::Put, layout::LIVE, 1), (Op::Delete, layout::LIVE, 1)]);
    // What snapshots need is in metadata.
    assert_eq!(gets(&calls, layout::DATA_PACKS), 0);
}
