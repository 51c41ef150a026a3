//! Key slots in the repository, key files and recovery codes.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Repository;
use crate::backend::{Backend, Listed, layout};
use crate::clock;
use crate::crypto::{self, KdfCost, Secret};
use crate::error::{Error, Result};
use crate::format::cbor::Time;
use crate::format::keyslot::{Slot, SlotKind, Unlock};
use crate::format::{MAX_SLOT_BYTES, MAX_SLOTS};
use crate::id::{SlotId, hex, unhex};

const KEY_FILE_HEAD: &str = "snapshot-key-1 ";
/// Crockford's alphabet: no I, L, O, U to be misread.
const CODE_ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CODE_SECRET_BYTES: usize = 20;
const CODE_CHECK_BYTES: usize = 5;

/// A key slot of the repository, as listed.
#[derive(Debug, Clone)]
pub struct KeySlot {
    /// Its name: the hex BLAKE3 of its bytes.
    pub id: String,
    /// What opens it.
    pub kind: SlotKind,
    /// When it was made.
    pub created: Time,
    /// The user's name for it.
    pub label: String,
    /// Cost of hashing the password, if it is one.
    pub cost: Option<KdfCost>,
    /// Whether this session was opened with it.
    pub current: bool,
    /// When the newest of what is still in the repository, snapshot or mark, was made with it. Reading leaves no trace.
    pub last_wrote: Option<Time>,
}

/// The slot that opened the repository.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    /// Its id, whatever its name.
    pub(super) id: SlotId,
    /// Its path in the repository.
    pub(super) path: String,
}

/// Stores a slot.
pub(super) fn put_slot(
    backend: &dyn Backend,
    master: &Secret,
    unlock: &Unlock,
    cost: KdfCost,
    label: &str,
) -> Result<Opened> {
    let bytes = Slot::make(master, unlock, cost, label, clock::now())?.to_bytes();
    let id = SlotId(*blake3::hash(&bytes).as_bytes());
    let path = format!("{}{id}", layout::KEYS);
    backend.put(&path, bytes)?;
    Ok(Opened { id, path })
}

/// A slot with its id, or why it can't be read.
type ReadSlot = Result<(SlotId, Slot)>;

fn read_slot(backend: &dyn Backend, path: &str) -> ReadSlot {
    let bytes = backend.get(path, MAX_SLOT_BYTES as u64)?;
    Ok((SlotId(*blake3::hash(&bytes).as_bytes()), Slot::parse(&bytes, path)?))
}

/// All slots that are tried, by path.
fn slots(backend: &dyn Backend, listed: &[Listed]) -> Vec<(String, ReadSlot)> {
    listed.iter().take(MAX_SLOTS).map(|l| (l.path.clone(), read_slot(backend, &l.path))).collect()
}

/// Tries the secret on every slot that is listed, until one gives a master key that is `right`: an init that was cut off leaves a slot
/// with another. A slot that can't be read counts only if no other opens.
pub(super) fn find_master(
    backend: &dyn Backend,
    listed: &[Listed],
    unlock: &Unlock,
    what: &str,
    right: &dyn Fn(&Secret) -> bool,
) -> Result<(Secret, Opened)> {
    let slots = slots(backend, listed);
    let count = slots.len();
    let (mut broken, mut other) = (None, None);
    for (path, slot) in slots {
        match slot.and_then(|(id, slot)| Ok(slot.open(unlock)?.map(|master| (master, Opened { id, path })))) {
            Ok(Some(opened)) if right(&opened.0) => return Ok(opened),
            Ok(Some(opened)) => other = Some(opened),
            Ok(None) => {}
            Err(e) => broken = Some(e),
        }
    }
    // A recovery code may be typed where a password is asked for.
    if let Unlock::Password(text) = unlock
        && let Some(code) = std::str::from_utf8(text).ok().and_then(decode_recovery_code)
    {
        return find_master(backend, listed, &Unlock::RecoveryCode(code), what, right);
    }
    match (other, broken) {
        (Some(opened), _) => Ok(opened),
        (None, broken) => Err(broken.unwrap_or(Error::WrongKey { what: what.into(), slots: count })),
    }
}

impl Repository {
    /// Id of the key slot that the repository was opened with.
    pub fn slot(&self) -> SlotId {
        self.opened.id
    }

    /// Adds a key slot and returns its name.
    ///
    /// # Errors
    /// [`Error::Refused`] when all 32 slots are taken.
    pub fn add_slot(&self, unlock: &Unlock, cost: KdfCost, label: &str) -> Result<String> {
        if self.backend.list(layout::KEYS)?.len() >= MAX_SLOTS {
            return Err(Error::refused("all 32 key slots are taken", "remove one with `snapshot key remove`"));
        }
        Ok(put_slot(&*self.backend, &self.master, unlock, cost, label)?.id.to_string())
    }

