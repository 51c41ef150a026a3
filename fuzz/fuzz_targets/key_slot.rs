//! Key slots: read before any key is known. Slots for passwords are not opened here, since one try takes 19 MiB at
//! least.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::header::Kind;
use snapshot::format::keyslot::{Slot, SlotKind, Unlock};
use snapshot_fuzz::header;

fuzz_target!(|data: &[u8]| {
    let Some((way, data)) = data.split_first() else { return };
    let file = match way % 2 {
        0 => data.to_vec(),
        _ => [&header(Kind::Slot, 0).to_bytes()[..], data].concat(),
    };
    let Ok(slot) = Slot::parse(&file, "keys/x") else { return };
    assert_eq!(slot.to_bytes(), file, "there is one encoding of a slot");
    let _ = (slot.label(), slot.created());
    match slot.kind() {
        SlotKind::Password => {}
        SlotKind::KeyFile => drop(slot.open(&Unlock::KeyFile(vec![3; 32]))),
        SlotKind::RecoveryCode => drop(slot.open(&Unlock::RecoveryCode(vec![3; 20]))),
    }
});
