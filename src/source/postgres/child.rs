//! A program of PostgreSQL that is running: its output with a bounded memory, its complaints, its end.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Url;
use crate::error::{Error, Result};
use crate::report::Reporter;

/// The Debian package that has all of the programs.
const PACKAGE: &str = "postgresql-client";
/// Read from a program, or waiting to be written to it, at a time: so many pieces of so many bytes.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// Of what a program complains about, so much is kept.
const COMPLAINT_BYTES: u64 = 64 << 10;
/// How often it is looked whether the user has interrupted, and whether a program has ended.
const TICK: Duration = Duration::from_millis(50);
/// How long a program that was asked to end may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running program, which is stopped when this is dropped.
pub struct Child {
    what: String,
    process: std::process::Child,
    complaints: Option<JoinHandle<String>>,
    password: Option<String>,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts a program for a database: `what` is for messages, as in "pg_dump of app".
    ///
    /// # Errors
    /// [`Error::Refused`] if it is not installed, [`Error::File`] if it can't be started.
    pub(super) fn start(program: &str, what: &str, url: &Url, arguments: &[OsString], input: Stdio) -> Result<Self> {
        let mut command = Command::new(program);
        // Messages in one language, since some are looked at.
        command.args(arguments).env("LC_ALL", "C").stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(password) = url.password() {
            command.env("PGPASSWORD", password);
        }
        let mut process = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::refused(
                format!("{program} is not installed here, or not in the PATH"),
                format!("install it: on Debian and Ubuntu it is in the package {PACKAGE}"),
            ),
            _ => Error::file("start", program, e),
        })?;
        let stderr = process.stderr.take();
        let complaints = std::thread::spawn(move || stderr.map_or_else(String::new, collect));
        let password = url.password().map(|p| p.to_string_lossy().into_owned());
        Ok(Self { what: what.to_owned(), process, complaints: Some(complaints), password, ended: None })
    }

    /// What the program is for, in words.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What the program writes. Reading ends with an error when the user interrupts.
    pub fn output<'r>(&mut self, reporter: &'r Reporter) -> Output<'r> {
        let (send, receive) = sync_channel(PIECES);
        if let Some(mut out) = self.process.stdout.take() {
            std::thread::spawn(move || pass_on(&mut out, &send));
        }
        Output { receive, piece: Vec::new(), at: 0, reporter }
    }

    /// Takes what is to be written to the program.
    pub(super) fn input(&mut self) -> Input {
        let (send, receive) = sync_channel::<Vec<u8>>(PIECES);
        let stdin = self.process.stdin.take();
        let writing = std::thread::spawn(move || stdin.map_or(Ok(()), |stdin| write_all(stdin, &receive)));
        Input { send: Some(send), writing: Some(writing) }
    }

    /// Whether the program has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended.is_some()
    }

    /// Waits for the program to end; returns what it complained about if it was content all the same.
    ///
    /// # Errors
    /// [`Error::Refused`] if it was not, [`Error::Interrupted`].
    pub fn finish(mut self, reporter: &Reporter) -> Result<String> {
        while !self.has_ended() {
            reporter.check_interrupt()?;
            std::thread::sleep(TICK);
        }
        let complaint = self.complaint();
        match self.ended {
            Some(status) if status.success() => Ok(complaint),
            status => Err(failure(&self.what, status, &complaint)),
        }
    }

    /// Why it failed, once it has: for when reading from it or writing to it ended early.
    pub fn failed(mut self) -> Error {
        let begun = Instant::now();
        while !self.has_ended() && begun.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
        }
        self.stop();
        let complaint = self.complaint();
        failure(&self.what, self.ended, &complaint)
    }

    fn complaint(&mut self) -> String {
        let text = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        match &self.password {
            Some(password) if !password.is_empty() => text.replace(password.as_str(), "***"),
            _ => text,
        }
    }

    /// Asks the program to end, so that the server hears of it too, and kills it if it doesn't.
    fn stop(&mut self) {
        if self.has_ended() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let begun = Instant::now();
        while !self.has_ended() && begun.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
        }
        if !self.has_ended() {
            let _ = self.process.kill();
            self.ended = self.process.wait().ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What to say of a program that failed.
fn failure(what: &str, status: Option<ExitStatus>, complaint: &str) -> Error {
    let how = match status {
        Some(status) if status.code().is_some() || complaint.is_empty() => status.to_string(),
        Some(status) => format!("it was cut off by {status}"),
        None => "it did not end".into(),
    };
    let lines = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.collect::<Vec<_>>().join("; ");
    let said = if said.is_empty() { how } else { format!("{said} ({how})") };
    Error::refused(format!("{what} failed: {said}"), hint(complaint))
}

/// The next step, by what the program said.
fn hint(complaint: &str) -> String {
    let has = |words: &str| complaint.contains(words);
    if has("server version mismatch") {
        let major = complaint.split("server version: ").nth(1).and_then(|v| v.split(['.', ';', ' ', '\n']).next());
        return format!(
            "pg_dump must not be older than the server: on Debian and Ubuntu install the package {PACKAGE}-{}",
            major.unwrap_or("VERSION")
        );
    }
    let known = [
        ("password authentication failed", "mend the password: in the URL, in PGPASSWORD or in ~/.pgpass"),
        ("no password supplied", "give the password: in ~/.pgpass, in PGPASSWORD, or in the URL"),
        ("permission denied", "use a role that may read everything, such as a member of pg_read_all_data"),
        ("does not exist", "look at the name: `psql --list` shows the databases"),
        ("connection to server", "look whether the server runs, and at host, port and user in the URL"),
    ];
    let found = known.iter().find(|(words, _)| has(words));
    found.map_or("mend that and run again", |(_, hint)| hint).to_owned()
}

fn collect(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = from.by_ref().take(COMPLAINT_BYTES).read_to_end(&mut kept);
    // The rest is read too: a program must not wait for somebody to listen.
    let _ = io::copy(&mut from, &mut io::sink());
    String::from_utf8_lossy(&kept).trim_end().to_owned()
}

fn pass_on(from: &mut impl Read, to: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let read = from.read(&mut piece).map(|n| {
            piece.truncate(n);
            piece
        });
        match read {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => {
                let is_last = !read.as_ref().is_ok_and(|piece| !piece.is_empty());
                if to.send(read).is_err() || is_last {
                    return;
                }
            }
        }
    }
}

