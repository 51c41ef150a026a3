//! Writes the seed corpus of the fuzz targets: `cargo run --example fuzz_seeds`, from the project's directory.
//!
//! The layouts of inputs are those of `fuzz/fuzz_targets`. What carries a random salt differs from run to run.

use std::fs;
use std::path::Path;

use snapshot::backend::Bundler;
use snapshot::crypto::{BlobType, KdfCost, Keys, ObjectKey, Secret, TAG_BYTES};
use snapshot::format::cbor::{self, Time};
use snapshot::format::config::Config;
use snapshot::format::control::{Condemned, Session, SessionKind, seal};
use snapshot::format::facts::{Facts, TableRows};
use snapshot::format::header::{HEADER_BYTES, Header, Kind};
use snapshot::format::index::Index;
use snapshot::format::keyslot::{Slot, Unlock};
use snapshot::format::mark::{Mark, Proof, ProofKind};
use snapshot::format::pack::{Encoding, Entry, Frame, PackBuilder, class_key};
use snapshot::format::pagemap::{Inner, PageRef, Root, StoredLeaf};
use snapshot::format::segment::{self, Base, Delta, Segment};
use snapshot::format::snapshot::{Counts, Owner, Snapshot};
use snapshot::format::tree::{Content, Database, Node, NodeKind, Tree, WalStamp, Xattr, join_ids};
use snapshot::format::zstd;
use snapshot::id::{BlobId, PackId, SlotId, SnapshotId};
use snapshot::repo::recovery_code;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let keys = Keys::derive(&Secret([1; 32]));
    bundles()?;
    config_and_slots(&keys)?;
    packs_and_indexes(&keys)?;
    trees()?;
    page_maps()?;
    segments(&keys)?;
    control(&keys)?;
    sqlite()?;
    frames()?;
    for name in ["code", "code-2"] {
        put("recovery_code", name, &[recovery_code()?.0.as_bytes()])?;
    }
    put("recovery_code", "id", &[BlobId([0xa5; 32]).to_string().as_bytes()])
}

fn put(target: &str, name: &str, parts: &[&[u8]]) -> Result {
    let folder = Path::new("fuzz/seeds").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), parts.concat())?)
}

