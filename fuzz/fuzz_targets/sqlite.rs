//! What is read of SQLite's files without SQLite: the header of a database, and the write-ahead log.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use snapshot::format::segment::is_page_size;
use snapshot::source::sqlite::wal;
use snapshot::source::sqlite::{HEADER_BYTES, Header, has_magic};

const LOG_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const PAGE_BYTES: usize = 512;

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((way, data)) if way % 3 == 0 => database_header(data),
        Some((way, data)) if way % 3 == 1 => log(data),
        Some((_, data)) => log(&with_checksums(data)),
        None => {}
    }
});

fn database_header(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        assert!(has_magic(data) && data.len() >= HEADER_BYTES && is_page_size(header.page_bytes));
    }
}

fn log(bytes: &[u8]) {
    let page_bytes = match bytes.get(8..12) {
        Some(&[a, b, c, d]) if is_page_size(u32::from_be_bytes([a, b, c, d])) => u32::from_be_bytes([a, b, c, d]),
        _ => 4096,
    };
    with_file(bytes, |file| {
        let _ = wal::stamp(file);
        let Ok(Some(found)) = wal::scan(file, page_bytes) else { return };
        assert!(found.database_pages > 0);
        for (page, at) in &found.pages {
            assert!(*page > 0 && at + u64::from(page_bytes) <= bytes.len() as u64);
        }
        assert!(found.is_still_there(file).expect("the file can be read"));
        // A log that is begun anew has other salts in its header: noticed.
        file.write_all_at(&[!bytes[16]], 16).expect("the file can be written");
        assert!(!found.is_still_there(file).expect("the file can be read"));
    });
}

/// Runs on a file of the bytes that lies in memory.
fn with_file(bytes: &[u8], run: impl FnOnce(&File)) {
    thread_local!(static FILE: RefCell<Option<File>> = const { RefCell::new(None) });
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| {
            File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory files are supported"))
        });
        file.set_len(0).expect("it can be cut");
        file.write_all_at(bytes, 0).expect("it can be written");
        run(file);
    });
}

/// A log with sound checksums: for each frame of the input two bytes of page number, two of database size, one that
/// fills the page.
fn with_checksums(mut data: &[u8]) -> Vec<u8> {
    let big_endian = data.first().is_some_and(|b| b & 1 == 1);
    let mut out = Vec::new();
    for word in [0x377f_0682 | u32::from(big_endian), 3_007_000, PAGE_BYTES as u32, 0, 7, 9] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    let mut sum = checksum([0, 0], &out, big_endian);
    sum.iter().for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
    assert_eq!(out.len(), LOG_HEADER_BYTES);
    while let Some(&[a, b, c, d, fill]) = snapshot_fuzz::take(&mut data) {
        let head = [0, 0, a, b, 0, 0, c, d];
        let page = [fill; PAGE_BYTES];
        sum = checksum(checksum(sum, &head, big_endian), &page, big_endian);
        let from = out.len();
        out.extend_from_slice(&head);
        out.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 9]);
        sum.iter().for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
        assert_eq!(out.len() - from, FRAME_HEADER_BYTES);
        out.extend_from_slice(&page);
    }
    out
}

fn checksum([mut a, mut b]: [u32; 2], bytes: &[u8], big_endian: bool) -> [u32; 2] {
    let word = |four: &[u8]| {
        let four = [four[0], four[1], four[2], four[3]];
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    [a, b]
}
