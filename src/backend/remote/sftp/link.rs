//! A connection: one process of the system's `ssh`, and SFTP over its pipes.
//!
//! `ssh` itself finds keys, agent, known hosts and configuration. It ends when its pipes close, so it never outlives
//! this process by more than a moment.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openssh_sftp_client::{Sftp as Protocol, SftpOptions};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::said;
use crate::backend::remote::SftpPlace;
use crate::backend::remote::failure::{Failure, Remedy};

/// For how long a connection may take to be made, in seconds.
const CONNECT_SECS: u64 = 20;
/// For how long the whole beginning may take: name, connection, keys, SFTP.
const BEGIN: Duration = Duration::from_secs(60);
/// Between signs of life on a quiet connection, in seconds, and how many may stay unanswered.
const ALIVE_SECS: u64 = 15;
const ALIVE_COUNT: u64 = 4;
/// Most that is kept of what `ssh` writes, in bytes.
const MAX_WORDS_BYTES: usize = 16 << 10;

/// An open connection.
pub(super) struct Link {
    pub protocol: Protocol,
    /// Bytes under way, so that the next transfer takes another connection.
    pub load: AtomicUsize,
    is_lost: AtomicBool,
    words: Arc<Mutex<String>>,
    // Ended when this is dropped.
    _ssh: Child,
}

/// A connection in use for so many bytes, counted as long as this lives.
pub(super) struct InUse {
    link: Arc<Link>,
    bytes: usize,
}

impl InUse {
    pub fn new(link: Arc<Link>, bytes: usize) -> Self {
        link.load.fetch_add(bytes, Ordering::Relaxed);
        Self { link, bytes }
    }
}

impl std::ops::Deref for InUse {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.link.load.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Link {
    /// Connects. `command`: what to run instead of `ssh`, understood by `sh`.
    pub async fn open(place: &SftpPlace, command: Option<&str>) -> Result<Self, Failure> {
        let mut ssh = start(place, command).map_err(|e| said::not_started(&e))?;
        let words = Arc::<Mutex<String>>::default();
        let listener = ssh.stderr.take().map(|stderr| tokio::spawn(listen(stderr, words.clone())));
        let (Some(stdin), Some(stdout)) = (ssh.stdin.take(), ssh.stdout.take()) else {
            return Err(Failure::again("ssh has no pipes"));
        };
        match timeout(BEGIN, Protocol::new(stdin, stdout, SftpOptions::new().flush_interval(Duration::ZERO))).await {
            Ok(Ok(protocol)) => {
                Ok(Self { protocol, load: AtomicUsize::new(0), is_lost: AtomicBool::new(false), words, _ssh: ssh })
            }
            Ok(Err(_)) => {
                // What it said last comes before its end.
                if let Some(listener) = listener {
                    let _ = timeout(Duration::from_secs(2), listener).await;
                }
                let failure = said::not_connected(&lock(&words), place);
                let missing = timeout(Duration::from_secs(1), ssh.wait())
                    .await
                    .is_ok_and(|s| s.is_ok_and(|s| s.code() == Some(127)));
                Err(if missing { said::not_started(&std::io::ErrorKind::NotFound.into()) } else { failure })
            }
            Err(_) => Err(Failure::new(Remedy::Contact, format!("no answer within {} s", BEGIN.as_secs()))),
        }
    }

    /// Takes note that it can't be used any more.
    pub fn give_up(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// What `ssh` wrote.
    pub fn words(&self) -> String {
        lock(&self.words).clone()
    }
}

fn lock(words: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    words.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(place: &SftpPlace, command: Option<&str>) -> std::io::Result<Child> {
    let mut ssh = match command {
        None => Command::new("ssh"),
        Some(command) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("exec {command} \"$@\"")).arg("ssh");
            shell
        }
    };
    for option in [
        // There is nobody to ask.
        "BatchMode=yes".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        format!("ConnectTimeout={CONNECT_SECS}"),
        format!("ServerAliveInterval={ALIVE_SECS}"),
        format!("ServerAliveCountMax={ALIVE_COUNT}"),
        "ForwardAgent=no".to_owned(),
        "ForwardX11=no".to_owned(),
        "ClearAllForwardings=yes".to_owned(),
        "PermitLocalCommand=no".to_owned(),
        "RemoteCommand=none".to_owned(),
        "RequestTTY=no".to_owned(),
    ] {
        ssh.arg("-o").arg(option);
    }
    if let Some(port) = place.port {
        ssh.arg("-p").arg(port.to_string());
    }
    if let Some(user) = &place.user {
        ssh.arg("-l").arg(user);
    }
    // Its errors are told apart by their words.
    ssh.env("LC_ALL", "C");
    ssh.arg("-s").arg("--").arg(&place.host).arg("sftp");
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // A terminal's Ctrl-C is for us; we end in order and then let it go.
    ssh.process_group(0);
    ssh.spawn()
}

/// Keeps what `ssh` writes.
async fn listen(mut stderr: tokio::process::ChildStderr, words: Arc<Mutex<String>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read) = stderr.read(&mut buffer).await {
        let Some(new) = buffer.get(..read).filter(|new| !new.is_empty()) else { return };
        let mut words = lock(&words);
        if words.len() < MAX_WORDS_BYTES {
            words.push_str(&String::from_utf8_lossy(new));
        }
    }
}
