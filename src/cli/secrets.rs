//! Where the password or key comes from: options, then variables, then the key file of the default repository, then a
//! question on a terminal. Without a terminal nothing is ever asked.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use snapshot::error::{Error, Result};
use snapshot::format::keyslot::Unlock;
use snapshot::repo::read_key_file;

use super::args::{Copy, Global};
use super::env::Env;

/// A password file or the output of a password command is read up to this many bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// A secret and what it is called in errors.
pub struct Secret {
    /// What opens key slots.
    pub unlock: Unlock,
    /// "the password", "key file /x".
    pub name: String,
}

/// A source of the secret that the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A key file.
    KeyFile(PathBuf),
    /// A file whose first line is the password.
    PasswordFile(PathBuf),
    /// A shell command whose first line of output is the password.
    PasswordCommand(OsString),
    /// The password itself.
    Password(OsString),
}

/// What the options name, or else the variables: any option goes before any variable.
pub fn given(global: &Global, env: &Env) -> Option<Given> {
    let option = global.key_file.clone().map(Given::KeyFile);
    let option = option.or_else(|| global.password_file.clone().map(Given::PasswordFile));
    let option = option.or_else(|| global.password_command.clone().map(Given::PasswordCommand));
    option.or_else(|| of_variables(env, "SNAPSHOT_"))
}

/// What the options of `copy` name for the repository that is copied from, or else the variables.
pub fn given_for_source(args: &Copy, env: &Env) -> Option<Given> {
    let option = args.from_key_file.clone().map(Given::KeyFile);
    let option = option.or_else(|| args.from_password_file.clone().map(Given::PasswordFile));
    let option = option.or_else(|| args.from_password_command.clone().map(Given::PasswordCommand));
    option.or_else(|| of_variables(env, "SNAPSHOT_FROM_"))
}

/// What variables with this prefix name.
fn of_variables(env: &Env, prefix: &str) -> Option<Given> {
    let name = |rest: &str| format!("{prefix}{rest}");
    let key_file = env.get(&name("KEY_FILE")).map(|v| Given::KeyFile(v.into()));
    let file = || env.get(&name("PASSWORD_FILE")).map(|v| Given::PasswordFile(v.into()));
    let command = || env.get(&name("PASSWORD_COMMAND")).map(Given::PasswordCommand);
    // An empty password is refused, not overlooked: the variable was meant to hold one.
    key_file.or_else(file).or_else(command).or_else(|| env.raw(&name("PASSWORD")).map(Given::Password))
}

impl Given {
    /// The file that holds it, if one does.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::KeyFile(path) | Self::PasswordFile(path) => Some(path),
            Self::PasswordCommand(_) | Self::Password(_) => None,
        }
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// When the file or command fails, or the password is empty.
    pub fn read(&self) -> Result<Secret> {
        match self {
            Self::KeyFile(path) => key_file(path),
            Self::PasswordFile(path) => password_file(path),
            Self::PasswordCommand(command) => {
                password(run_password_command(command)?, "what --password-command printed")
            }
            Self::Password(text) => password(text.clone().into_vec(), "SNAPSHOT_PASSWORD"),
        }
    }
}

/// Reads a key file.
///
/// # Errors
/// As [`read_key_file`].
pub fn key_file(path: &Path) -> Result<Secret> {
    Ok(Secret { unlock: read_key_file(path)?, name: format!("key file {}", path.display()) })
}

/// Reads a password from the first line of a file.
///
/// # Errors
/// When it can't be read or is empty.
pub fn password_file(path: &Path) -> Result<Secret> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|f| f.take(MAX_SECRET_BYTES).read_to_end(&mut text));
    read.map_err(|e| Error::file("read", path, e))?;
    password(first_line(text), &format!("the first line of {}", path.display()))
}

fn run_password_command(command: &OsString) -> Result<Vec<u8>> {
    let refuse = |why: String| {
        Error::refused(
            format!("the password command failed: {why}"),
            "run it by hand (sh -c COMMAND): its first line of output is taken as the password",
        )
    };
    // Standard input may be the data of `create --stdin`: not for the command.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = shell.output().map_err(|e| refuse(e.to_string()))?;
    if !output.status.success() {
        return Err(refuse(output.status.to_string()));
    }
    Ok(first_line(output.stdout))
}

fn first_line(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|b| *b == b'\n') {
        text.truncate(end);
    }
    if text.last() == Some(&b'\r') {
        text.pop();
    }
    text
}

fn password(text: Vec<u8>, origin: &str) -> Result<Secret> {
    if text.is_empty() {
        return Err(Error::refused(format!("{origin} is empty"), "a password has at least one character"));
    }
    Ok(Secret { unlock: Unlock::Password(text), name: "the password".into() })
}

/// Asks for the password of an existing repository.
///
/// # Errors
/// [`Error::Refused`] without a terminal.
pub fn ask() -> Result<Secret> {
    password(prompt("password: ")?, "the password")
}

/// Asks twice for a new password.
///
/// # Errors
/// [`Error::Refused`] without a terminal, or if the two differ.
pub fn ask_new() -> Result<Secret> {
    let typed = prompt("new password: ")?;
    if !typed.is_empty() && prompt("the same again: ")? != typed {
        return Err(Error::refused("the two passwords differ", "try again"));
    }
    password(typed, "the password")
}

fn prompt(text: &str) -> Result<Vec<u8>> {
    let somebody_there = io::stdin().is_terminal() || io::stderr().is_terminal();
    if !somebody_there || File::open("/dev/tty").is_err() {
        return Err(Error::refused(
            "no password or key was given, and there is no terminal to ask on",
            "use --password-file, --password-command, --key-file, or the variable SNAPSHOT_PASSWORD",
        ));
    }
    match rpassword::prompt_password(text) {
        Ok(typed) => Ok(typed.into_bytes()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(Error::Interrupted),
        Err(e) => Err(Error::file("read the password from", "/dev/tty", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(secret: Result<Secret>) -> Vec<u8> {
        match secret.unwrap().unlock {
            Unlock::Password(text) => text,
            _ => panic!(),
        }
    }

    #[test]
    fn options_go_before_variables_and_keys_before_passwords() {
        let env =
            Env::fixed(&[("SNAPSHOT_PASSWORD", "p"), ("SNAPSHOT_KEY_FILE", "/k"), ("SNAPSHOT_PASSWORD_FILE", "")]);
        assert_eq!(given(&Global::default(), &env), Some(Given::KeyFile("/k".into())));
        let global = Global { password_command: Some("c".into()), ..Global::default() };
        assert_eq!(given(&global, &env), Some(Given::PasswordCommand("c".into())));
        let empty = given(&Global::default(), &Env::fixed(&[("SNAPSHOT_PASSWORD", "")])).unwrap();
        assert!(empty.read().is_err());
        assert_eq!(given(&Global::default(), &Env::fixed(&[])), None);
    }

    #[test]
    fn the_first_line_is_the_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [("pass word \nrest\n", "pass word "), ("p", "p"), ("p\r\n", "p")] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(bytes(Given::PasswordFile(file.path().into()).read()), expected.as_bytes());
        }
        std::fs::write(file.path(), "\nsecond").unwrap();
        assert!(password_file(file.path()).is_err());
        assert_eq!(bytes(Given::PasswordCommand("echo a; echo b".into()).read()), b"a");
        for bad in ["true", "echo a; exit 3"] {
            assert_eq!(Given::PasswordCommand(bad.into()).read().err().unwrap().status(), 1, "{bad}");
        }
    }
}
