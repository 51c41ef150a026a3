//! Whom restored files belong to: the numbers in a snapshot, as this machine has them.
//!
//! May depend on `error` and `format`. A user has the same name on two machines more often than the same number, so a
//! name that exists here decides, and the number where there is none.

use std::collections::HashMap;

use nix::unistd::{Group, User};

use crate::error::{Error, Result};
use crate::format::snapshot::{Owner, Snapshot};

/// How owners are restored. Only root can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// By name where this machine has a user or group of that name, else by number.
    #[default]
    Names,
    /// By number.
    Numbers,
    /// Not: what is restored belongs to who restores it.
    None,
}

/// Whom files go to: `(from, to)`, by name or number.
pub type Mapping = (String, String);

/// The numbers of a snapshot, translated.
#[derive(Debug, Default)]
pub struct Owners {
    users: HashMap<u32, u32>,
    groups: HashMap<u32, u32>,
    kept: bool,
}

impl Owners {
    /// Looks up whom the names of a snapshot stand for here.
    ///
    /// # Errors
    /// [`Error::Refused`] for a mapping to somebody who isn't here, or from somebody who owns nothing in the snapshot.
    pub fn new(ownership: Ownership, snapshot: &Snapshot, users: &[Mapping], groups: &[Mapping]) -> Result<Self> {
        let user = |name: &str| User::from_name(name).ok().flatten().map(|u| u.uid.as_raw());
        let group = |name: &str| Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw());
        let translated = |known: &[Owner], find: &dyn Fn(&str) -> Option<u32>| match ownership {
            Ownership::Names => known.iter().filter_map(|o| Some((o.id, find(&o.name)?))).collect(),
            Ownership::Numbers | Ownership::None => HashMap::new(),
        };
        let mut owners = Self {
            users: translated(&snapshot.users, &user),
            groups: translated(&snapshot.groups, &group),
            kept: ownership == Ownership::None,
        };
        map(&mut owners.users, "user", &snapshot.users, users, &user)?;
        map(&mut owners.groups, "group", &snapshot.groups, groups, &group)?;
        Ok(owners)
    }

    /// Whether files stay with who restores them.
    pub fn are_left(&self) -> bool {
        self.kept
    }

    /// User and group that a file with these in the snapshot belongs to.
    pub fn of(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.users.get(&uid).copied().unwrap_or(uid), self.groups.get(&gid).copied().unwrap_or(gid))
    }
}

fn map(
    out: &mut HashMap<u32, u32>,
    kind: &str,
    known: &[Owner],
    mappings: &[Mapping],
    find: &dyn Fn(&str) -> Option<u32>,
) -> Result<()> {
    for (from, to) in mappings {
        let from_id = known.iter().find(|o| o.name == *from).map(|o| o.id).or_else(|| from.parse().ok());
        let from_id = from_id.ok_or_else(|| {
            Error::refused(
                format!("no {kind} \"{from}\" owns anything in the snapshot"),
                format!("give the {kind}'s number: `snapshot ls -l` shows it"),
            )
        })?;
        let to_id = find(to).or_else(|| to.parse().ok());
        let to_id = to_id.ok_or_else(|| {
            Error::refused(format!("there is no {kind} \"{to}\" here"), format!("make that {kind}, or give a number"))
        })?;
        out.insert(from_id, to_id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cbor::Time;
    use crate::id::BlobId;

    fn snapshot() -> Snapshot {
        let owner = |id, name: &str| Owner { id, name: name.into() };
        Snapshot {
            time: Time::default(),
            host: String::new(),
            source: String::new(),
            generation: 1,
            previous: None,
            paths: vec![],
            tags: vec![],
            tree: BlobId([0; 32]),
            counts: Default::default(),
            program: String::new(),
            users: vec![owner(700, "root"), owner(701, "nobody-has-this-name")],
            groups: vec![owner(800, "root")],
            started: Time::default(),
            slot: None,
            pinned: false,
            preset: None,
        }
    }

    #[test]
    fn names_before_numbers_and_mappings_before_both() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<Mapping> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let of = |ownership, users: &[(&str, &str)]| Owners::new(ownership, &snapshot(), &pairs(users), &[]).unwrap();
        assert_eq!(of(Ownership::Names, &[]).of(700, 800), (0, 0));
        assert_eq!(of(Ownership::Names, &[]).of(701, 801), (701, 801));
        assert_eq!(of(Ownership::Numbers, &[]).of(700, 800), (700, 800));
        assert!(of(Ownership::None, &[]).are_left());
        let mapped = of(Ownership::Names, &[("nobody-has-this-name", "root"), ("55", "66")]);
        assert_eq!((mapped.of(701, 1), mapped.of(55, 1), mapped.of(700, 1)), ((0, 1), (66, 1), (0, 1)));
        for (from, to) in [("unknown", "root"), ("root", "unknown-here")] {
            let done = Owners::new(Ownership::Names, &snapshot(), &pairs(&[(from, to)]), &[]);
            assert!(matches!(done, Err(Error::Refused { .. })), "{from}={to}");
        }
    }
}
