//! Databases of PostgreSQL: dumped into `postgres/` at the top of the snapshot, before any file is read.

use std::collections::BTreeMap;

use super::large::own_file;
use super::layering::Layering;
use super::pipeline::{Event, Work};
use super::sources::Top;
use super::walk::Walker;
use crate::clock;
use crate::error::{Error, Result};
use crate::format::dump::Dump;
use crate::format::tree::{Node, NodeKind};
use crate::report::{Problem, Severity};
use crate::source::postgres::{DumpHeader, Url, dump, globals};

/// The directory that the dumps are in.
const FOLDER: &[u8] = b"postgres";
/// The file with what belongs to the whole server.
const GLOBALS: &[u8] = b"globals.sql";

/// Whether the databases can be dumped into one snapshot with what else is in it.
///
/// # Errors
/// [`Error::Usage`] or [`Error::Refused`].
pub(super) fn check(databases: &[Url], top: &Top) -> Result<()> {
    if databases.is_empty() {
        return Ok(());
    }
    let in_the_way = match &top.source {
        Some(source) => source.join("postgres").symlink_metadata().is_ok(),
        None => top.below.contains_key(FOLDER),
    };
    if in_the_way {
        return Err(Error::refused(
            "a path named postgres would lie where the dumps of the databases do in the snapshot",
            "give the absolute path instead, which lies elsewhere",
        ));
    }
    let mut seen: Vec<(String, &[u8])> = Vec::new();
    for url in databases {
        let Some(name) = url.database() else {
            let what = format!("the URL of {} names no database", url.server());
            return Err(Error::Usage(format!("{what}: write it like postgresql://user@host/database")));
        };
        if seen.contains(&(url.server(), name)) {
            return Err(Error::Usage(format!("{} is given twice", url.label())));
        }
        seen.push((url.server(), name));
    }
    Ok(())
}

