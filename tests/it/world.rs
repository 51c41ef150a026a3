//! A hermetic environment for the program, and what a run of it gave back.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_snapshot");

/// A user with a home, a working directory and, perhaps, a repository.
pub struct World {
    dir: TempDir,
    /// Given to every run.
    variables: Vec<(&'static str, OsString)>,
}

/// What a run of the program gave back.
pub struct Ran {
    /// The exit status; 128 + n after signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// The command line, for messages.
    line: String,
}

impl World {
    /// A user with nothing configured.
    pub fn bare() -> Self {
        let dir = tempfile::Builder::new().prefix("snapshot-it-").tempdir().unwrap();
        let world = Self { dir, variables: Vec::new() };
        for folder in ["home", "work", "tmp"] {
            fs::create_dir(world.at(folder)).unwrap();
        }
        world
    }

    /// A user with an empty repository `repo` that opens with a key file, both named by variables.
    pub fn new() -> Self {
        let mut world = Self::bare();
        world.use_repository("repo", "key");
        world.ok(["init"]);
        world
    }

    /// Names a repository and a key file to all further runs.
    pub fn use_repository(&mut self, repo: &str, key_file: &str) {
        self.set("SNAPSHOT_REPO", self.at(repo));
        self.set("SNAPSHOT_KEY_FILE", self.at(key_file));
    }

    /// Sets a variable for all further runs.
    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.unset(name);
        self.variables.push((name, value.into()));
    }

    /// The value of a variable that was set.
    pub fn variable(&self, name: &str) -> OsString {
        self.variables.iter().find(|(known, _)| *known == name).unwrap().1.clone()
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(known, _)| *known != name);
    }

    /// A path in this world, outside the working directory.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A path in the working directory.
    pub fn work(&self, path: impl AsRef<Path>) -> PathBuf {
        self.at("work").join(path)
    }

    /// Writes a file in the working directory, with the directories that lead to it.
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A command in this environment.
    pub fn command_of(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.work("")).stdin(Stdio::null());
        command.env("HOME", self.at("home")).env("TMPDIR", self.at("tmp")).env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
        command.env("XDG_CACHE_HOME", self.at("cache")).env("XDG_CONFIG_HOME", self.at("config"));
        command.env("XDG_DATA_HOME", self.at("data"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The program with these arguments.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command_of(PROGRAM);
        command.args(args);
        command
    }

    /// Runs the program.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        run(&mut self.command(args))
    }

    /// Runs the program with something on its standard input.
    pub fn run_with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
        let mut command = self.command(args);
        let mut child = spawn(command.stdin(Stdio::piped()));
        // A program that refuses to read it is no failure of the test.
        let _ = child.stdin.take().unwrap().write_all(input);
        Ran::new(&command, child.wait_with_output().unwrap())
    }

    /// Runs the program, which must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.run(args).expect(0)
    }

    /// Runs the program with `--json`; it must end with this status.
    pub fn json_of<S: AsRef<OsStr>>(&self, status: i32, args: impl IntoIterator<Item = S>) -> Value {
        let mut command = self.command(args);
        run(command.args(["--json", "-q"])).expect(status).json()
    }

    /// Runs the program with `--json`; it must succeed.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        self.json_of(0, args)
    }

    /// The snapshots, oldest first.
    pub fn list(&self) -> Vec<Value> {
        self.json(["list"]).as_array().unwrap().clone()
    }

    /// Restores into a new directory of this name and returns its path.
    pub fn restore(&self, snapshot: &str, target: &str) -> PathBuf {
        self.ok(["restore", snapshot, "--target", target, "-q"]);
        self.work(target)
    }

    /// The objects of the repository `repo`, by path in it.
    pub fn objects(&self) -> Vec<String> {
        let mut out = Vec::new();
        collect(&self.at("repo"), "", &mut out);
        out.sort();
        out
    }
}

fn collect(root: &Path, folder: &str, out: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() { collect(root, &format!("{path}/"), out) } else { out.push(path) }
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ran {
    let child = spawn(command);
    Ran::new(command, child.wait_with_output().unwrap())
}

/// Starts a command whose output is collected.
pub fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

impl Ran {
    /// What came of a command.
    pub fn new(command: &Command, output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let line = command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status, stdout: output.stdout, stderr, line }
    }

    /// Fails unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "status of `{}`\nstdout: {}\nstderr: {}", self.line, self.text(), self.stderr);
        // However a run ends, what it says is for people.
        for unwanted in ["panicked", "RUST_BACKTRACE", "Error {", "Some("] {
            assert!(!self.stderr.contains(unwanted), "`{}` says {}", self.line, self.stderr);
        }
        self
    }

    /// Fails unless standard error names all of these.
    #[track_caller]
    pub fn names<S: AsRef<str>>(self, words: impl IntoIterator<Item = S>) -> Self {
        for word in words {
            let word = word.as_ref();
            assert!(self.stderr.contains(word), "`{}` does not say \"{word}\": {}", self.line, self.stderr);
        }
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as the one JSON document it must be.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("`{}` prints no JSON document ({e}): {}", self.line, self.text()))
    }
}

/// Whether this process may do everything: permission bits stop nobody.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `body` where it may mount file systems: the test named `name` starts itself again in a mount namespace of its
/// own.
///
/// # Panics
/// Where there is no such thing, as in some containers: what needs it can't be tested there, and that must be seen.
pub fn in_private_mounts(name: &str, body: impl FnOnce()) {
    const MARK: &str = "SNAPSHOT_IT_PRIVATE_MOUNTS";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let mut command = Command::new("unshare");
    command.args(if is_root() { &["-m"][..] } else { &["-r", "-m"] });
    let can = command.arg("--").arg("true").output().is_ok_and(|o| o.status.success());
    assert!(can, "`unshare -m` is not allowed here: run the tests as root or with user namespaces enabled");
    let mut command = Command::new("unshare");
    command.args(if is_root() { &["-m"][..] } else { &["-r", "-m"] }).arg("--");
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(MARK, "1");
    let ran = run(&mut command);
    assert!(ran.text().contains("1 passed"), "in private mounts: {}\n{}", ran.text(), ran.stderr);
}

/// Mounts a small file system in memory; it goes with the private mounts.
pub fn mount_tmpfs(at: &Path, bytes: u64) {
    fs::create_dir_all(at).unwrap();
    let done = run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(at));
    assert_eq!(done.status, 0, "mount: {}", done.stderr);
}

/// Pseudo-random numbers that are the same in every run (xorshift64*).
pub struct Dice(u64);

impl Dice {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Bytes that don't compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out: Vec<u8> =
            std::iter::repeat_with(|| self.roll().to_le_bytes()).take(len / 8 + 1).flatten().collect();
        out.truncate(len);
        out
    }
}