    /// The slot that opened the repository, if it is one of a password.
    ///
    /// # Errors
    /// [`Error::Refused`] if the repository was opened with something else.
    pub fn password_slot(&self) -> Result<Slot> {
        let (_, slot) = read_slot(&*self.backend, &self.opened.path)?;
        let with = match slot.kind() {
            SlotKind::Password => return Ok(slot),
            SlotKind::KeyFile => "a key file",
            SlotKind::RecoveryCode => "a recovery code",
        };
        Err(Error::refused(
            format!("the repository was opened with {with}, so there is no password to change"),
            "open it with the password to change; or add one with `snapshot key add`, and remove the old one by its id",
        ))
    }

    /// Puts another password in the place of the one that opened the repository, whose slot `old` is, and returns the
    /// name of the new slot. The label stays, and so does the cost unless another is given. The new slot is there, and
    /// was read back and opened, before the old one goes: cut off in between, both passwords open the repository.
    ///
    /// # Errors
    /// [`Error::Refused`] if all slots are taken. Storage errors.
    pub fn change_password(&self, old: &Slot, new: &Unlock, cost: Option<KdfCost>) -> Result<String> {
        let added = self.add_slot(new, cost.or(old.cost()).unwrap_or_default(), old.label())?;
        let path = format!("{}{added}", layout::KEYS);
        match read_slot(&*self.backend, &path)?.1.open(new)? {
            Some(master) if master.0 == self.master.0 => {}
            _ => return Err(Error::corrupt(path, "the new key slot does not open; the old password still does")),
        }
        self.backend.delete(std::slice::from_ref(&self.opened.path))?;
        Ok(added)
    }

    /// Lists the key slots.
    ///
    /// # Errors
    /// When the store can't be listed. Slots that can't be read are left out, and so are snapshots and marks.
    pub fn list_slots(&self) -> Result<Vec<KeySlot>> {
        let last_wrote = self.last_writes()?;
        let describe = |(path, slot): (String, ReadSlot)| {
            let (id, slot) = slot.ok()?;
            Some(KeySlot {
                id: path.strip_prefix(layout::KEYS)?.to_owned(),
                kind: slot.kind(),
                created: slot.created(),
                label: slot.label().into(),
                cost: slot.cost(),
                current: id == self.opened.id,
                last_wrote: last_wrote.get(&id).copied(),
            })
        };
        let listed = self.backend.list(layout::KEYS)?;
        Ok(slots(&*self.backend, &listed).into_iter().filter_map(describe).collect())
    }

    /// When the newest snapshot or mark of each slot was made: forgotten snapshots count.
    fn last_writes(&self) -> Result<HashMap<SlotId, Time>> {
        let (mut snapshots, _) = self.read_snapshots()?;
        snapshots.extend(self.read_tombs()?.0);
        let marks = self.read_marks()?;
        let made = snapshots.iter().map(|n| (n.snapshot.slot, n.snapshot.started));
        let mut last = HashMap::new();
        for (slot, time) in made.chain(marks.iter().map(|mark| (mark.slot, mark.time))) {
            if let Some(slot) = slot {
                let latest = last.entry(slot).or_insert(time);
                *latest = time.max(*latest);
            }
        }
        Ok(last)
    }

    /// Removes the one slot whose name begins with `prefix`.
    ///
    /// # Errors
    /// [`Error::Unknown`] for none or several, [`Error::Refused`] for the last one.
    pub fn remove_slot(&self, prefix: &str) -> Result<String> {
        let listed = self.backend.list(layout::KEYS)?;
        let mut found = listed.iter().filter(|l| l.name().starts_with(prefix));
        let (Some(one), None) = (found.next(), found.next()) else {
            return Err(Error::Unknown { kind: "key slot", name: prefix.into() });
        };
        if listed.len() == 1 {
            return Err(Error::refused(
                "this is the last key slot: without it the repository could never be opened again",
                "add another with `snapshot key add` first",
            ));
        }
        self.backend.delete(std::slice::from_ref(&one.path))?;
        Ok(one.name().to_owned())
    }
}

/// Reads a key file.
///
/// # Errors
/// [`Error::File`] if it can't be read, [`Error::Refused`] if it isn't a key file.
pub fn read_key_file(path: &Path) -> Result<Unlock> {
    let text = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    let secret = text.trim().strip_prefix(KEY_FILE_HEAD).and_then(unhex).filter(|s| s.len() == 32);
    secret.map(Unlock::KeyFile).ok_or_else(|| {
        Error::refused(
            format!("{} is not a key file of snapshot", path.display()),
            "a key file is one line that begins with \"snapshot-key-1\"",
        )
    })
}

