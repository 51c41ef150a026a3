//! Loading: an archive goes to `pg_restore`, in one transaction, so that a database has all of it or is as it was.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use super::child::Input;
use super::{Child, Url};
use crate::error::{Error, Result};
use crate::report::Reporter;

/// Databases that every server has, and from where others can be asked for.
const MAINTENANCE: [&[u8]; 2] = [b"postgres", b"template1"];
/// Most bytes of an answer that are looked at.
const ANSWER_BYTES: u64 = 16 << 20;
/// Counts what a user has made in a database: relations, functions, types, schemas and large objects that are neither
/// the system's nor an extension's.
const COUNT_OBJECTS: &str = "
WITH own AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
found AS (
  SELECT oid, 'pg_class'::regclass AS class FROM pg_class WHERE relnamespace IN (SELECT oid FROM own)
  UNION ALL SELECT oid, 'pg_proc'::regclass FROM pg_proc WHERE pronamespace IN (SELECT oid FROM own)
  UNION ALL SELECT oid, 'pg_type'::regclass FROM pg_type WHERE typnamespace IN (SELECT oid FROM own)
  UNION ALL SELECT oid, 'pg_namespace'::regclass FROM pg_namespace
    WHERE oid IN (SELECT oid FROM own) AND nspname <> 'public'
  UNION ALL SELECT oid, 'pg_largeobject'::regclass FROM pg_largeobject_metadata)
SELECT count(*) FROM found
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = found.oid AND d.classid = found.class AND d.deptype = 'e');
";

/// What becomes of what a database holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clean {
    /// It must hold nothing.
    No,
    /// What the archive has too is dropped first.
    Yes,
}

/// A database that something is to be loaded into.
pub struct Target {
    url: Url,
    name: Vec<u8>,
}

impl Target {
    /// The database of that name, on the server and as the user of a URL.
    pub fn new(url: &Url, name: &[u8]) -> Self {
        Self { url: url.with_database(name), name: name.to_vec() }
    }

    /// Server and name, for people.
    pub fn label(&self) -> String {
        self.url.label()
    }

    /// Whether the database exists.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub fn exists(&self, reporter: &Reporter) -> Result<bool> {
        let error = match self.ask(&self.name, "SELECT 1;", reporter) {
            Ok(_) => return Ok(true),
            Err(e) => e,
        };
        let count = "SELECT count(*) FROM pg_database WHERE datname = :'name';";
        match MAINTENANCE.iter().find_map(|database| self.ask(database, count, reporter).ok()) {
            Some(found) if found.trim() == "0" => Ok(false),
            _ => Err(error),
        }
    }

    /// Whether nothing was made in the database yet.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub fn is_empty(&self, reporter: &Reporter) -> Result<bool> {
        Ok(self.ask(&self.name, COUNT_OBJECTS, reporter)?.trim() == "0")
    }

    /// Makes the database, with the encoding and locale that an archive says, of which `next` has the pieces.
    ///
    /// # Errors
    /// When it can't be made, and what `next` fails with.
    pub fn create(&self, next: impl FnMut() -> Result<Option<Vec<u8>>>, reporter: &Reporter) -> Result<()> {
        let properties = self.properties(next, reporter)?;
        let properties = properties.as_deref().unwrap_or("TEMPLATE = template0");
        let sql = format!("CREATE DATABASE :\"name\" WITH {properties};");
        self.ask_anywhere(&sql, reporter)
    }

    /// Drops the database again that was made.
    ///
    /// # Errors
    /// When it can't be dropped.
    pub fn drop_database(&self, reporter: &Reporter) -> Result<()> {
        let forced = self.ask_anywhere("DROP DATABASE :\"name\" WITH (FORCE);", reporter);
        // Servers before 13 don't know that.
        forced.or_else(|_| self.ask_anywhere("DROP DATABASE :\"name\";", reporter))
    }

    /// Runs the SQL that makes roles and tablespaces. Returns what went wrong but for those that exist already.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub fn load_globals(&self, sql: Vec<u8>, reporter: &Reporter) -> Result<Vec<String>> {
        let mut answer = Err(Error::Interrupted);
        for database in MAINTENANCE {
            answer = self.psql(database, sql.clone(), &[], reporter);
            if answer.is_ok() {
                break;
            }
        }
        let (_, complaint) = answer?;
        let errors = complaint.lines().filter(|line| line.contains("ERROR:") && !line.contains("already exists"));
        Ok(errors.map(|line| line.split("ERROR:").last().unwrap_or(line).trim().to_owned()).collect())
    }

    /// Starts loading an archive.
    ///
    /// # Errors
    /// If `pg_restore` can't be started.
    pub fn load(&self, clean: Clean, owners: bool) -> Result<Load> {
        let what = format!("pg_restore into {}", self.label());
        let uri = self.url.to_uri(Some(&self.name));
        let mut arguments =
            vec!["--single-transaction", "--exit-on-error", "--no-password", "--format=custom", "--dbname", &uri];
        if clean == Clean::Yes {
            arguments.extend(["--clean", "--if-exists"]);
        }
        if !owners {
            arguments.extend(["--no-owner", "--no-privileges"]);
        }
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let mut child = Child::start("pg_restore", &what, &self.url, &arguments, Stdio::piped())?;
        let input = child.input();
        Ok(Load { child, input })
    }

    /// What an archive says in CREATE DATABASE after the name; `None` if that is nothing to be relied on.
    fn properties(
        &self,
        mut next: impl FnMut() -> Result<Option<Vec<u8>>>,
        reporter: &Reporter,
    ) -> Result<Option<String>> {
        let arguments = ["--create", "--schema-only", "--section=pre-data", "--format=custom", "--file=-"];
        let what = format!("pg_restore for {}", self.label());
        let mut child = Child::start("pg_restore", &what, &self.url, &arguments.map(OsString::from), Stdio::piped())?;
        let mut output = child.output(reporter).take(ANSWER_BYTES);
        let input = child.input();
        let reading = std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut sql = Vec::new();
                let _ = output.read_to_end(&mut sql);
                sql
            });
            while let Some(piece) = next()? {
                if !input.put(piece, reporter)? {
                    break;
                }
            }
            input.end();
            Ok::<_, Error>(reading.join().unwrap_or_default())
        });
        let sql = String::from_utf8_lossy(&reading?).into_owned();
        Ok(properties_in(&sql))
    }

    fn ask_anywhere(&self, sql: &str, reporter: &Reporter) -> Result<()> {
        let [first, second] = MAINTENANCE;
        let asked = self.ask(first, sql, reporter);
        let cannot_connect = |e: &Error| e.to_string().contains("connection to server");
        match asked {
            Err(e) if cannot_connect(&e) => self.ask(second, sql, reporter).map(drop).map_err(|_| e),
            asked => asked.map(drop),
        }
    }

    /// Runs SQL in a database; `:"name"` in it is the target's.
    fn ask(&self, database: &[u8], sql: &str, reporter: &Reporter) -> Result<String> {
        Ok(self.psql(database, sql.into(), &["--set=ON_ERROR_STOP=1"], reporter)?.0)
    }

    fn psql(&self, database: &[u8], sql: Vec<u8>, options: &[&str], reporter: &Reporter) -> Result<(String, String)> {
        let what = format!("psql on {}", self.url.with_database(database).label());
        let uri = self.url.to_uri(Some(database));
        let fixed = ["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password", "--dbname", &uri];
        let mut arguments: Vec<OsString> = fixed.iter().chain(options).map(OsString::from).collect();
        arguments.push(OsString::from_vec([b"--set=name=", &self.name[..]].concat()));
        let mut child = Child::start("psql", &what, &self.url, &arguments, Stdio::piped())?;
        let output = child.output(reporter);
        let input = child.input();
        input.put(sql, reporter)?;
        let mut answer = Vec::new();
        let finished = std::thread::scope(|scope| {
            let ending = scope.spawn(move || input.end());
            let read = output.take(ANSWER_BYTES).read_to_end(&mut answer);
            let _ = ending.join();
            read
        });
        reporter.check_interrupt()?;
        if finished.is_err() {
            return Err(child.failed());
        }
        let complaint = child.finish(reporter)?;
        Ok((String::from_utf8_lossy(&answer).into_owned(), complaint))
    }
}

