//! PocketBase: collections say which fields of their records name files, in
//! `storage/<id of the collection>/<id of the record>/<name>`.
//!
//! From core/collection_model.go, core/field_file.go and core/record_model.go (BaseFilesPath) of 0.23 and later, and
//! models/collection.go and models/schema of before: the list of fields was the column `schema` of `_collections`, and is
//! `fields` now. A field holds one name, or a JSON array of names. A file is written before its row, and removed after
//! it.

use rusqlite::Connection;
use serde_json::Value;

use super::references::{Each, Place, Read, Reference, Stop, Table, needed};

/// A collection whose records may have files.
struct Collection {
    id: String,
    name: String,
    fields: Vec<String>,
}

/// Whether a file in the storage is made from another one: thumbnails, and gocloud.dev's notes on a file.
pub(super) fn is_byproduct(path: &str) -> bool {
    path.ends_with(".attrs") || path.split('/').any(|part| part.starts_with("thumbs_"))
}

/// Hands on what all records refer to.
pub(super) fn read(db: &Connection, each: &mut Each<'_>) -> Result<Read, Stop> {
    let collections = needed(db, "_collections")?;
    let fields = if collections.has("fields") { "fields" } else { "schema" };
    let mut read = Read { place: place(db)?, ..Read::default() };
    let mut found = Vec::new();
    collections.rows(&["id", "name", "type", fields], &mut |row| {
        let [Some(id), Some(name), kind, fields] = &row[..] else { return Ok(()) };
        if kind.as_deref() == Some("view") {
            return Ok(());
        }
        match fields.as_deref().and_then(file_fields) {
            Some(fields) if fields.is_empty() => {}
            Some(fields) => found.push(Collection { id: id.clone(), name: name.clone(), fields }),
            None => read.trouble(format!("the fields of collection {name} are no list of fields")),
        }
        Ok(())
    })?;
    for collection in found {
        match Table::open(db, &collection.name)? {
            Some(table) => records(&table, &collection, each, &mut read)?,
            None => read.trouble(format!("collection {} has no table", collection.name)),
        }
    }
    Ok(read)
}

/// The names of those fields that name files; `None` if this is no list of fields.
fn file_fields(json: &str) -> Option<Vec<String>> {
    let Value::Array(fields) = serde_json::from_str(json).ok()? else { return None };
    let name = |field: &Value| Some((field.get("type")?.as_str()?.to_owned(), field.get("name")?.as_str()?.to_owned()));
    let all = fields.iter().map(name).collect::<Option<Vec<_>>>()?;
    Some(all.into_iter().filter(|(kind, _)| kind == "file").map(|(_, name)| name).collect())
}

fn records(table: &Table<'_>, collection: &Collection, each: &mut Each<'_>, read: &mut Read) -> Result<(), Stop> {
    let Collection { id, name, fields } = collection;
    if let Some(missing) = fields.iter().find(|field| !table.has(field)) {
        read.trouble(format!("the table of collection {name} has no column {missing}"));
    }
    let known: Vec<_> = fields.iter().map(String::as_str).filter(|field| table.has(field)).collect();
    let columns = [&["id"], &known[..]].concat();
    table.rows(&columns, &mut |row| {
        let Some((Some(record), values)) = row.split_first() else { return Ok(()) };
        for (field, value) in known.iter().zip(values) {
            for file in value.as_deref().map(names_in).unwrap_or_default() {
                let row = format!("{field} of record {record} in {name}");
                each(Reference { path: format!("storage/{id}/{record}/{file}"), row }).map_err(Stop::Ended)?;
            }
        }
        Ok(())
    })
}

/// The names in a field: one, or an array.
fn names_in(value: &str) -> Vec<String> {
    let mut names = match serde_json::from_str(value) {
        Ok(Value::Array(names)) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => vec![value.to_owned()],
    };
    names.retain(|name| !name.is_empty());
    names
}

