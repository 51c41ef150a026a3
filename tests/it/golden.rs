//! An independent reader, written from `repo-format.md` alone in another language, reads repositories of each release.

use std::path::Path;
use std::process::Command;

/// Modules of Python that the reader needs, and the packages that hold them.
const MODULES: [(&str, &str); 4] =
    [("blake3", "blake3"), ("zstandard", "zstandard"), ("cryptography", "cryptography"), ("argon2", "argon2-cffi")];

#[test]
fn the_independent_reader_reads_the_golden_repositories() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/test_golden.py");
    if !script.exists() {
        eprintln!("{} is not there", script.display());
        return;
    }
    let has = |code: &str| Command::new("python3").args(["-c", code]).output().is_ok_and(|o| o.status.success());
    assert!(has("pass"), "python3 is needed for the independent reader of the format");
    let missing: Vec<_> = MODULES.iter().filter(|(module, _)| !has(&format!("import {module}"))).map(|m| m.1).collect();
    assert!(missing.is_empty(), "the independent reader needs: python3 -m pip install {}", missing.join(" "));
    let output = Command::new("python3").arg(&script).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{}: {said}", script.display());
}
