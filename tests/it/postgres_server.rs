//! A real PostgreSQL server, started for the tests: on a socket in a temporary directory and a port of the loopback.

use std::fs;
use std::io::{Seek, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use super::world::is_root;

/// The password of every role that has one.
pub const PASSWORD: &str = "s3cret/w@rd";
/// The same in a URL.
pub const PASSWORD_IN_URL: &str = "s3cret%2Fw%40rd";

/// A server. It ends, and its directory goes, when this is dropped or the test's process ends, however it does.
pub struct Server {
    dir: PathBuf,
    port: u16,
    /// Its other end is what a shell waits for that clears away.
    _alive: ChildStdin,
}

/// Where the server's programs are: Debian has them out of the way.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.map(|entry| entry.unwrap().path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL is not installed: on Debian it is the package postgresql; ./test installs it")
}

/// The PATH with the server's own programs first.
pub fn path() -> std::ffi::OsString {
    let mut path = programs().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// As root, what the server's programs are run with.
const AS_POSTGRES: &str = "setpriv --reuid=postgres --regid=postgres --clear-groups";

/// A program of PostgreSQL that is run as a user who may: the server refuses root.
fn server_command(program: &str) -> Command {
    let program = programs().join(program);
    let mut command = if is_root() {
        let mut words = AS_POSTGRES.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_clear().env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
    command
}

fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The server that all tests share, each with databases of its own.
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(Server::start)
}

impl Server {
    /// A server of its own.
    #[allow(clippy::zombie_processes)] // The shell outlives this process.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("snapshot-pg-").tempdir().unwrap().keep();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let data = dir.join("data");
        must(server_command("initdb").args(["-U", "postgres", "--auth=trust", "-E", "UTF8", "-N", "-D"]).arg(&data));
        // Passwords count over the loopback; over the socket everybody is believed.
        fs::write(data.join("pg_hba.conf"), "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let clear = "cat >/dev/null; \"$1\" stop -D \"$2/data\" -m immediate -w; rm -rf \"$2\"";
        let clear = format!(
            "cd /; {}",
            if is_root() { clear.replace("\"$1\"", &format!("{AS_POSTGRES} \"$1\"")) } else { clear.into() }
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &clear, "sh"]).arg(programs().join("pg_ctl")).arg(&dir).stdin(Stdio::piped());
        let mut shell = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { dir, port, _alive: shell.stdin.take().unwrap() };
        server.boot();
        server
    }

    fn boot(&self) {
        let options = format!(
            "-k {} -p {} -c listen_addresses=127.0.0.1 -c fsync=off -c autovacuum=off -c max_connections=50",
            self.dir.display(),
            self.port
        );
        let mut command = server_command("pg_ctl");
        command.arg("-D").arg(self.data()).arg("-l").arg(self.dir.join("log")).args(["-w", "-o", &options]);
        // The server must not hold the test's own pipes open.
        let started = command.arg("start").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(started.success(), "PostgreSQL does not start: {}", log());
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Ends the server at once, as a power cut would.
    pub fn kill(&self) {
        let mut command = server_command("pg_ctl");
        let _ = command.arg("-D").arg(self.data()).args(["-m", "immediate", "-w", "stop"]).output();
    }

    /// The URL of a database over the socket, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_of("postgres", database)
    }

    /// The same for a role.
    pub fn url_of(&self, role: &str, database: &str) -> String {
        format!("postgresql://{role}@:{}/{database}?host={}", self.port, self.dir.display())
    }

    /// The URL over the loopback, where passwords count.
    pub fn url_with(&self, credentials: &str, database: &str) -> String {
        format!("postgres://{credentials}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL in a database and returns what it says, rows as lines.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = Command::new(programs().join("psql"));
        command.env_clear().env("LC_ALL", "C.UTF-8").args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"]);
        let name: String = database.bytes().map(|byte| format!("%{byte:02X}")).collect();
        command.arg(self.url(&name)).args(["-f", "-"]);
        // From its input: there each statement is a transaction of its own.
        let mut script = tempfile::tempfile().unwrap();
        script.write_all(sql.as_bytes()).unwrap();
        script.rewind().unwrap();
        must(command.stdin(script)).trim_end().to_owned()
    }

    /// A new database of this name, in place of one that there may be.
    pub fn new_database(&self, name: &str) {
        let quoted = name.replace('"', "\"\"");
        self.sql("postgres", &format!("DROP DATABASE IF EXISTS \"{quoted}\""));
        self.sql("postgres", &format!("CREATE DATABASE \"{quoted}\" TEMPLATE template0"));
    }
}
