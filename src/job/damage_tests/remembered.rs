//! Checks that remember which packs they decoded.

use super::*;

fn check_with(store: &Arc<Memory>, memory: &std::path::Path) -> (Summary, Vec<Problem>) {
    let reporter = Reporter::silent();
    let options = Options {
        read_data: ReadData::All,
        databases: false,
        scratch: memory.to_owned(),
        memory: Some(memory.to_owned()),
    };
    (check::run(&open(store), &options, &reporter).unwrap(), reporter.problems())
}

#[test]
fn what_was_decoded_once_is_only_hashed_and_damage_is_found_all_the_same() {
    let store = copy(&fixture().objects);
    let folder = tempfile::tempdir().unwrap();
    let (first, problems) = check_with(&store, folder.path());
    assert!(problems.is_empty() && first.bytes_decoded == first.bytes_read);
    let (second, problems) = check_with(&store, folder.path());
    assert!(problems.is_empty() && second.bytes_read == first.bytes_read);
    assert_eq!(second.bytes_decoded, 0, "also what leans on another pack: its bases are named by their contents");

    let packs: Vec<_> = objects(&*store).into_iter().filter(|(path, _)| path.starts_with("packs/")).collect();
    for (path, bytes) in packs {
        let mut bad = bytes.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        store.put(&path, bad).unwrap();
        let (summary, problems) = check_with(&store, folder.path());
        assert!(damages(&problems).iter().any(|p| p.what == path), "{path}: {problems:#?}");
        assert!(summary.bytes_decoded >= bytes.len() as u64 || summary.bytes_read < first.bytes_read);
        store.put(&path, bytes).unwrap();
    }
    assert!(check_with(&store, folder.path()).1.is_empty());
}

#[test]
fn a_memory_that_makes_no_sense_is_none() {
    let store = copy(&fixture().objects);
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = check_with(&store, folder.path());
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    for bad in [text.replace("snapshot ", "snapshot 99."), format!("{text}x\n"), String::new()] {
        std::fs::write(&file, bad).unwrap();
        assert_eq!(check_with(&store, folder.path()).0.bytes_decoded, first.bytes_decoded);
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let (summary, problems) = check_with(&store, folder.path());
    assert_eq!(summary.bytes_decoded, first.bytes_decoded);
    assert!(problems.len() == 1 && problems[0].severity == Severity::Note, "it says that it can't remember");
}
