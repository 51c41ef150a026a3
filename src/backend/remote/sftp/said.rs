//! What `ssh` and the server's SFTP say when something fails, and what the user can do about it.

use std::io;

use openssh_sftp_client::error::{Error as SftpError, SftpErrorKind};

use super::super::failure::{Failure, Remedy};
use crate::backend::remote::SftpPlace;

/// Why `ssh` can't be started.
pub(super) fn not_started(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        return Failure::hopeless(
            "the program ssh is not on this machine",
            "install it (on Debian: apt install openssh-client), or give another with SNAPSHOT_SSH_COMMAND",
        );
    }
    Failure::hopeless(format!("ssh can't be started: {error}"), "check SNAPSHOT_SSH_COMMAND")
}

/// Why `ssh` ended without a connection, from what it wrote.
pub(super) fn not_connected(words: &str, place: &SftpPlace) -> Failure {
    let has = |text: &str| words.contains(text);
    let server = place.server();
    let line = last_line(words);
    let port = place.port.map(|port| format!("-p {port} ")).unwrap_or_default();
    if has("IDENTIFICATION HAS CHANGED") || has("Offending ") {
        return Failure::hopeless(
            format!("the server has another key than the one known of it: {line}"),
            format!(
                "somebody may be in between; if the server was set up anew, `ssh-keygen -R {}` forgets the old key",
                known(place)
            ),
        );
    }
    if has("Host key verification failed") || has("host key is known") {
        let user = place.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        return Failure::hopeless(
            "the server's key is not known on this machine",
            format!("run `ssh {port}{user}{}` once, and compare the key that it shows with the server's", place.host),
        );
    }
    if has("Permission denied (") || has("Too many authentication failures") {
        return Failure::hopeless(
            format!("{server} accepts none of your keys: {line}"),
            "check the user in --repo; add your public key to ~/.ssh/authorized_keys there, or load the key into your agent",
        );
    }
    if has("UNPROTECTED PRIVATE KEY") || has("Bad owner or permissions") || has("Bad configuration option") {
        return Failure::hopeless(format!("ssh refuses its own files here: {line}"), "mend what it names");
    }
    if has("subsystem request failed") {
        return Failure::hopeless(
            format!("{server} offers no SFTP: {line}"),
            "add `Subsystem sftp internal-sftp` to its sshd_config, or ask its administrator",
        );
    }
    let contact = |why: &str, hint: &str| Failure::new(Remedy::Contact, format!("{why}: {line}")).or_hint(hint);
    if has("Could not resolve hostname") {
        return contact("the host's name is not known", "check --repo for typing errors, and the network");
    }
    if has("Connection refused") {
        return contact("nothing listens there", "check host and port in --repo, and whether its SSH server runs");
    }
    if has("timed out") || has("No route to host") || has("Network is unreachable") {
        return contact("the server can't be reached", "check the host in --repo, the network, and what filters it");
    }
    if has("Connection closed by") || has("Connection reset by") || has("kex_exchange_identification") {
        // A server that has too many who knock cuts some off.
        return Failure::again(line);
    }
    let why = if line.is_empty() { "ssh ended without a word" } else { line };
    Failure::new(Remedy::Contact, why).or_hint("see whether `sftp` connects to the server, with the same user and port")
}

/// Why a request failed. `words`: what `ssh` wrote, if the connection is lost.
pub(super) fn of_request(error: &SftpError, words: &str) -> Failure {
    let SftpError::SftpError(kind, message) = error else {
        let line = last_line(words);
        let why = if line.is_empty() { innermost(error) } else { line.to_owned() };
        return Failure::again(format!("the connection was lost: {why}"));
    };
    let said = message.get().0;
    match kind {
        SftpErrorKind::NoSuchFile => Failure::new(Remedy::Missing, said),
        SftpErrorKind::PermDenied => Failure::hopeless(
            format!("the server's user may not do that: {said}"),
            "check the owner and the permissions of the directory there; one in the user's home is written sftp://host/~/path",
        ),
        SftpErrorKind::OpUnsupported => {
            Failure::hopeless(format!("the server can't do that: {said}"), "use a server of OpenSSH")
        }
        _ => Failure::hopeless(format!("the server says \"{said}\""), "check its disk, its quotas and its log"),
    }
}

/// Whether a request failed because the connection is lost.
pub(super) fn is_lost(error: &SftpError) -> bool {
    !matches!(error, SftpError::SftpError(..) | SftpError::UnsupportedExtension(_))
}

fn innermost(error: &SftpError) -> String {
    match error {
        SftpError::BackgroundTaskFailure(_) => "the server or the network cut it".into(),
        SftpError::IOError(e) => e.to_string(),
        other => other.to_string(),
    }
}

fn last_line(words: &str) -> &str {
    let said = |line: &&str| !line.is_empty() && !line.starts_with("Connection closed");
    let mut lines = words.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.clone().rfind(said).or_else(|| lines.next_back()).unwrap_or_default()
}

/// What a server is called in `known_hosts`.
fn known(place: &SftpPlace) -> String {
    match place.port {
        Some(port) if port != 22 => format!("'[{}]:{port}'", place.host),
        _ => place.host.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> SftpPlace {
        SftpPlace { user: Some("u".into()), host: "h".into(), port: Some(2222), path: "/b".into() }
    }

    #[test]
    fn each_cause_has_its_remedy() {
        for (words, remedy, hint) in [
            ("ssh: connect to host h port 2222: Connection refused\r\n", Remedy::Contact, "host and port"),
            ("ssh: Could not resolve hostname h: Name or service not known", Remedy::Contact, "typing errors"),
            ("ssh: connect to host h port 2222: Connection timed out", Remedy::Contact, "network"),
            (
                "No ED25519 host key is known for [h]:2222 and you have requested strict checking.\nHost key verification failed.",
                Remedy::Hint,
                "ssh -p 2222 u@h",
            ),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ED25519 key in /k:1\nHost key verification failed.",
                Remedy::Hint,
                "ssh-keygen -R '[h]:2222'",
            ),
            ("u@h: Permission denied (publickey).", Remedy::Hint, "authorized_keys"),
            ("subsystem request failed on channel 0", Remedy::Hint, "Subsystem sftp"),
            (
                "kex_exchange_identification: Connection closed by remote host\nConnection closed by 127.0.0.1 port 22",
                Remedy::Again,
                "",
            ),
            ("", Remedy::Contact, "sftp"),
        ] {
            let failure = not_connected(words, &place());
            assert_eq!(failure.remedy, remedy, "{words}");
            assert!(failure.hint.unwrap_or_default().contains(hint), "{words}");
        }
        let cut = not_connected("kex_exchange_identification: read: reset\nConnection closed by 127.0.0.1", &place());
        assert_eq!(cut.why, "kex_exchange_identification: read: reset");
    }
}
