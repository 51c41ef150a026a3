//! Connection URLs as libpq takes them: `postgresql://user:password@host:port/database?option=value`.
//!
//! The password is taken out; what is left can be shown and handed on.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

/// How a URL begins.
const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];
/// libpq's default.
const PORT: &str = "5432";

/// Where a database is, and who asks for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// As written, with percent signs.
    user: Option<String>,
    password: Option<Vec<u8>>,
    /// As written: hosts with ports, separated by commas.
    hosts: String,
    /// Decoded.
    database: Option<Vec<u8>>,
    /// As written.
    options: Vec<(String, String)>,
}

/// Without the password.
impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_uri(self.database.as_deref()))
    }
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// What is wrong with it, without any of it that may be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or("it is no URL of a database: write it like postgresql://user@host/database")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, path)| (a, Some(path)));
        let (credentials, hosts) = authority.split_once('@').map_or((None, authority), |(c, hosts)| (Some(c), hosts));
        let (user, password) = match credentials.map(|c| c.split_once(':').map_or((c, None), |(u, p)| (u, Some(p)))) {
            None => (None, None),
            Some((user, password)) => ((!user.is_empty()).then(|| user.to_owned()), password),
        };
        let mut url = Self {
            user,
            password: password.filter(|p| !p.is_empty()).map(decode).transpose()?,
            hosts: hosts.to_owned(),
            database: path.filter(|path| !path.is_empty()).map(decode).transpose()?,
            options: Vec::new(),
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or("an option in it has no value")?;
            match name {
                "password" => url.password = Some(decode(value)?),
                "dbname" => url.database = Some(decode(value)?),
                "sslpassword" => return Err("it has an sslpassword, which others could see: use a service file".into()),
                _ => url.options.push((name.to_owned(), value.to_owned())),
            }
        }
        Ok(url)
    }

    /// The database, if one is named.
    pub fn database(&self) -> Option<&[u8]> {
        self.database.as_deref()
    }

    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, name: &[u8]) -> Self {
        Self { database: Some(name.to_vec()), ..self.clone() }
    }

    /// The password, for the environment of a program.
    pub(super) fn password(&self) -> Option<OsString> {
        self.password.clone().map(OsString::from_vec)
    }

    /// A URL without the password, for programs.
    pub fn to_uri(&self, database: Option<&[u8]>) -> String {
        let mut out = String::from(SCHEMES[0]);
        if let Some(user) = &self.user {
            out += &format!("{user}@");
        }
        out += &self.hosts;
        out += "/";
        out += &encode(database.unwrap_or_default());
        for (n, (name, value)) in self.options.iter().enumerate() {
            out += &format!("{}{name}={value}", if n == 0 { '?' } else { '&' });
        }
        out
    }

    /// The server, for people: host and port.
    pub fn server(&self) -> String {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let option = |name| self.options.iter().find(|(n, _)| n == name).and_then(|(_, value)| decode(value).ok());
        let hosts = match option("host").or_else(|| option("hostaddr")) {
            Some(host) if self.hosts.is_empty() || self.hosts.starts_with(':') => text(host) + &self.hosts,
            _ => decode(&self.hosts).map_or_else(|_| self.hosts.clone(), text),
        };
        let hosts = if hosts.is_empty() { "localhost".to_owned() } else { hosts };
        let port = option("port").map(text).filter(|port| port != PORT);
        let hosts = hosts.strip_suffix(&format!(":{PORT}")).unwrap_or(&hosts).to_owned();
        port.map_or(hosts.clone(), |port| format!("{hosts}:{port}"))
    }

    /// Server and database, for people and for the name of a source: no user, no password.
    pub fn label(&self) -> String {
        let database = self.database.as_deref().unwrap_or_default();
        format!("postgres://{}/{}", self.server(), String::from_utf8_lossy(database))
    }
}

/// Percent signs and two hex digits to bytes.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let bad = || "a percent sign in it is not followed by two hex digits, as in %40 for @".to_owned();
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    if out.contains(&0) { Err("it has a zero byte".into()) } else { Ok(out) }
}

fn encode(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn passwords_are_taken_out() {
        for text in [
            "postgresql://ada:s%2Fcret@db:5433/app?sslmode=require",
            "postgres://ada@db:5433/app?password=s%2Fcret&sslmode=require",
            "postgres://ada:other@db:5433/?dbname=app&password=s%2Fcret&sslmode=require",
        ] {
            let url = url(text);
            assert_eq!(url.password().unwrap(), "s/cret", "{text}");
            assert_eq!(url.to_uri(url.database()), "postgresql://ada@db:5433/app?sslmode=require");
            assert_eq!(url.label(), "postgres://db:5433/app");
            assert!(!format!("{url:?}").contains("cret"));
        }
        assert_eq!(url("postgres://ada:@db/app").password(), None);
    }

    #[test]
    fn servers_and_odd_names() {
        for (text, server) in [
            ("postgres:///app", "localhost"),
            ("postgres://db/app", "db"),
            ("postgres://db:5432/app", "db"),
            ("postgres://[::1]:5433/app", "[::1]:5433"),
            ("postgres://%2Ftmp%2Fpg/app", "/tmp/pg"),
            ("postgres:///app?host=/tmp/pg&port=5433", "/tmp/pg:5433"),
            ("postgres://:5433/app?host=/tmp/pg", "/tmp/pg:5433"),
            ("postgres:///app?port=5432", "localhost"),
        ] {
            assert_eq!(url(text).server(), server, "{text}");
        }
        let odd = url("postgres://db").with_database(b"a b/\"c'%\xff");
        assert_eq!(odd.to_uri(odd.database()), "postgresql://db/a%20b%2F%22c%27%25%FF");
        assert_eq!(url(&odd.to_uri(odd.database())).database(), odd.database());
        assert_eq!(url("postgres://db/").database(), None);
        for bad in ["db", "mysql://db/a", "postgres://db/a%2", "postgres://db/a%00", "postgres://db/a?b"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert!(Url::parse("postgres://a:secret%zz@db/a").is_err_and(|why| !why.contains("secret")));
    }
}
