//! What is read off a database's pages as they are captured, and the comparison with what was recorded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot::format::cbor;
use snapshot::format::facts::{Facts, MAX_NAMES_BYTES, MAX_TABLES};
use snapshot::source::sqlite::PageObserver;

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((way, file)) if way % 8 < 7 => pages(file, 512 << (way % 8), 1 + usize::from(way / 8)),
        Some((_, record)) => recorded(record),
        None => {}
    }
});

fn pages(file: &[u8], page_bytes: usize, step: usize) {
    let count = file.len() / page_bytes;
    if count == 0 {
        return;
    }
    let file = &file[..count * page_bytes];
    let mut observer = PageObserver::new(page_bytes as u32, count as u64);
    for (n, pages) in file.chunks(step * page_bytes).enumerate() {
        observer.see((n * step) as u64, pages);
    }
    let facts = observer.finish(|page| {
        let at = (page as usize).checked_sub(1).expect("pages are counted from 1") * page_bytes;
        Ok::<_, ()>(file.get(at..at + page_bytes).expect("only pages that are there are read").to_vec())
    });
    let facts = facts.expect("no page fails to be read");
    assert!(facts.is_sane());
    // A cell has a pointer of two bytes to it.
    assert!(facts.tables.iter().flatten().all(|table| table.rows <= file.len() as u64));
    assert_eq!(cbor::decode::<Facts>(&cbor::encode(&facts)).as_ref(), Ok(&facts));
    assert!(facts.differences(&facts, 3).is_empty());
}

fn recorded(record: &[u8]) {
    let Ok(facts) = cbor::decode::<Facts>(record) else { return };
    assert_eq!(cbor::encode(&facts), record, "there is one encoding of facts");
    if facts.is_sane() {
        assert!(facts.differences(&facts, 3).is_empty() && facts.differences(&Facts::default(), 3).len() <= 4);
        let names = facts.tables.iter().flatten().map(|table| table.name.len()).sum::<usize>();
        assert!(names <= MAX_NAMES_BYTES && facts.tables.iter().flatten().count() <= MAX_TABLES);
        assert!(facts.tables.iter().flatten().all(|table| facts.rows_of(&table.name) == Some(table.rows)));
    }
}
