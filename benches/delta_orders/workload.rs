//! A SQLite database over which nights pass: the tables, texts and changes of `benches/make_data.py`, made small enough
//! for a year of them, with hot rows that change every night. Depends on `history` and `rng`.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, params};

use super::Result;
use super::history::{History, PAGE_BYTES};
use super::rng::Rng;

const SCHEMA: &str = "
    PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -100000;
    CREATE TABLE users (id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL UNIQUE, name TEXT, profile JSON, updated TEXT);
    CREATE TABLE posts (id TEXT PRIMARY KEY NOT NULL, author TEXT REFERENCES users(id), slug TEXT NOT NULL, title TEXT,
                        body TEXT, meta JSON, status TEXT, created TEXT, updated TEXT);
    CREATE TABLE events (id TEXT PRIMARY KEY NOT NULL, post TEXT, kind TEXT, data JSON, created TEXT);
    CREATE INDEX posts_author  ON posts (author, created);
    CREATE INDEX posts_status  ON posts (status, author);
    CREATE INDEX posts_created ON posts (created);
    CREATE INDEX posts_updated ON posts (updated);
    CREATE INDEX events_post   ON events (post);";
const WORDS: usize = 8000;
/// Of 100 changes of a night: updates of random rows and of hot ones, inserts, deletes.
const UPDATES: f64 = 58.0;
const HOT: f64 = 8.0;
const INSERTS: f64 = 18.0;
const DELETES: f64 = 16.0;

/// What to make.
pub struct Workload {
    /// Pages at first.
    pub pages: usize,
    /// Generations in all.
    pub generations: usize,
    /// The part of all pages that should change in a night.
    pub changed: f64,
}

/// Makes rows.
struct Rows {
    rng: Rng,
    words: Vec<String>,
    seconds: f64,
}

impl Rows {
    fn new() -> Self {
        let mut rng = Rng::new(1);
        let mut words = Vec::with_capacity(1 << 16);
        let weights: Vec<f64> = (0..WORDS).map(|rank| 1.0 / (rank as f64 + 2.7)).collect();
        let scale = 65536.0 / weights.iter().sum::<f64>();
        let mut due = 0.0;
        for (rank, weight) in weights.iter().enumerate() {
            let syllables = 1 + rng.below(if rank < WORDS / 8 { 3 } else { 4 });
            let mut word = String::new();
            for _ in 0..syllables {
                word.push(*rng.pick(b"bcdfghjklmnprstvwz") as char);
                word.push(*rng.pick(b"aeiou") as char);
            }
            word.push_str(rng.pick::<&str>(&["", "", "n", "r", "s", "t", "l", "nd", "rt", "ng"]));
            word.push_str(rng.pick::<&str>(&[" ", " ", " ", " ", " ", " ", " ", ", ", ". ", ".\n"]));
            due += weight * scale;
            while (words.len() as f64) < due.round() {
                words.push(word.clone());
            }
        }
        Self { rng, words, seconds: 0.0 }
    }

    fn text(&mut self, count: usize) -> String {
        (0..count).map(|_| self.rng.pick(&self.words).as_str()).collect::<String>().trim_end().to_owned()
    }

    fn key(&mut self) -> String {
        format!("r{:014x}", self.rng.next() >> 8)
    }