/// What stands in the first CREATE DATABASE after the name, if it is nothing but settings: the archive may be anyone's.
fn properties_in(sql: &str) -> Option<String> {
    let statement = sql.split("\nCREATE DATABASE ").nth(1)?.split(";\n").next()?;
    let (_, properties) = statement.rsplit_once(" WITH ")?;
    let is_setting = |c: char| c.is_ascii_alphanumeric() || " ='._-@".contains(c);
    let quotes = properties.matches('\'').count();
    let is_sane =
        properties.starts_with("TEMPLATE = template0") && properties.chars().all(is_setting) && quotes % 2 == 0;
    is_sane.then(|| properties.to_owned())
}

/// An archive on its way into a database.
pub struct Load {
    child: Child,
    input: Input,
}

impl Load {
    /// Hands on the next piece of the archive.
    ///
    /// # Errors
    /// What `pg_restore` failed with, if it takes no more; [`Error::Interrupted`].
    pub fn put(self, piece: Vec<u8>, reporter: &Reporter) -> Result<Self> {
        if self.input.put(piece, reporter)? { Ok(self) } else { Err(self.child.failed()) }
    }

    /// Waits until all is loaded. Returns what `pg_restore` complained about although it was content.
    ///
    /// # Errors
    /// What `pg_restore` failed with; [`Error::Interrupted`].
    pub fn finish(self, reporter: &Reporter) -> Result<String> {
        let Self { child, input } = self;
        let ending = std::thread::spawn(move || input.end());
        let complaint = child.finish(reporter)?;
        let took_all = ending.join().unwrap_or(false);
        if took_all {
            Ok(complaint)
        } else {
            let why = "pg_restore ended before it had read the whole archive; the database is incomplete";
            Err(Error::refused(why, "report this, with the version of pg_restore"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_database() {
        let sql = |rest: &str| format!("--\nSET x = 1;\n\nCREATE DATABASE \"a WITH b\" WITH {rest};\n\n\\connect a\n");
        let plain = "TEMPLATE = template0 ENCODING = 'UTF8' LOCALE_PROVIDER = libc LOCALE = 'de_DE.utf-8@euro'";
        assert_eq!(properties_in(&sql(plain)).as_deref(), Some(plain));
        for bad in [
            "TEMPLATE = template0 ENCODING = 'UTF8",
            "TEMPLATE = template1",
            "TEMPLATE = template0 OWNER = \"x\"",
            "TEMPLATE = template0 \\! touch x",
            "TEMPLATE = template0 LOCALE = 'a'; DROP DATABASE b",
        ] {
            assert_eq!(properties_in(&sql(bad)), None, "{bad}");
        }
        assert_eq!(properties_in(""), None);
    }
}
