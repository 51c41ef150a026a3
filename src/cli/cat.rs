//! `snapshot cat`

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use snapshot::backend::layout;
use snapshot::crypto::BlobType;
use snapshot::error::{Error, Result};
use snapshot::format::control::{Condemned, SessionKind};
use snapshot::format::header::Kind;
use snapshot::format::index::{Index, IndexedPack};
use snapshot::format::mark::Mark;
use snapshot::format::pack::{Encoding, PackInfo};
use snapshot::format::pagemap::Change;
use snapshot::format::segment::Base;
use snapshot::format::snapshot::{Owner, Snapshot};
use snapshot::format::tree::{Content, Node, Tree, split_ids};
use snapshot::id::{BlobId, PackId, hex};
use snapshot::index::Place;
use snapshot::job::cat::{self, MapNode};
use snapshot::repo::{Named, Running, Start};

use super::args::{Cat, Filters, Object};
use super::context::{Context, Session};
use super::create::counts_json;
use super::key;
use super::nodes::{dump_json, facts_json, proof_json, word, xattr_json};
use super::output::{Out, document, put_path, rfc3339};

/// Shows a stored object, or writes the bytes of a blob.
pub fn run(context: &Context, args: &Cat, out: &mut Out) -> Result<()> {
    let session = context.open_as_stored()?;
    let id = args.id.as_deref();
    let named = || id.ok_or_else(|| Error::Usage("give the start of its id".into()));
    if matches!(args.kind, Object::Tree | Object::Map | Object::Blob | Object::Index) {
        session.repo.load_index(&context.reporter)?;
    }
    let value = match args.kind {
        Object::Config => config(&session),
        Object::Key => keys(&session, id)?,
        Object::Snapshot => snapshot(context, &session, named()?)?,
        Object::Tree => tree(context, &session, named()?)?,
        Object::Map => map(context, &session, named()?)?,
        Object::Index => match id {
            Some(id) => index_file(&session, id)?,
            None => whole_index(&session)?,
        },
        Object::Pack => pack_json(&cat::pack(&session.repo, named()?)?),
        Object::Blob => {
            let (id, places) = cat::find_blob(&session.repo, None, named()?)?;
            if !context.global.json {
                return blob(&session, &id, &places, out);
            }
            blob_json(&session, &id, &places)
        }
        Object::Mark => marks(&session, id)?,
        Object::Session => sessions(&session, id)?,
        Object::Gc => records(context, &session, id)?,
    };
    if context.global.json {
        return match value {
            Value::Object(_) => out.json(&document(value).into()),
            several => out.json(&several),
        };
    }
    let text = format!("{value:#}");
    // JSON leaves some control characters as they are; a terminal may obey them.
    let escape = |c: char| if c.is_control() && c != '\n' { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    if out.is_terminal() { out.line(text.chars().map(escape).collect::<String>()) } else { out.line(text) }
}

fn ids(ids: &[BlobId]) -> Value {
    ids.iter().map(ToString::to_string).collect()
}

fn bases(bases: &[Base]) -> Value {
    bases.iter().map(|b| json!({ "id": b.id.to_string(), "slots": b.slots.iter().collect::<Vec<_>>() })).collect()
}

/// Ids as stored, one after the other; in hex if they are not whole ids.
fn joined(bytes: &[u8]) -> Value {
    split_ids(bytes).map_or_else(|| json!(hex(bytes)), |list| ids(&list))
}

fn kind_word(kind: BlobType) -> &'static str {
    match kind {
        BlobType::Chunk => "chunk",
        BlobType::Segment => "segment",
        BlobType::Tree => "tree",
        BlobType::List => "list",
        BlobType::Map => "map",
    }
}

fn encoding_word(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Zstd => "zstd",
        Encoding::Segment => "segment",
    }
}

fn pack_kind(kind: Kind) -> &'static str {
    if kind == Kind::DataPack { "data" } else { "metadata" }
}

fn config(session: &Session) -> Value {
    let config = session.repo.config();
    json!({
        "id": config.id(),
        "min_reader": config.min_reader,
        "min_writer": config.min_writer,
        "features": config.features,
        "chunker": config.chunker.name,
        "chunker_min_bytes": config.chunker.min_bytes,
        "chunker_desired_bytes": config.chunker.desired_bytes,
        "chunker_max_bytes": config.chunker.max_bytes,
    })
}