/// A piece of an input: its length, and itself.
fn piece(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn bundles() -> Result {
    let mut bundler = Bundler::default();
    for bytes in [&b""[..], b"an object", b"another object"] {
        bundler.add(&format!("snapshots/{}", PackId(*blake3::hash(bytes).as_bytes())), bytes);
    }
    put("bundle", "three", &[&bundler.finish()])
}

fn config_and_slots(keys: &Keys) -> Result {
    let config = Config::fresh()?;
    put("config", "file", &[&[0], &config.to_bytes(keys)?])?;
    put("config", "cbor", &[&[1], &cbor::encode(&config)])?;
    let cost = KdfCost { memory_kib: 19 * 1024, passes: 1, lanes: 1 };
    let unlocks = [
        ("password", Unlock::Password(b"secret".to_vec())),
        ("key-file", Unlock::KeyFile(vec![3; 32])),
        ("recovery-code", Unlock::RecoveryCode(vec![3; 20])),
    ];
    for (name, unlock) in unlocks {
        let bytes = Slot::make(&Secret([1; 32]), &unlock, cost, "laptop", Time { secs: 7, nanos: 8 })?.to_bytes();
        put("key_slot", name, &[&[0], &bytes])?;
        put("key_slot", &format!("{name}-cbor"), &[&[1], &bytes[HEADER_BYTES..]])?;
    }
    Ok(())
}

fn frame(kind: BlobType, encoding: Encoding, lengths: &[u32], bases: &[Base]) -> Frame {
    let entries = (0..).zip(lengths).map(|(i, n)| Entry { id: BlobId([i; 32]), kind, plain_bytes: *n });
    let plain_bytes: u32 = lengths.iter().sum();
    let body = vec![7; plain_bytes as usize];
    Frame { encoding, plain_bytes, entries: entries.collect(), bases: bases.to_vec(), body }
}

/// Opens messages of the stated sealed lengths, as far as they go.
fn opened(
    class: &Secret,
    file: &[u8],
    kind: Kind,
    lengths: impl Fn(&[Vec<u8>]) -> Option<usize>,
) -> Result<Vec<Vec<u8>>> {
    let header = Header::parse(file, kind, "seed")?;
    let key = ObjectKey::derive(class, &header.to_bytes());
    let mut out = Vec::new();
    let (mut at, mut next) = (HEADER_BYTES, Some(header.first_bytes as usize));
    while let Some(length) = next {
        let mut message = file.get(at..at + length).ok_or("too short")?.to_vec();
        if !key.open(out.len() as u32, &header.to_bytes(), &mut message) {
            return Err("not authentic".into());
        }
        out.push(message);
        at += length;
        next = lengths(&out);
    }
    Ok(out)
}

fn packs_and_indexes(keys: &Keys) -> Result {
    let mut index = Index::default();
    for (name, kind, way) in [("data", Kind::DataPack, 0), ("metadata", Kind::MetadataPack, 2)] {
        let mut builder = PackBuilder::new(kind);
        let blob = if kind == Kind::DataPack { BlobType::Chunk } else { BlobType::Tree };
        builder.push(frame(blob, Encoding::Raw, &[10, 20], &[]));
        builder.push(frame(blob, Encoding::Zstd, &[300], &[]));
        if kind == Kind::DataPack {
            let base = Base { id: BlobId([9; 32]), slots: [1, 7].into_iter().collect() };
            builder.push(frame(BlobType::Segment, Encoding::Segment, &[512], &[base]));
            let half = Segment { page_bytes: 512, pages: vec![Some(vec![7; 512]), None] };
            let body = segment::encode_partial(&half, &[[1; 16], [2; 16]], 3);
            builder.push(Frame { body, ..frame(BlobType::Segment, Encoding::Segment, &[512], &[]) });
        }
        let pack = builder.seal(keys)?;
        put("pack", name, &[&[way], &pack.bytes])?;
        let directory = opened(class_key(keys, kind), &pack.bytes, kind, |_| None)?.concat();
        put("pack", &format!("{name}-directory"), &[&[way | 1], &4096u32.to_le_bytes(), &directory])?;
        index.add(&pack.info);
    }
    let (_, bytes) = index.seal(keys)?;
    put("index", "file", &[&[0], &bytes])?;
    // The table has lengths for one block of packs (4 bytes) and one of records (4, and an id).
    let sealed = |table: &[u8], at: usize| {
        table.get(at..at + 4).and_then(|n| n.try_into().ok()).map(|n| u32::from_le_bytes(n) as usize)
    };
    let messages = opened(&keys.index, &bytes, Kind::Index, |read| match read {
        [table] => sealed(table, 8),
        [table, _] => sealed(table, 12),
        _ => None,
    })?;
    assert_eq!(HEADER_BYTES + messages.iter().map(|m| m.len() + TAG_BYTES).sum::<usize>(), bytes.len());
    let all: Vec<u8> = messages.iter().flat_map(|m| piece(m)).collect();
    put("index", "messages", &[&[1], &all])?;
    let blocks: Vec<u8> = messages.iter().skip(1).flat_map(|m| piece(m)).collect();
    put("index", "blocks", &[&[2, 1], &blocks])
}

fn facts() -> Facts {
    let tables = Some(vec![TableRows { name: "t".into(), rows: 300 }]);
    Facts { user_version: -7, schema_hash: Some([5; 32].into()), tables, ..Facts::default() }
}

fn nodes() -> Vec<Node> {
    let file = Node { size: Some(9), ..Node::bare(b"b-file", NodeKind::File) };
    let log = WalStamp { inode: 5, size: 6, mtime: Time::default(), ctime: Time::default(), salts: 7 };
    let database = Database {
        map: BlobId([4; 32]),
        captured: Time { secs: 9, nanos: 1 },
        device: 3,
        wal: Some(log),
        wal_mode: true,
        file_bytes: 8192,
        facts: Some(facts()),
    };
    let xattr = Xattr { name: b"user.a".to_vec().into(), value: b"v".to_vec().into() };
    vec![
        Node { tree: Some(BlobId([2; 32])), ..Node::bare(b"a-directory", NodeKind::Directory) },
        Node {
            content: Some(Content::new(1, &[BlobId([1; 32]), BlobId([2; 32])])),
            extents: Some(vec![0, 4, 6, 3]),
            xattrs: Some(vec![xattr]),
            inode: Some(77),
            ctime: Some(Time { secs: -1, nanos: 999_999_999 }),
            hard_link: Some(1),
            unverified: Some("locked".into()),
            ..file
        },
        Node { target: Some(b"../x".to_vec().into()), ..Node::bare(b"c-link", NodeKind::Symlink) },
        Node { size: Some(8192), database: Some(database), ..Node::bare(b"d.db", NodeKind::Database) },
        Node { rdev: Some(259), ..Node::bare(b"e-device", NodeKind::CharDevice) },
        Node::bare(b"f\xff", NodeKind::Fifo),
    ]
}

fn trees() -> Result {
    put("tree", "nodes", &[&[0], &cbor::encode(&Tree { nodes: nodes(), parts: None })])?;
    let parts = Some(vec![BlobId([1; 32]), BlobId([2; 32])]);
    put("tree", "parts", &[&[0], &cbor::encode(&Tree { nodes: vec![], parts })])?;
    put("tree", "content-list", &[&[1], &join_ids(&[BlobId([1; 32]), BlobId([2; 32])])])
}

fn page_maps() -> Result {
    let children = [BlobId([1; 32]), BlobId([2; 32])];
    let file_hash = vec![5; 32].into();
    let root = Root { page_bytes: 4096, pages: 5000, file_hash, height: 0, children: join_ids(&children) };
    put("page_map", "root", &[&[0], &cbor::encode(&root)])?;
    put("page_map", "inner", &[&[1], &cbor::encode(&Inner::new(&children))])?;
    let at = |segment: u8, slot: u8| PageRef { segment: BlobId([segment; 32]), slot, hash: [slot; 16] };
    let full = StoredLeaf::full(&(0..40).map(|i| at(i / 16, i % 16)).collect::<Vec<_>>());
    put("page_map", "leaf", &[&[2], &cbor::encode(&full)])?;
    let patch = StoredLeaf::patch(BlobId([8; 32]), &full, 300, &[(3, at(9, 1)), (4, at(8, 60)), (290, at(9, 2))]);
    put("page_map", "patch", &[&[2], &cbor::encode(&patch)])
}

fn segments(keys: &Keys) -> Result {
    let plain: Vec<u8> = (0..4 * 512).map(|i| (i / 7) as u8).collect();
    let hashes: Vec<_> = plain.chunks(512).map(|page| keys.page_hash(page)).collect();
    put("segment", "full", &[&[0], &segment::encode(512, &plain, 4, 3)])?;
    let pages = plain.chunks(512).enumerate().map(|(i, page)| (i != 2).then(|| page.to_vec())).collect();
    put("segment", "partial", &[&[0], &segment::encode_partial(&Segment { page_bytes: 512, pages }, &hashes, 3)])?;
    let base = &plain[512..1024];
    let refs = [None, Some((0, 1)), None, None];
    let present = (0..4).collect();
    let delta =
        Delta { page_bytes: 512, hashes: &hashes, present: &present, pages: &plain, refs: &refs, base_pages: base };
    let delta = segment::encode_delta(&delta, 3).ok_or("no delta")?;
    put("segment", "delta", &[&[1], &piece(&delta), base])?;
    put("segment", "pages", &[&[2, 0, 0b1011], &plain])
}

fn control(keys: &Keys) -> Result {
    let time = Time { secs: 1_800_000_000, nanos: 5 };
    let owner = Owner { id: 1000, name: "user".into() };
    let snapshot = Snapshot {
        time,
        host: "web1".into(),
        source: "/srv/app".into(),
        generation: 2,
        previous: Some(SnapshotId([6; 32])),
        paths: vec![b"/srv/app".to_vec().into()],
        tags: vec!["nightly".into()],
        tree: BlobId([7; 32]),
        counts: Counts { files: 3, bytes: 70_000, ..Counts::default() },
        program: "snapshot 0.1.0".into(),
        users: vec![owner.clone()],
        groups: vec![owner],
        started: time,
        slot: Some(SlotId([8; 32])),
        pinned: true,
        preset: Some("pocketbase".into()),
    };
    put("control", "snapshot-file", &[&[0], &seal(keys, Kind::Snapshot, &snapshot)?])?;
    put("control", "snapshot", &[&[1], &cbor::encode(&snapshot)])?;
    let condemned = Condemned { time, packs: vec![PackId([3; 32])], sessions: vec!["0a1b".into()] };
    put("control", "condemned", &[&[2], &cbor::encode(&condemned)])?;
    let (host, boot) = ("web1".into(), "boot".into());
    let session = Session { kind: SessionKind::Prune, host, boot, pid: 77, started: time };
    put("control", "session", &[&[3], &cbor::encode(&session)])?;
    let mark = Mark {
        time,
        snapshot: SnapshotId([6; 32]),
        add: vec!["release".into()],
        remove: vec!["nightly".into()],
        pin: Some(true),
        slot: Some(SlotId([8; 32])),
        proof: Some(Proof { time, program: "snapshot 0".into(), kind: ProofKind::Drill }),
    };
    put("control", "mark", &[&[4], &cbor::encode(&mark)])?;
    put("control", "mark-file", &[&[5], &seal(keys, Kind::Mark, &mark)?])
}

fn sqlite() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.db");
    let db = rusqlite::Connection::open(&path)?;
    db.execute_batch(
        "PRAGMA page_size = 512; PRAGMA journal_mode = WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1), (2);
         PRAGMA wal_checkpoint; UPDATE t SET a = 3; INSERT INTO t VALUES (4);",
    )?;
    let main = fs::read(&path)?;
    put("sqlite", "header", &[&[0], main.get(..100).ok_or("no header")?])?;
    put("sqlite", "log", &[&[1], &fs::read(folder.path().join("a.db-wal"))?])?;
    put("sqlite", "frames", &[&[2], &[0, 1, 0, 0, 9, 0, 2, 0, 2, 8, 0, 1, 0, 2, 7]])?;
    drop(db);
    std::fs::remove_file(&path)?;
    let db = rusqlite::Connection::open(&path)?;
    db.execute_batch(
        "PRAGMA page_size = 512; PRAGMA user_version = 9; CREATE TABLE t(a); CREATE VIEW v AS SELECT 1;
         CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID; INSERT INTO t VALUES (randomblob(1500)), (zeroblob(300));
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 90) INSERT INTO w SELECT i FROM n;
         DELETE FROM w WHERE a > 80",
    )?;
    put("observe", "file", &[&[8], &fs::read(&path)?])?;
    put("observe", "record", &[&[7], &cbor::encode(&facts())])
}

fn frames() -> Result {
    let old = b"SELECT * FROM accounts;\n".repeat(8);
    let packed = zstd::compress(&old, 3).ok_or("not compressed")?;
    let length = (old.len() as u32).to_le_bytes();
    put("zstd_frame", "plain", &[&[0], &length[..3], &packed])?;
    let mut new = old.clone();
    new[50] ^= 1;
    let delta = zstd::compress_delta(&new, &old, 3).ok_or("not compressed")?;
    put("zstd_frame", "delta", &[&[1], &length[..3], &old, &delta])?;
    put("zstd_frame", "text", &[&[2], &length[..3], &old])
}
