//! A real sshd, which tests share, each with a directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::script::Script;

const PROGRAMS: [(&str, &str); 2] = [("sshd", "openssh-server"), ("ssh", "openssh-client")];

/// A server of its own.
pub struct Sshd {
    script: Script,
    port: u16,
}

/// The server that tests share; those that stop it start one of their own.
pub fn shared() -> &'static Sshd {
    static SHARED: OnceLock<Sshd> = OnceLock::new();
    SHARED.get_or_init(Sshd::start)
}

impl Sshd {
    /// Starts one.
    pub fn start() -> Self {
        let (script, [port]) = Script::start("sshd.sh", &PROGRAMS);
        let server = Self { script, port };
        server.install_client();
        server
    }

    /// Its port on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it at once, its connections too.
    pub fn stop(&self) {
        self.script.order("stop");
    }

    /// Starts it again.
    pub fn go_on(&self) {
        self.script.order("start");
    }

    /// Starts it again with another host key.
    pub fn change_host_key(&self) {
        self.script.order("rekey");
    }

    /// The user's known hosts.
    pub fn known_hosts(&self) -> PathBuf {
        self.script.dir().join("known_hosts")
    }

    /// The real ssh with the configuration for this server: it finds a user's own by the password database, not by HOME.
    pub fn ssh(&self) -> PathBuf {
        self.bin().join("ssh")
    }

    fn bin(&self) -> PathBuf {
        self.script.dir().join("bin")
    }

    fn install_client(&self) {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let ssh = std::env::split_paths(&folders).map(|folder| folder.join("ssh")).find(|ssh| ssh.exists()).unwrap();
        let config = self.script.dir().join("ssh_config");
        let wrapper = self.ssh();
        fs::create_dir(self.bin()).unwrap();
        let script = format!("#!/bin/sh\nexec {} -F {} \"$@\"\n", ssh.display(), config.display());
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The name of the user that this process runs as, who logs in.
pub fn user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The URL of a directory by way of a port.
pub fn url(port: u16, directory: &Path) -> String {
    format!("sftp://{}@127.0.0.1:{port}{}", user(), directory.display())
}