fn keys(session: &Session, id: Option<&str>) -> Result<Value> {
    let mut slots = session.repo.list_slots()?;
    let Some(id) = id else { return Ok(slots.iter().map(key::to_json).collect()) };
    let found = cat::object(&session.repo, &[layout::KEYS], "key slot", id)?;
    slots.retain(|slot| slot.id == found.name());
    let unreadable = || Error::corrupt(&found.path, "it can't be read");
    slots.first().map(key::to_json).ok_or_else(unreadable)
}

fn snapshot(context: &Context, session: &Session, name: &str) -> Result<Value> {
    let (Named { id, snapshot, .. }, is_forgotten) = if name.starts_with("latest") {
        (session.repo.select(name, &Filters::default().into(), &context.reporter)?.named, false)
    } else {
        cat::snapshot(&session.repo, name)?
    };
    let mut value = snapshot_json(&snapshot);
    value["id"] = json!(id.to_string());
    value["forgotten"] = json!(is_forgotten);
    Ok(value)
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    let owners = |owners: &[Owner]| owners.iter().map(|o| json!({"id": o.id, "name": o.name})).collect::<Value>();
    let path = |path: &[u8]| {
        let mut object = Map::new();
        put_path(&mut object, "path", path);
        Value::from(object)
    };
    json!({
        "time": rfc3339(snapshot.time),
        "started": rfc3339(snapshot.started),
        "host": snapshot.host,
        "source": snapshot.source,
        "generation": snapshot.generation,
        "previous": snapshot.previous.map(|id| id.to_string()),
        "paths": snapshot.paths.iter().map(|p| path(p)).collect::<Value>(),
        "tags": snapshot.tags,
        "pinned": snapshot.pinned,
        "preset": snapshot.preset,
        "slot": snapshot.slot.map(|id| id.to_string()),
        "tree": snapshot.tree.to_string(),
        "counts": counts_json(&snapshot.counts),
        "program": snapshot.program,
        "users": owners(&snapshot.users),
        "groups": owners(&snapshot.groups),
    })
}

/// A place in a snapshot, if that is how the blob was named.
fn place(context: &Context, session: &Session, name: &str) -> Result<Option<Start>> {
    if !name.starts_with("latest") && !name.contains(':') {
        return Ok(None);
    }
    let selected = session.repo.select(name, &Filters::default().into(), &context.reporter)?;
    selected.find(&session.repo, &[]).map(Some)
}

fn tree(context: &Context, session: &Session, name: &str) -> Result<Value> {
    let id = match place(context, session, name)? {
        None => cat::find_blob(&session.repo, Some(BlobType::Tree), name)?.0,
        Some(Start::Directory(tree, _)) => tree,
        Some(Start::Other(node)) => {
            let what = format!("\"{}\" is no directory", node.display_name());
            return Err(Error::refused(what, "name the directory around it"));
        }
    };
    let Tree { nodes, parts } = cat::tree(&session.repo, &id)?;
    let nodes: Value = nodes.iter().map(node_json).collect();
    Ok(json!({"id": id.to_string(), "nodes": nodes, "parts": parts.map(|parts| ids(&parts))}))
}

fn node_json(node: &Node) -> Value {
    let mut object = Map::new();
    put_path(&mut object, "name", &node.name);
    let mut put = |key: &str, value: Option<Value>| value.into_iter().for_each(|v| drop(object.insert(key.into(), v)));
    put("kind", Some(json!(word(node.kind))));
    put("mode", Some(json!(node.mode)));
    put("uid", Some(json!(node.uid)));
    put("gid", Some(json!(node.gid)));
    put("mtime", Some(json!(rfc3339(node.mtime))));
    put("ctime", node.ctime.map(|time| json!(rfc3339(time))));
    put("inode", node.inode.map(|n| json!(n)));
    put("size", node.size.map(|n| json!(n)));
    let content = |c: &Content| json!({"level": c.level, "ids": joined(&c.ids)});
    put("content", node.content.as_ref().map(content));
    put("rdev", node.rdev.map(|n| json!(n)));
    put("xattrs", node.xattrs.as_ref().map(|xattrs| xattrs.iter().map(xattr_json).collect()));
    put("extents", node.extents.as_ref().map(|extents| json!(extents)));
    put("tree", node.tree.map(|id| json!(id.to_string())));
    let database = node.database.as_ref().map(|database| {
        let wal = database.wal.as_ref().map(|wal| {
            let (mtime, ctime) = (rfc3339(wal.mtime), rfc3339(wal.ctime));
            json!({"inode": wal.inode, "size": wal.size, "mtime": mtime, "ctime": ctime, "salts": wal.salts})
        });
        json!({
            "map": database.map.to_string(),
            "captured": rfc3339(database.captured),
            "device": database.device,
            "wal": wal,
            "wal_mode": database.wal_mode,
            "file_bytes": database.file_bytes,
            "facts": database.facts.as_ref().map(facts_json),
        })
    });
    put("database", database);
    put("dump", node.dump.as_ref().map(dump_json));
    put("hard_link", node.hard_link.map(|n| json!(n)));
    put("unverified", node.unverified.as_ref().map(|why| json!(why)));
    if let Some(target) = &node.target {
        put_path(&mut object, "target", target);
    }
    object.into()
}

