//! Choosing snapshots.

use std::collections::HashMap;

use super::Named;

/// Which snapshots are meant: those that satisfy each kind of condition given, any one of several of a kind.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Host names.
    pub hosts: Vec<String>,
    /// Sources.
    pub sources: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Paths as given to `create`.
    pub paths: Vec<Vec<u8>>,
    /// Only the newest so many of each host and source.
    pub latest: Option<usize>,
}

impl Filter {
    /// The snapshots that are meant, in the same order.
    pub fn apply(&self, snapshots: Vec<Named>) -> Vec<Named> {
        let mut chosen = snapshots;
        chosen.retain(|Named { snapshot, .. }| {
            (self.hosts.is_empty() || self.hosts.contains(&snapshot.host))
                && (self.sources.is_empty() || self.sources.contains(&snapshot.source))
                && (self.tags.is_empty() || snapshot.tags.iter().any(|tag| self.tags.contains(tag)))
                && (self.paths.is_empty() || snapshot.paths.iter().any(|p| self.paths.iter().any(|w| w[..] == p[..])))
        });
        let Some(latest) = self.latest else { return chosen };
        let mut seen: HashMap<_, usize> = HashMap::new();
        chosen.reverse();
        chosen.retain(|Named { snapshot, .. }| {
            let count = seen.entry((snapshot.host.clone(), snapshot.source.clone())).or_default();
            *count += 1;
            *count <= latest
        });
        chosen.reverse();
        chosen
    }
}
