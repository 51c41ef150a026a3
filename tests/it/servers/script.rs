//! A server that a script runs: it is told to stop and start on its standard input, and ends with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A script that is running. Its servers end, and its directory goes, when this is dropped or the test's process ends,
/// however it does.
pub struct Script {
    dir: PathBuf,
    child: Child,
    talk: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

/// A port of the loopback that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Fails unless all these programs are there: each with the Debian package it comes in.
fn need(programs: &[(&str, &str)]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    let missing: Vec<_> = programs.iter().filter(|(name, _)| !folders.iter().any(|f| f.join(name).exists())).collect();
    let names: Vec<_> = missing.iter().map(|(program, package)| format!("{program} (package {package})")).collect();
    assert!(
        names.is_empty(),
        "not installed: {}; on Debian, ./test as root installs what is missing",
        names.join(", ")
    );
}

impl Script {
    /// Starts the script of this name in a new directory, with so many free ports as arguments; returns those too.
    pub fn start<const PORTS: usize>(name: &str, programs: &[(&str, &str)]) -> (Self, [u16; PORTS]) {
        need(programs);
        // A port that was free may be taken a moment later.
        let mut attempts = (0..3).map(|_| Self::attempt(name));
        attempts.find_map(Result::ok).unwrap_or_else(|| match Self::attempt(name) {
            Ok(started) => started,
            Err(said) => panic!("{name} does not start: {said}"),
        })
    }

    fn attempt<const PORTS: usize>(name: &str) -> Result<(Self, [u16; PORTS]), String> {
        let dir = tempfile::Builder::new().prefix("snapshot-server-").tempdir().unwrap().keep();
        let ports = [(); PORTS].map(|()| free_port());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers").join(name);
        let mut command = Command::new(script);
        command.arg(&dir).args(ports.map(|port| port.to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        if hears(&mut stdout, "ready") {
            return Ok((Self { dir, child, talk: Mutex::new(Some((stdin, stdout))) }, ports));
        }
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        Err(said)
    }

    /// Where the server has its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives an order, and waits until it is done.
    pub fn order(&self, order: &str) {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let (stdin, stdout) = talk.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
        assert!(hears(stdout, "done"), "the server's script ended at \"{order}\"");
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.talk.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let _ = self.child.wait();
    }
}

/// Whether the next line is this one.
fn hears(from: &mut impl BufRead, expected: &str) -> bool {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim_end() == expected
}