fn map(context: &Context, session: &Session, name: &str) -> Result<Value> {
    let id = match place(context, session, name)? {
        None => Some(cat::find_blob(&session.repo, Some(BlobType::Map), name)?.0),
        Some(Start::Other(node)) => node.database.map(|database| database.map),
        Some(Start::Directory(..)) => None,
    };
    let no_database = || Error::refused(format!("\"{name}\" is no database"), "name a database in a snapshot");
    let id = id.ok_or_else(no_database)?;
    let mut value = match cat::map(&session.repo, &id)? {
        MapNode::Root(root) => json!({
            "part": "root",
            "page_bytes": root.page_bytes,
            "pages": root.pages,
            "file_hash": hex(&root.file_hash),
            "height": root.height,
            "children": joined(&root.children),
        }),
        MapNode::Inner(children) => json!({"part": "inner", "children": ids(&children)}),
        MapNode::Leaf(leaf, changes) => json!({
            "part": "leaf",
            "parent": leaf.parent.map(|id| id.to_string()),
            "depth": leaf.depth,
            "chain_bytes": leaf.chain_bytes,
            "pages": leaf.pages,
            "entries": changes.iter().map(entry_json).collect::<Value>(),
        }),
    };
    value["id"] = json!(id.to_string());
    Ok(value)
}

fn entry_json((page, at): &Change) -> Value {
    json!({"page": page, "segment": at.segment.to_string(), "slot": at.slot, "hash": hex(&at.hash)})
}

fn pack_json(pack: &PackInfo) -> Value {
    let frames = pack.frames.iter().zip(pack.frame_offsets()).map(|(frame, offset)| {
        let blobs = frame.entries.iter().map(|entry| {
            json!({"id": entry.id.to_string(), "type": kind_word(entry.kind), "plain_bytes": entry.plain_bytes})
        });
        json!({
            "offset": offset,
            "stored_bytes": frame.stored_bytes,
            "plain_bytes": frame.plain_bytes,
            "encoding": encoding_word(frame.encoding),
            "bases": bases(&frame.bases),
            "blobs": blobs.collect::<Value>(),
        })
    });
    json!({
        "id": pack.id.to_string(),
        "kind": pack_kind(pack.header.kind),
        "file_bytes": pack.file_bytes,
        "directory_bytes": pack.header.first_bytes,
        "frames": frames.collect::<Value>(),
    })
}

fn index_file(session: &Session, id: &str) -> Result<Value> {
    let (found, Index { packs, records }) = cat::index(&session.repo, id)?;
    let pack_id = |n: u32| packs.get(n as usize).map(|pack| pack.id.to_string());
    let blobs = records.iter().map(|record| {
        json!({
            "id": record.id.to_string(),
            "type": kind_word(record.kind),
            "pack": pack_id(record.pack),
            "frame": record.frame,
            "offset": record.offset,
            "plain_bytes": record.plain_bytes,
        })
    });
    Ok(json!({
        "id": found.name(),
        "bytes": found.bytes,
        "packs": packs.iter().map(indexed_pack_json).collect::<Value>(),
        "blobs": blobs.collect::<Value>(),
    }))
}

fn indexed_pack_json(pack: &IndexedPack) -> Value {
    let frames = (0..).zip(&pack.frames).map(|(number, frame)| {
        json!({
            "stored_bytes": frame.stored_bytes(),
            "plain_bytes": frame.plain_bytes(),
            "encoding": encoding_word(frame.encoding()),
            "bases": bases(pack.bases(number)),
        })
    });
    json!({
        "id": pack.id.to_string(),
        "kind": pack_kind(pack.kind()),
        "file_bytes": pack.file_bytes,
        "frames": frames.collect::<Value>(),
    })
}