/// Whether the settings say that files are kept in S3. They may be encrypted.
fn place(db: &Connection) -> Result<Place, Stop> {
    let Some(params) = Table::open(db, "_params")? else { return Ok(Place::Unknown) };
    // The key was a column of its own before 0.23.
    let key = if params.has("key") { "key" } else { "id" };
    let mut place = Place::Unknown;
    params.rows(&[key, "value"], &mut |row| {
        if let [Some(key), Some(value)] = &row[..]
            && key == "settings"
            && let Ok(settings @ Value::Object(_)) = serde_json::from_str(value)
        {
            let in_s3 = settings.pointer("/s3/enabled").and_then(Value::as_bool).unwrap_or(false);
            place = if in_s3 { Place::Elsewhere } else { Place::Beside };
        }
        Ok(())
    })?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(sql: &str) -> (Vec<Reference>, Result<Read, Stop>) {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(sql).unwrap();
        let mut found = Vec::new();
        let read = read(&db, &mut |reference| {
            found.push(reference);
            Ok(())
        });
        (found, read)
    }

    const COLLECTIONS: &str = "CREATE TABLE _collections(id TEXT PRIMARY KEY, type TEXT, name TEXT, fields JSON);";

    #[test]
    fn names_alone_and_in_arrays() {
        assert_eq!(names_in("a_1.png"), ["a_1.png"]);
        assert_eq!(names_in(r#"["a.png","b.png",3,""]"#), ["a.png", "b.png"]);
        assert_eq!(names_in("[x].png"), ["[x].png"]);
        assert!(names_in("").is_empty() && names_in("[]").is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_named_and_the_rest_is_read() {
        let deep = "[".repeat(100_000);
        let rows = [
            (
                "c1",
                "base",
                "good",
                r#"[{"name":"f","type":"file"},{"name":"none","type":"file"},{"name":"t","type":"text"}]"#,
            ),
            ("c2", "base", "cut", r#"[{"name":"f","type":"fi"#),
            ("c3", "base", "shape", r#"{"name":"f"}"#),
            ("c4", "base", "deep", &deep),
            ("c5", "base", "gone", r#"[{"name":"f","type":"file"}]"#),
            ("c6", "base", "a_view", r#"[{"name":"f","type":"file"}]"#),
            ("c7", "base", "virtual", r#"[{"name":"f","type":"file"}]"#),
            ("c8", "base", "made", r#"[{"name":"f","type":"file"}]"#),
            ("c9", "view", "a_view", r#"[{"name":"f","type":"file"}]"#),
            ("c10", "base", "x\"; DROP TABLE good; --", r#"[{"name":"f","type":"file"}]"#),
        ];
        let mut sql = COLLECTIONS.to_owned();
        for (id, kind, name, fields) in rows {
            sql += &format!("INSERT INTO _collections VALUES('{id}','{kind}','{name}','{fields}');");
        }
        sql += "CREATE TABLE good(id TEXT, f TEXT, t TEXT); INSERT INTO good VALUES('r1','../../data.db','x'), (NULL,'y','z');
                CREATE VIEW a_view AS SELECT 'r' AS id, 'f' AS f;
                CREATE VIRTUAL TABLE virtual USING fts5(id, f); INSERT INTO virtual VALUES('r', 'f');
                CREATE TABLE made(id TEXT, f TEXT AS ('x')); INSERT INTO made VALUES('r');";
        let (found, read) = all(&sql);
        let read = read.unwrap();
        let row = "f of record r1 in good".to_owned();
        assert_eq!(found, [Reference { path: "storage/c1/r1/../../data.db".into(), row }]);
        assert_eq!(read.troubles.len(), 9, "{:?}", read.troubles);
        assert_eq!(read.place, Place::Unknown);
    }

    #[test]
    fn the_layout_of_before() {
        let sql = r#"CREATE TABLE _collections(id TEXT, type TEXT, name TEXT, "schema" JSON);
            CREATE TABLE _params(id TEXT, key TEXT, value JSON);
            INSERT INTO _params VALUES('x', 'settings', '{"s3":{"enabled":true}}');
            INSERT INTO _collections VALUES('c', 'auth', 'users', '[{"name":"avatar","type":"file","options":{"maxSelect":1}}]');
            CREATE TABLE users(id TEXT, avatar TEXT); INSERT INTO users VALUES('u', 'a.png'), ('v', '');"#;
        let (found, read) = all(sql);
        assert_eq!(found.iter().map(|r| &*r.path).collect::<Vec<_>>(), ["storage/c/u/a.png"]);
        assert_eq!(read.unwrap(), Read { place: Place::Elsewhere, troubles: Vec::new() });
    }

    #[test]
    fn another_database() {
        assert!(matches!(all("CREATE TABLE t(a)").1, Err(Stop::NotThis(_))));
        assert!(matches!(all("CREATE TABLE _collections(id TEXT)").1, Err(Stop::NotThis(_))));
        assert!(matches!(all("CREATE VIEW _collections AS SELECT 1").1, Err(Stop::NotThis(_))));
    }
}