impl Walker<'_> {
    /// Dumps all databases, and the roles of their servers.
    ///
    /// # Errors
    /// When one of them can't be dumped: then there is no snapshot.
    pub(super) fn dumps(&mut self, older: Option<&Node>) -> Result<()> {
        let options = self.options;
        let mut servers: BTreeMap<String, Vec<&Url>> = BTreeMap::new();
        for url in &options.postgres {
            servers.entry(url.server()).or_default().push(url);
        }
        if servers.is_empty() {
            return Ok(());
        }
        let older = self.older_nodes(older).remove(FOLDER);
        self.enter(FOLDER)?;
        let several = servers.len() > 1;
        let olders = self.older_nodes(older.as_ref());
        for (server, databases) in &servers {
            if !several {
                self.server(databases, older.as_ref())?;
                continue;
            }
            let name = file_name(server.as_bytes());
            self.enter(&name)?;
            self.server(databases, olders.get(&name))?;
            self.feeder.event(Event::Leave)?;
        }
        Ok(self.feeder.event(Event::Leave)?)
    }

    /// Begins a directory that is made up here.
    fn enter(&mut self, name: &[u8]) -> Result<()> {
        let own = own_file(name, 0);
        let (uid, gid, mtime) = (own.uid, own.gid, own.mtime);
        let node = Node { mode: 0o700, uid, gid, mtime, ..Node::bare(name, NodeKind::Directory) };
        self.owners.users.insert(uid);
        self.owners.groups.insert(gid);
        Ok(self.feeder.event(Event::Enter(Box::new(node)))?)
    }

    /// The databases of one server.
    fn server(&mut self, databases: &[&Url], older: Option<&Node>) -> Result<()> {
        let older = self.older_nodes(older);
        for url in databases {
            let name = [&file_name(url.database().unwrap_or_default())[..], b".dump"].concat();
            self.dump(url, &name, older.get(&name))?;
        }
        match databases.first() {
            Some(url) => self.globals(url, older.get(GLOBALS)),
            None => Ok(()),
        }
    }

    fn dump(&mut self, url: &Url, name: &[u8], older: Option<&Node>) -> Result<()> {
        self.reporter.current(|| url.label());
        let begun = clock::now();
        let mut child = dump(url)?;
        let mut layering = Layering::new(self.repo, older, self.options.level);
        let mut header: Option<DumpHeader> = None;
        let mut output = child.output(self.reporter);
        let read = self.stream(&mut output, |walker, chunk| {
            header = header.take().or_else(|| DumpHeader::parse(chunk));
            walker.layer(&mut layering, chunk)
        })?;
        self.reporter.check_interrupt()?;
        drop(output);
        if read.is_err() {
            return Err(child.failed());
        }
        let what = child.what().to_owned();
        let complaint = child.finish(self.reporter)?;
        if !complaint.is_empty() {
            self.reporter.warn(Severity::Note, &what, complaint.replace('\n', "; "));
        }
        let Some(header) = header else {
            let hint = "look which program pg_dump is: `pg_dump --version`";
            return Err(Error::refused(format!("{what} made no archive"), hint));
        };
        let about = Dump {
            kind: Dump::POSTGRES.into(),
            server: Some(header.server),
            database: url.database().map(|name| name.to_vec().into()),
            tool: Some(header.tool),
            hash: Vec::new().into(),
            layers: None,
        };
        let mut node = own_file(name, 0);
        node.mtime = begun;
        self.layered(layering, node, about)
    }

    /// The roles and tablespaces of a server. Not everybody may read them: then there are none, and it is said.
    fn globals(&mut self, url: &Url, older: Option<&Node>) -> Result<()> {
        let sql = match globals(url, self.reporter) {
            Ok(sql) => sql,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(e) => {
                self.reporter.problem(Problem {
                    severity: Severity::Note,
                    what: format!("roles of {}", url.server()),
                    why: format!("not in the snapshot: {e}"),
                    hint: Some("a role that may read them would be needed; databases are restored without".into()),
                });
                return Ok(());
            }
        };
        let mut layering = Layering::new(self.repo, older, self.options.level);
        if let Err(e) = self.stream(&mut &sql[..], |walker, chunk| walker.layer(&mut layering, chunk))? {
            return Err(Error::file("read", "the roles", e));
        }
        let about = Dump {
            kind: Dump::POSTGRES_GLOBALS.into(),
            server: None,
            database: None,
            tool: None,
            hash: Vec::new().into(),
            layers: None,
        };
        self.layered(layering, own_file(GLOBALS, 0), about)
    }

    fn layer(&mut self, layering: &mut Layering<'_>, chunk: &[u8]) -> Result<()> {
        self.reporter.advance_read(chunk.len() as u64, 0);
        if let Some(stored) = layering.piece(chunk.to_vec()) {
            let ticket = self.feeder.submit(Work::Layer(stored, layering.level()))?;
            self.feeder.event(Event::Layer(ticket))?;
        }
        Ok(())
    }

    /// Ends a stream in layers.
    fn layered(&mut self, layering: Layering<'_>, node: Node, about: Dump) -> Result<()> {
        let level = layering.level();
        let layered = layering.finish();
        let layers = (!layered.lists.is_empty()).then_some(layered.lists.len() as u32);
        for list in layered.lists {
            let ticket = self.feeder.submit(Work::Layer(list, level))?;
            self.feeder.event(Event::Layer(ticket))?;
        }
        let dump = Some(Dump { hash: layered.hash.to_vec().into(), layers, ..about });
        let node = Node { size: Some(layered.bytes), dump, ..node };
        self.reporter.advance(0, 1);
        Ok(self.feeder.event(Event::Stream(Box::new(node), layered.chunks))?)
    }
}

/// A name that is no path: `/` and `%` as in URLs.
fn file_name(name: &[u8]) -> Vec<u8> {
    let one = |byte: &u8| match byte {
        b'/' => b"%2F".to_vec(),
        b'%' => b"%25".to_vec(),
        byte => vec![*byte],
    };
    name.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_dumped_together() {
        let urls = |texts: &[&str]| texts.iter().map(|t| Url::parse(t).unwrap()).collect::<Vec<_>>();
        let top = Top::default();
        assert!(check(&urls(&["postgres://a/x", "postgres://a/y", "postgres://b/x"]), &top).is_ok());
        for bad in [&["postgres://a/"][..], &["postgres://u@a/x", "postgres://v:w@a:5432/x"]] {
            assert_eq!(check(&urls(bad), &top).err().map(|e| e.status()), Some(2), "{bad:?}");
        }
        let mut top = Top::default();
        top.below.insert(b"postgres".to_vec(), Top::default());
        assert_eq!(check(&urls(&["postgres://a/x"]), &top).err().map(|e| e.status()), Some(1));
        assert!(check(&[], &top).is_ok());
        assert_eq!(file_name(b"a/b%c"), b"a%2Fb%25c");
    }
}
