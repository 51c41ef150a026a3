//! `snapshot key`

use std::fs;

use serde_json::{Value, json};

use snapshot::crypto::KdfCost;
use snapshot::error::{Error, Result};
use snapshot::format::keyslot::SlotKind;
use snapshot::repo::{KeySlot, host, recovery_code};

use super::args::{Key, KeyAdd, KeyPasswd};
use super::context::{Context, Session};
use super::init::cost;
use super::make::new_key_file;
use super::output::{Out, Table, document, local_time, rfc3339, size};
use super::secrets;

/// Fewest digits that name a slot to remove.
const MIN_PREFIX: usize = 2;

/// Manages key slots.
pub fn run(context: &Context, args: &Key, out: &mut Out) -> Result<()> {
    let session = context.open()?;
    match args {
        Key::Add(args) => add(context, &session, args, out),
        Key::List => list(context, &session, out),
        Key::Passwd(args) => passwd(context, &session, args, out),
        Key::Remove { id } => remove(context, &session, id, out),
        Key::RecoveryCode => add_recovery_code(context, &session, out),
    }
}

fn add(context: &Context, session: &Session, args: &KeyAdd, out: &mut Out) -> Result<()> {
    let cost = cost(&args.kdf)?;
    let secret = match (&args.new_password_file, &args.new_key_file) {
        (Some(path), _) => secrets::password_file(path)?,
        (None, Some(path)) => new_key_file(path)?,
        (None, None) => secrets::ask_new()?,
    };
    let label = args.label.clone().unwrap_or_else(host);
    let id = session.repo.add_slot(&secret.unlock, cost, &label).inspect_err(|_| {
        // A key file that opens nothing would only mislead.
        if let Some(path) = &args.new_key_file {
            let _ = fs::remove_file(path);
        }
    })?;
    done(context, out, "added", &id)
}

fn passwd(context: &Context, session: &Session, args: &KeyPasswd, out: &mut Out) -> Result<()> {
    // Before anything is asked.
    let old = session.repo.password_slot()?;
    let is_given = args.kdf.kdf_memory.is_some() || args.kdf.kdf_time.is_some();
    let cost = if is_given { Some(cost(&args.kdf)?) } else { None };
    let secret = match &args.new_password_file {
        Some(path) => secrets::password_file(path)?,
        None => secrets::ask_new()?,
    };
    let id = session.repo.change_password(&old, &secret.unlock, cost)?;
    done(context, out, "changed the password, which is now", &id)
}

fn done(context: &Context, out: &mut Out, verb: &str, id: &str) -> Result<()> {
    if context.global.json {
        return out.json(&document(json!({"id": id})).into());
    }
    if context.global.quiet { Ok(()) } else { out.line(format!("{verb} key {}", short(id))) }
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn word(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Password => "password",
        SlotKind::KeyFile => "key-file",
        SlotKind::RecoveryCode => "recovery-code",
    }
}

fn list(context: &Context, session: &Session, out: &mut Out) -> Result<()> {
    let slots = session.repo.list_slots()?;
    if context.global.json {
        let keys: Vec<_> = slots.iter().map(to_json).collect();
        return out.json(&document(json!({"keys": keys})).into());
    }
    let mut table = Table::new(&["", "ID", "KIND", "COST", "MADE", "LAST SNAPSHOT OR TAG", "LABEL"], &[]);
    for slot in &slots {
        let mark = if slot.current { "*" } else { "" };
        let last = slot.last_wrote.map_or_else(|| "-".into(), local_time);
        let (made, label) = (local_time(slot.created), slot.label.clone());
        table.row(vec![mark.into(), short(&slot.id).into(), word(slot.kind).into(), price(slot), made, last, label]);
    }
    table.lines().into_iter().try_for_each(|line| out.line(line))
}

/// What one guess costs: memory, and passes over it.
fn price(slot: &KeySlot) -> String {
    slot.cost.map_or_else(|| "-".into(), |c| format!("{} x {}", size(u64::from(c.memory_kib) << 10), c.passes))
}

/// A slot, without what is secret.
pub fn to_json(slot: &KeySlot) -> Value {
    let cost = |c: KdfCost| json!({"memory_kib": c.memory_kib, "passes": c.passes, "lanes": c.lanes});
    json!({
        "id": slot.id,
        "kind": word(slot.kind),
        "created": rfc3339(slot.created),
        "label": slot.label,
        "cost": slot.cost.map(cost),
        "current": slot.current,
        "last_wrote": slot.last_wrote.map(rfc3339),
    })
}

fn remove(context: &Context, session: &Session, prefix: &str, out: &mut Out) -> Result<()> {
    if prefix.len() < MIN_PREFIX {
        return Err(Error::Usage("give at least two digits of the key's id".into()));
    }
    let in_use = |slot: &KeySlot| slot.current && slot.id.starts_with(prefix);
    let slots = session.repo.list_slots()?;
    if slots.len() > 1 && slots.iter().any(in_use) {
        return Err(Error::refused(
            "this is the key that this command was run with",
            "open the repository with another key to remove it",
        ));
    }
    let id = session.repo.remove_slot(prefix)?;
    done(context, out, "removed", &id)
}

fn add_recovery_code(context: &Context, session: &Session, out: &mut Out) -> Result<()> {
    let (code, unlock) = recovery_code()?;
    let id = session.repo.add_slot(&unlock, KdfCost::default(), "recovery code")?;
    if context.global.json {
        return out.json(&document(json!({"id": id, "recovery_code": code})).into());
    }
    context.display.remark(
        "write this down and keep it away from this machine: it opens the repository wherever a password is asked for",
    );
    out.line(code)
}