    /// Some time later than the last one.
    fn stamp(&mut self, mean_seconds: f64) -> String {
        self.seconds += self.rng.exponential(mean_seconds);
        let (day, second) = ((self.seconds / 86_400.0) as u64, self.seconds as u64 % 86_400);
        let (year, month, day) = (2020 + day / 360, 1 + day / 30 % 12, 1 + day % 30);
        let (hour, minute, millis) = (second / 3600, second / 60 % 60, self.seconds.fract() * 1000.0);
        format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}.{millis:03.0}Z", second % 60)
    }

    fn meta(&mut self, views: usize) -> String {
        let (likes, tag, file) = (self.rng.below(200), self.text(1), self.key());
        let lang = *self.rng.pick(&["en", "en", "de", "fr"]);
        let pinned = self.rng.below(50) == 0;
        format!(
            r#"{{"views": {views}, "likes": {likes}, "tags": ["{tag}"], "lang": "{lang}", "editor": {{"name": "blocks", "version": "2.4.1", "format": "markdown"}}, "flags": {{"pinned": {pinned}, "comments": true, "draft": false}}, "files": ["{file}.jpg"]}}"#
        )
    }

    fn users(&mut self, db: &Connection, count: usize) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let (id, name, bio, stamp) = (self.key(), self.text(2), self.text(12), self.stamp(1.0));
            let email = format!("{}@example.org", self.key());
            let profile = format!(r#"{{"avatar": "{id}.png", "locale": "en-GB", "bio": "{bio}"}}"#);
            let mut insert = db.prepare_cached("INSERT INTO users VALUES (?,?,?,?,?)")?;
            insert.execute(params![id, email, name, profile, stamp])?;
            ids.push(id);
        }
        Ok(ids)
    }

    fn post(&mut self, db: &Connection, authors: &[String], mean_seconds: f64) -> Result {
        let (id, author) = (self.key(), self.rng.pick(authors).clone());
        let (slug, title) = (self.text(3), self.text(5));
        let words = 60 + self.rng.exponential(162.0) as usize;
        let (body, views) = (self.text(words), self.rng.exponential(900.0) as usize);
        let (meta, stamp) = (self.meta(views), self.stamp(mean_seconds));
        let status = *self.rng.pick(&["published", "published", "published", "draft", "archived"]);
        let mut insert = db.prepare_cached("INSERT INTO posts VALUES (?,?,?,?,?,?,?,?,?)")?;
        insert.execute(params![id, author, slug, title, body, meta, status, stamp, stamp])?;
        if self.rng.below(2) == 0 {
            let data =
                format!(r#"{{"ip": "10.0.{}.7", "ms": {}, "ok": true}}"#, self.rng.below(256), self.rng.below(900));
            let mut insert = db.prepare_cached("INSERT INTO events VALUES (?,?,?,?,?)")?;
            insert.execute(params![self.key(), id, "post.view", data, stamp])?;
        }
        Ok(())
    }

    /// An author's change: some words of the text, now and then a sentence more; and the count of views.
    fn update(&mut self, db: &Connection, row: i64) -> Result {
        let mut select =
            db.prepare_cached("SELECT rowid, body, meta FROM posts WHERE rowid >= ? ORDER BY rowid LIMIT 1")?;
        let get =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
        let (row, body, meta) = select.query_row([row], get)?;
        let mut words: Vec<&str> = body.split(' ').collect();
        let new = self.text(3);
        let at = self.rng.below(words.len());
        words.splice(at..(at + 3).min(words.len()), new.split(' '));
        let mut body = words.join(" ");
        if self.rng.below(10) < 3 {
            body = format!("{body} {}", self.text(12));
        }
        let views: usize = meta[10..].split(',').next().unwrap_or_default().parse()?;
        let meta = meta.replacen(&format!(": {views},"), &format!(": {},", views + 1 + self.rng.below(50)), 1);
        let mut update = db.prepare_cached("UPDATE posts SET body = ?, meta = ?, updated = ? WHERE rowid = ?")?;
        update.execute(params![body, meta, self.stamp(10.0), row])?;
        Ok(())
    }

    /// A night's changes, in random order.
    fn night(&mut self, db: &Connection, authors: &[String], hundreds: f64) -> Result {
        let last: i64 = db.query_row("SELECT max(rowid) FROM posts", [], |row| row.get(0))?;
        self.seconds += 3600.0;
        let count = |this: &mut Self, of_100: f64| (of_100 * hundreds + this.rng.share()) as usize;
        let mut steps = Vec::new();
        for (kind, of_100) in [UPDATES, HOT, INSERTS, DELETES].into_iter().enumerate() {
            let hot = if kind == 1 { (of_100 * hundreds).ceil() as usize } else { count(self, of_100) };
            steps.extend((0..hot).map(|number| (kind, number)));
        }
        for at in (1..steps.len()).rev() {
            let other = self.rng.below(at + 1);
            steps.swap(at, other);
        }
        db.execute_batch("BEGIN")?;
        for (kind, number) in steps {
            let row = 1 + self.rng.below(last as usize) as i64;
            match kind {
                0 => self.update(db, row)?,
                // The same rows each night, far from each other.
                1 => self.update(db, 1 + number as i64 * 97)?,
                2 => self.post(db, authors, 10.0)?,
                _ => {
                    let mut delete = db.prepare_cached(
                        "DELETE FROM posts WHERE rowid = (SELECT min(rowid) FROM posts WHERE rowid >= ?)",
                    )?;
                    delete.execute([row])?;
                }
            }
        }
        Ok(db.execute_batch("COMMIT")?)
    }
}

/// Passes the nights over a database in `folder` and reads its file after each, once everything is in it.
///
/// # Errors
/// What SQLite or the file system say.
pub fn run(workload: &Workload, folder: &Path) -> Result<History> {
    let path = folder.join("data.db");
    let db = Connection::open(&path)?;
    db.execute_batch(SCHEMA)?;
    let mut rows = Rows::new();
    db.execute_batch("BEGIN")?;
    let authors = rows.users(&db, workload.pages / 13)?;
    while db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))? < workload.pages as i64 {
        rows.post(&db, &authors, 170.0)?;
    }
    db.execute_batch("COMMIT")?;
    let mut history = History::default();
    let mut hundreds = workload.changed * workload.pages as f64 / 240.0;
    for generation in 0..workload.generations {
        if generation > 0 {
            rows.night(&db, &authors, hundreds)?;
        }
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        let file = fs::read(&path)?;
        let changed = history.add(&file) as f64;
        if generation > 0 {
            // Towards the part that is wanted, slowly.
            let wanted = workload.changed * (file.len() / PAGE_BYTES) as f64;
            hundreds *= (wanted / changed.max(1.0)).powf(0.2).clamp(0.9, 1.1);
        }
    }
    Ok(history)
}
