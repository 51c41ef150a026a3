//! A store that fails to read, on one object or on all.

use super::*;

/// Fails to read one object, as a bad sector does, or does not answer at all.
pub(super) struct Unreadable {
    pub(super) inner: Arc<Memory>,
    pub(super) path: Option<String>,
}

impl Unreadable {
    fn fail<T>(&self, path: &str, action: &'static str) -> crate::error::Result<T> {
        Err(Error::Storage { action, object: path.into(), why: "input/output error".into(), full: false })
    }
}

impl Backend for Unreadable {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> crate::error::Result<()> {
        self.inner.put(path, bytes)
    }

    fn put_new(&self, path: &str, bytes: Vec<u8>) -> crate::error::Result<bool> {
        self.inner.put_new(path, bytes)
    }

    fn get(&self, path: &str, max_bytes: u64) -> crate::error::Result<Vec<u8>> {
        match &self.path {
            Some(bad) if bad != path => self.inner.get(path, max_bytes),
            None if !path.starts_with("packs/") => self.inner.get(path, max_bytes),
            _ => self.fail(path, "read"),
        }
    }

    fn get_range(&self, path: &str, offset: u64, len: u64) -> crate::error::Result<Vec<u8>> {
        self.get(path, u64::MAX)?;
        self.inner.get_range(path, offset, len)
    }

    fn list(&self, folder: &str) -> crate::error::Result<Vec<crate::backend::Listed>> {
        // With no path to fail at, the connection breaks once the whole repository was listed.
        if self.path.is_none() && folder == layout::KEYS && self.inner.list("tmp/")?.len() == 1 {
            return self.fail(folder, "list");
        }
        if folder.is_empty() {
            self.inner.put("tmp/listed", vec![])?;
        }
        self.inner.list(folder)
    }

    fn delete(&self, paths: &[String]) -> crate::error::Result<()> {
        self.inner.delete(paths)
    }
}

#[test]
fn a_bad_sector_is_damage_and_a_silent_store_ends_the_check() {
    let fixture = fixture();
    let on = |path: Option<String>| {
        let inner = copy(&fixture.objects);
        let store = Arc::new(Unreadable { inner, path });
        let repo = Repository::open(store, &unlock(), "the key", &Reporter::silent()).unwrap();
        let reporter = Reporter::silent();
        let options =
            Options { read_data: ReadData::All, databases: false, scratch: std::env::temp_dir(), memory: None };
        (check::run(&Arc::new(repo), &options, &reporter), reporter.problems())
    };
    for path in fixture.objects.keys().filter(|p| !p.starts_with(layout::KEYS)) {
        let (done, problems) = on(Some(path.clone()));
        done.unwrap();
        assert!(damages(&problems).iter().any(|p| p.what == *path), "{path}: {problems:#?}");
    }
    let (done, _) = on(None);
    assert!(matches!(done, Err(Error::Storage { .. })), "{done:?}");
}