fn whole_index(session: &Session) -> Result<Value> {
    let files = session.repo.backend().list(layout::INDEX)?;
    let index = session.repo.index();
    let mut blobs: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (_, place) in index.iter() {
        let (count, bytes) = blobs.entry(kind_word(place.kind)).or_default();
        *count += 1;
        *bytes += u64::from(place.plain_bytes);
    }
    let blobs =
        blobs.into_iter().map(|(kind, (n, bytes))| (kind.to_owned(), json!({"places": n, "plain_bytes": bytes})));
    let packs = |kind: Kind| {
        let packs = index.packs().iter().filter(|pack| pack.kind() == kind);
        let (n, bytes) = packs.fold((0u64, 0u64), |(n, bytes), pack| (n + 1, bytes + pack.file_bytes));
        json!({"packs": n, "bytes": bytes})
    };
    Ok(json!({
        "files": files.iter().map(|file| json!({"id": file.name(), "bytes": file.bytes})).collect::<Value>(),
        "data": packs(Kind::DataPack),
        "metadata": packs(Kind::MetadataPack),
        "condemned": index.packs().iter().filter(|pack| index.is_condemned(&pack.id)).count(),
        "blobs": blobs.collect::<Map<_, _>>(),
        "different_blobs": index.len(),
    }))
}

fn blob(session: &Session, id: &BlobId, places: &[Place], out: &mut Out) -> Result<()> {
    if out.is_terminal() {
        return Err(Error::refused("the bytes of a blob are nothing for a terminal", "redirect them, or use --json"));
    }
    let missing = || Error::Missing { what: format!("blob {id}") };
    let kind = places.first().ok_or_else(missing)?.kind;
    out.text(cat::blob(&session.repo, id, kind)?)
}

fn blob_json(session: &Session, id: &BlobId, places: &[Place]) -> Value {
    let index = session.repo.index();
    let place_json = |place: &Place| {
        let pack = index.packs().get(place.pack as usize);
        json!({
            "pack": pack.map(|pack| pack.id.to_string()),
            "condemned": pack.is_some_and(|pack| index.is_condemned(&pack.id)),
            "frame": place.frame,
            "offset": place.offset,
            "plain_bytes": place.plain_bytes,
            "type": kind_word(place.kind),
        })
    };
    json!({"id": id.to_string(), "places": places.iter().map(place_json).collect::<Value>()})
}

fn marks(session: &Session, snapshot: Option<&str>) -> Result<Value> {
    let all = session.repo.read_marks()?;
    let digits = snapshot.unwrap_or_default().to_ascii_lowercase();
    Ok(all.iter().filter(|mark| mark.snapshot.to_string().starts_with(&digits)).map(mark_json).collect())
}

fn mark_json(mark: &Mark) -> Value {
    json!({
        "time": rfc3339(mark.time),
        "snapshot": mark.snapshot.to_string(),
        "add": mark.add,
        "remove": mark.remove,
        "pin": mark.pin,
        "proof": mark.proof.as_ref().map(proof_json),
        "slot": mark.slot.map(|id| id.to_string()),
    })
}

fn sessions(session: &Session, id: Option<&str>) -> Result<Value> {
    let mut all = session.repo.sessions()?;
    let Some(id) = id else { return Ok(all.iter().map(session_json).collect()) };
    let digits = id.to_ascii_lowercase();
    all.retain(|running| running.name.starts_with(&digits));
    match &all[..] {
        [one] => Ok(session_json(one)),
        [] => Err(Error::Unknown { kind: "session", name: id.into() }),
        _ => Err(Error::refused(format!("\"{id}\" fits several sessions"), "give more digits")),
    }
}

fn session_json(running: &Running) -> Value {
    let mut value = json!({
        "name": running.name,
        "first_seen": rfc3339(running.first_seen),
        "last_seen": rfc3339(running.last_seen),
    });
    if let Some(session) = &running.session {
        value["kind"] = json!(if session.kind == SessionKind::Prune { "prune" } else { "write" });
        value["host"] = json!(session.host);
        value["boot"] = json!(session.boot);
        value["pid"] = json!(session.pid);
        value["started"] = json!(rfc3339(session.started));
    }
    value
}

fn records(context: &Context, session: &Session, id: Option<&str>) -> Result<Value> {
    let Some(id) = id else {
        let all = session.repo.condemned(&context.reporter)?;
        return Ok(all.iter().map(|c| record_json(c.path.rsplit('/').next().unwrap_or_default(), &c.record)).collect());
    };
    let (found, record) = cat::condemned(&session.repo, id)?;
    Ok(record_json(found.name(), &record))
}

fn record_json(id: &str, record: &Condemned) -> Value {
    json!({
        "id": id,
        "time": rfc3339(record.time),
        "packs": record.packs.iter().map(PackId::to_string).collect::<Value>(),
        "sessions": record.sessions,
    })
}