/// What a program writes.
pub struct Output<'r> {
    receive: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    reporter: &'r Reporter,
}

impl Read for Output<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receive.recv_timeout(TICK) {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                Err(RecvTimeoutError::Timeout) => {
                    self.reporter.check_interrupt().map_err(|_| io::Error::other("interrupted"))?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
            if self.piece.is_empty() {
                return Ok(0);
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

/// Where a program reads from.
pub(super) struct Input {
    send: Option<SyncSender<Vec<u8>>>,
    writing: Option<JoinHandle<io::Result<()>>>,
}

impl Input {
    /// Hands bytes on; `false` if the program takes no more.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) fn put(&self, bytes: Vec<u8>, reporter: &Reporter) -> Result<bool> {
        let Some(send) = &self.send else { return Ok(false) };
        let mut bytes = bytes;
        loop {
            reporter.check_interrupt()?;
            bytes = match send.try_send(bytes) {
                Ok(()) => return Ok(true),
                Err(TrySendError::Disconnected(_)) => return Ok(false),
                Err(TrySendError::Full(bytes)) => bytes,
            };
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the input; whether the program took all of it.
    pub(super) fn end(mut self) -> bool {
        self.send = None;
        self.writing.take().is_some_and(|writing| writing.join().is_ok_and(|written| written.is_ok()))
    }
}

fn write_all(mut to: ChildStdin, from: &Receiver<Vec<u8>>) -> io::Result<()> {
    from.iter().try_for_each(|piece| to.write_all(&piece))
}