/// Makes a new key file, readable by its owner alone; refuses an existing one.
///
/// # Errors
/// [`Error::Exists`], or [`Error::File`] if it can't be written.
pub fn write_key_file(path: &Path) -> Result<Unlock> {
    let secret = Secret::random()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::AlreadyExists {
            Error::Exists { at: path.display().to_string(), what: "a file" }
        } else {
            Error::file("create", path, e)
        }
    })?;
    let text = format!("{KEY_FILE_HEAD}{}\n", hex(&secret.0));
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| fs::File::open(folder)?.sync_all()).map_err(|e| Error::file("write", path, e))?;
    Ok(Unlock::KeyFile(secret.0.to_vec()))
}

/// A fresh recovery code: 160 random bits and 40 check bits, as ten groups of four characters.
///
/// # Errors
/// When there is no randomness.
pub fn recovery_code() -> Result<(String, Unlock)> {
    let secret = crypto::random::<CODE_SECRET_BYTES>()?;
    let all = [&secret[..], &code_check(&secret)].concat();
    // 25 bytes are 40 characters of 5 bits; each 5 bytes make 8.
    let chars: String = all
        .chunks_exact(5)
        .flat_map(|five| {
            let bits = five.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            (0..8).rev().map(move |i| char::from(CODE_ALPHABET[(bits >> (5 * i) & 31) as usize]))
        })
        .collect();
    let groups: Vec<_> = (0..10).map(|i| &chars[4 * i..4 * i + 4]).collect();
    Ok((groups.join("-"), Unlock::RecoveryCode(secret.to_vec())))
}

/// Reads a recovery code as typed: case, spaces and hyphens don't count, and look-alikes are understood.
pub fn decode_recovery_code(text: &str) -> Option<Vec<u8>> {
    let value = |c: char| {
        let c = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            c => c,
        };
        CODE_ALPHABET.iter().position(|a| char::from(*a) == c).map(|n| n as u64)
    };
    let digits = text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(value).collect::<Option<Vec<_>>>()?;
    if digits.len() != 40 {
        return None;
    }
    let bytes = digits.chunks_exact(8).flat_map(|eight| {
        let bits = eight.iter().fold(0, |n, d| n << 5 | d);
        (0..5).rev().map(move |i| (bits >> (8 * i)) as u8)
    });
    let bytes: Vec<u8> = bytes.collect();
    let (secret, check) = bytes.split_at(CODE_SECRET_BYTES);
    (check == code_check(secret)).then(|| secret.to_vec())
}

fn code_check(secret: &[u8]) -> [u8; CODE_CHECK_BYTES] {
    let mut out = [0; CODE_CHECK_BYTES];
    out.copy_from_slice(&blake3::derive_key("snapshot 2026 v1 recovery code check", secret)[..CODE_CHECK_BYTES]);
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::{Faulty, Memory};
    use crate::report::Reporter;

    #[test]
    fn a_password_is_changed_or_stays() {
        let cheap = KdfCost { memory_kib: 19 * 1024, passes: 1, lanes: 1 };
        let [old, new] = ["old", "new"].map(|text| Unlock::Password(text.into()));
        let memory = Arc::new(Memory::default());
        Repository::init(memory.clone(), &old, cheap, "a").unwrap();
        let open = |unlock, store: Arc<dyn Backend>| Repository::open(store, unlock, "it", &Reporter::silent());
        // Cut off before the new slot, before the old one goes, and not at all.
        for (writes, old_opens, new_opens) in [(0, true, false), (1, true, true), (9, false, true)] {
            let copy = Arc::new(Memory::default());
            for listed in memory.list("").unwrap() {
                copy.put(&listed.path, memory.get(&listed.path, u64::MAX).unwrap()).unwrap();
            }
            let repo = open(&old, Arc::new(Faulty::new(copy.clone(), writes))).unwrap();
            let changed = repo.change_password(&repo.password_slot().unwrap(), &new, None);
            assert_eq!(changed.is_ok(), writes > 1);
            assert_eq!(open(&old, copy.clone()).is_ok(), old_opens, "{writes}");
            assert_eq!(open(&new, copy.clone()).is_ok(), new_opens, "{writes}");
        }
    }

    #[test]
    fn recovery_codes_survive_sloppy_typing_only() {
        let (code, unlock) = recovery_code().unwrap();
        let Unlock::RecoveryCode(secret) = unlock else { panic!() };
        let sloppy = code.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(decode_recovery_code(&sloppy), Some(secret));
        let last = if code.ends_with('7') { '8' } else { '7' };
        assert_eq!(decode_recovery_code(&format!("{}{last}", &code[..code.len() - 1])), None);
        assert_eq!(decode_recovery_code("correct horse battery staple"), None);
    }
}
