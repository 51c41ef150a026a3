//! Messages of HTTP/1.1, as far as a proxy before an S3 server needs them.

use std::io::{self, BufRead, Read, Write};

/// The first lines of a request or an answer, as they came.
pub struct Head {
    /// The request line or status line.
    pub first: String,
    /// The header lines.
    pub lines: Vec<String>,
}

impl Head {
    /// Reads one; `None` at the end of the connection.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" if lines.is_empty() => {}
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        Ok(Some(Self { first: lines.remove(0), lines }))
    }

    /// The value of a header.
    pub fn value(&self, name: &str) -> Option<&str> {
        let lines = self.lines.iter().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Puts a header in place of what there is.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.lines.retain(|line| !line.split(':').next().unwrap().eq_ignore_ascii_case(name));
        self.lines.push(format!("{name}: {}", value.to_string()));
    }

    /// The length of the body, if it is said.
    pub fn length(&self) -> Option<usize> {
        self.value("content-length").map(|text| text.parse().unwrap())
    }

    /// Writes it.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let lines = std::iter::once(&self.first).chain(&self.lines);
        let text: String = lines.map(|line| format!("{line}\r\n")).chain(["\r\n".to_owned()]).collect();
        to.write_all(text.as_bytes())
    }
}

/// A whole answer. Its body is in one piece, whatever way it came.
pub struct Answer {
    /// What comes before the body.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// One of the proxy's own, as S3 words its errors.
    pub fn error(status: u16, code: &str) -> Self {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code></Error>");
        let lines = vec!["Content-Type: application/xml".to_owned(), format!("Content-Length: {}", body.len())];
        Self { head: Head { first: format!("HTTP/1.1 {status} {code}"), lines }, body: body.into_bytes() }
    }

    /// Reads the answer to a request of this method.
    pub fn read(from: &mut impl BufRead, method: &str) -> io::Result<Self> {
        let mut head = Head::read(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut body = Vec::new();
        let has_none = method == "HEAD" || head.first.contains(" 204 ") || head.first.contains(" 304 ");
        if has_none {
        } else if head.value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            read_chunks(from, &mut body)?;
            head.lines.retain(|line| !line.to_ascii_lowercase().starts_with("transfer-encoding:"));
            head.set("Content-Length", body.len());
        } else if let Some(len) = head.length() {
            body.resize(len, 0);
            from.read_exact(&mut body)?;
        } else {
            from.read_to_end(&mut body)?;
            head.set("Content-Length", body.len());
        }
        Ok(Self { head, body })
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.head.first.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let len = u64::from_str_radix(line.trim().split(';').next().unwrap(), 16).map_err(io::Error::other)?;
        from.take(len).read_to_end(body)?;
        from.read_line(&mut line)?;
        if len == 0 {
            return Ok(());
        }
    }
}
