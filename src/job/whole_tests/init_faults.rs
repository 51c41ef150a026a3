//! A fault at every call to the store of an init. There is no snapshot to lose yet: what counts is that the place can
//! be used afterwards, by the key that was given, without anything being cleared away by hand.

use super::*;
use crate::job::repair;

/// The store after an init that met a fault; what the fault hit; and how the init ended.
fn after(fault: Fault, at: u64) -> (Arc<Memory>, Option<String>, Result<()>) {
    let memory = Arc::new(Memory::at(clock::now()));
    let faulty = Arc::new(Faulty::with(memory.clone(), fault, at));
    let result = Repository::init(faulty.clone(), &unlock(), KdfCost::default(), "test").map(drop);
    let is_write = |call: &Call| call.op == Op::Put || call.op == Op::Delete;
    let hit = faulty.take_calls().into_iter().filter(is_write).nth(at as usize).map(|call| call.path);
    (memory, hit, result)
}

#[test]
fn an_init_can_be_run_again_or_has_made_the_repository() {
    for fault in
        [Fault::Full, Fault::Killed, Fault::Refused, Fault::Unanswered, Fault::Torn, Fault::Unfinished, Fault::Unread]
    {
        let mut at = 0;
        loop {
            let (memory, hit, result) = after(fault, at);
            if result.is_ok() {
                // A slot, the config and its copy; one listing before them.
                assert_eq!(at, if fault == Fault::Unread { 1 } else { 3 }, "{fault:?}");
                break;
            }
            let case = format!("{fault:?} at {at}");
            if fault == Fault::Torn && hit.as_deref() == Some(layout::CONFIG) {
                // Such a store keeps no promise: the object that is damaged is named, and goes by hand.
                let error = open(memory.clone()).err().unwrap();
                assert!(matches!(&error, Error::Corrupt { what, .. } if what == layout::CONFIG), "{error}");
                memory.delete(&[layout::CONFIG.into()]).unwrap();
            }
            if !Repository::exists(&*memory).unwrap() {
                Repository::init(memory.clone(), &unlock(), KdfCost::default(), "test").expect(&case);
            }
            let repo = open(memory.clone()).expect(&case);
            // What may be missing is the config's copy.
            repair::repair_index(&repo, &Reporter::silent()).unwrap();
            let mut problems = check(&repo, ReadData::All, false).unwrap();
            problems.retain(|p| fault != Fault::Torn || Some(&p.what) != hit.as_ref());
            assert!(problems.iter().all(|p| p.severity == Severity::Note), "{case}: {problems:#?}");

            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("file"), noise(1, 1000)).unwrap();
            let picture = expected(folder.path());
            let id = create(&open(memory.clone()).unwrap(), folder.path(), 0).unwrap();
            assert_restores(&open(memory.clone()).unwrap(), id, folder.path(), &picture);
            at += 1;
        }
    }
}
