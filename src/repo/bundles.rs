//! Writing bundles of snapshots, marks and index files, for machines that see the repository for the first time: see
//! [`crate::backend::Bundler`]. What is not in a bundle is read from its own place, so nothing depends on them.

use std::collections::HashSet;

use super::Repository;
use crate::backend::{Bundler, Listed, MAX_BUNDLE_BYTES, MAX_BUNDLED_BYTES, layout, unbundle};
use crate::error::Result;
use crate::id::BundleId;

/// Which objects are bundled.
const FOLDERS: [&str; 3] = [layout::SNAPSHOTS, layout::MARKS, layout::INDEX];
/// So many objects in no bundle yet are worth one.
const WORTH_BUNDLING: usize = 32;
/// After so many snapshots, it is looked at whether there is something to bundle.
const EVERY: usize = 32;
/// As many bundles are put together by whoever may delete.
const MANY_BUNDLES: usize = 8;

impl Repository {
    /// Bundles what no bundle has, now and then; to be called by who has just stored a snapshot, with how many there
    /// were.
    ///
    /// # Errors
    /// When the store fails. It does not matter.
    pub fn bundle_sometimes(&self, snapshots: usize) -> Result<()> {
        if !self.backend.is_remote() || !(snapshots + 1).is_multiple_of(EVERY) {
            return Ok(());
        }
        let (_, bundled) = self.read_bundles()?;
        let new = self.bundleable()?.into_iter().filter(|o| !bundled.contains(&o.path)).collect();
        self.put_bundles(new).map(drop)
    }

    /// Bundles everything anew if there are many bundles, or much in them that is gone; for a prune.
    ///
    /// # Errors
    /// When the store fails. It does not matter.
    pub fn rebundle(&self) -> Result<()> {
        if !self.backend.is_remote() {
            return Ok(());
        }
        let (mut bundles, bundled) = self.read_bundles()?;
        let there = self.bundleable()?;
        let absent = there.iter().filter(|o| !bundled.contains(&o.path)).count();
        let gone = bundled.len() + absent - there.len().min(bundled.len() + absent);
        if absent < WORTH_BUNDLING && gone < WORTH_BUNDLING && bundles.len() < MANY_BUNDLES {
            return Ok(());
        }
        let made = self.put_bundles(there)?;
        bundles.retain(|path| !made.contains(path));
        self.backend.delete(&bundles)
    }

    /// The bundles, and the objects in them.
    fn read_bundles(&self) -> Result<(Vec<String>, HashSet<String>)> {
        let (mut bundles, mut bundled) = (Vec::new(), HashSet::new());
        for Listed { path, .. } in self.backend.list(layout::BUNDLES)? {
            let bytes = self.backend.get(&path, MAX_BUNDLE_BYTES)?;
            bundled.extend(unbundle(&bytes).map(|(path, ..)| path.to_owned()));
            bundles.push(path);
        }
        Ok((bundles, bundled))
    }

    fn bundleable(&self) -> Result<Vec<Listed>> {
        let mut all = Vec::new();
        for folder in FOLDERS {
            all.extend(self.backend.list(folder)?.into_iter().filter(|o| o.bytes <= MAX_BUNDLED_BYTES));
        }
        Ok(all)
    }

    /// Puts objects into bundles, and returns the paths of these.
    fn put_bundles(&self, objects: Vec<Listed>) -> Result<Vec<String>> {
        let mut made = Vec::new();
        if objects.len() < WORTH_BUNDLING {
            return Ok(made);
        }
        self.backend.want(&objects);
        let mut bundler = Bundler::default();
        for Listed { path, .. } in objects {
            let bytes = self.backend.get(&path, MAX_BUNDLED_BYTES)?;
            if !bundler.add(&path, &bytes) {
                made.push(self.put_bundle(std::mem::take(&mut bundler))?);
                bundler.add(&path, &bytes);
            }
        }
        if !bundler.is_empty() {
            made.push(self.put_bundle(bundler)?);
        }
        Ok(made)
    }

    fn put_bundle(&self, bundler: Bundler) -> Result<String> {
        let bytes = bundler.finish();
        let path = layout::bundle(BundleId(*blake3::hash(&bytes).as_bytes()));
        self.backend.put(&path, bytes)?;
        Ok(path)
    }
}
