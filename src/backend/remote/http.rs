//! The way of HTTP requests: counted, kept to the bandwidth allowed, ended when nothing moves any more, and their
//! failures put into words.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use opendal::{Buffer, ErrorKind, HttpBody, HttpTransport};
use tokio::time::{Sleep, sleep_until, timeout};

use super::Line;
use super::answers;
use super::failure::{Failure, Remedy};
use super::meter::Kind;
use crate::error::{Error, Result};

/// For how long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(20);
/// For how long nothing may move: what a server needs to store a large object, and the system to send what it holds.
const STALL: Duration = Duration::from_secs(120);
/// For how long sent bytes may stay unconfirmed: the line is dead then.
const UNCONFIRMED: Duration = Duration::from_secs(60);
/// Between signs of life on a quiet connection.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For how long the service that tells machines their credentials may take: most machines have none.
const METADATA: Duration = Duration::from_secs(2);
/// Longest error text that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Which answers are put into words here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// All that are errors, but for what the caller understands.
    S3,
    /// Those that mean the same everywhere.
    Other,
}

/// Sends requests.
pub(super) struct Transport {
    client: reqwest::Client,
    line: Arc<Line>,
    dialect: Dialect,
    /// Host and port of the service; requests elsewhere look for credentials.
    host: String,
    /// How far the server's clock is ahead of ours by its last answer, in seconds.
    ahead: std::sync::atomic::AtomicI64,
}

impl Transport {
    /// A transport to this host. `authorities`: the certificates to trust instead of the system's, as PEM.
    ///
    /// # Errors
    /// [`Error::Refused`] for certificates that can't be read.
    pub fn new(line: Arc<Line>, dialect: Dialect, host: String, authorities: Option<&[u8]>) -> Result<Self> {
        // The first one of the process stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("snapshot/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_user_timeout(UNCONFIRMED)
            .tcp_keepalive(KEEP_ALIVE)
            .tcp_keepalive_interval(KEEP_ALIVE)
            .tcp_keepalive_retries(3);
        if let Some(pem) = authorities {
            let refuse = |why: &str| Error::refused(format!("no certificates are given: {why}"), "check AWS_CA_BUNDLE");
            let trusted = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| refuse(&e.to_string()))?;
            if trusted.is_empty() {
                return Err(refuse("there is none in the file, as PEM"));
            }
            builder = builder.tls_certs_only(trusted);
        }
        let client = builder.build().map_err(|e| {
            Error::refused(format!("TLS can't be used: {}", root_cause(&e)), "install the package ca-certificates")
        })?;
        Ok(Self { client, line, dialect, host, ahead: 0.into() })
    }

    fn is_ours(&self, uri: &Uri) -> bool {
        // A bucket may stand before the service's name.
        uri.authority().is_some_and(|authority| authority.as_str().ends_with(&self.host))
    }

    async fn exchange(&self, request: Request<Buffer>) -> Result<Response<HttpBody>, Failure> {
        let uri = request.uri().clone();
        let is_ours = self.is_ours(&uri);
        let is_head = request.method() == Method::HEAD;
        self.line.meter.request(if is_ours { kind_of(request.method(), &uri) } else { Kind::Other });
        let sent = Arc::new(AtomicU64::new(0));
        let send = self.client.execute(self.prepare(request, sent.clone())?);
        tokio::pin!(send);
        let patience = if is_ours { STALL } else { METADATA };
        let mut response = loop {
            let before = sent.load(Ordering::Relaxed);
            match timeout(patience, &mut send).await {
                Ok(response) => break response.map_err(|e| of_client(&e))?,
                Err(_) if sent.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(stalled()),
            }
        };
        if is_ours {
            self.note_date(&response);
        }
        let status = response.status();
        let mut parts = Response::builder().status(status).extension(uri);
        if let Some(headers) = parts.headers_mut() {
            std::mem::swap(headers, response.headers_mut());
        }
        let refuse = |e: http::Error| Failure::hopeless(e.to_string(), "report this with the service's name");
        let is_plain = self.dialect == Dialect::Other && !is_common(status);
        if status.is_success() || is_plain || !is_ours {
            let length = |h: &http::HeaderMap| h.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
            // An answer to HEAD has the length of what it does not bring.
            let length = parts.headers_ref().and_then(length).filter(|_| !is_head);
            return parts.body(self.body(response, length)).map_err(refuse);
        }
        let text = self.answer(response).await?;
        let ahead = self.ahead.load(Ordering::Relaxed);
        match answers::failure(status, parts.headers_ref(), &text, ahead) {
            Some(failure) => Err(failure),
            None => {
                let length = text.len() as u64;
                let body = stream::once(std::future::ready(Ok(Buffer::from(text))));
                parts.body(HttpBody::new(body, Some(length))).map_err(refuse)
            }
        }
    }

    fn prepare(&self, request: Request<Buffer>, sent: Arc<AtomicU64>) -> Result<reqwest::Request, Failure> {
        let (parts, body) = request.into_parts();
        let bad = |why: String| Failure::hopeless(format!("the address can't be used: {why}"), "check the endpoint");
        let url = reqwest::Url::parse(&parts.uri.to_string()).map_err(|e| bad(e.to_string()))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        if !body.is_empty() {
            let paced = Paced { bytes: body.to_bytes(), line: self.line.clone(), wait: None, sent };
            *request.body_mut() = Some(reqwest::Body::wrap(paced));
        }
        Ok(request)
    }

    /// What comes back, at the rate allowed.
    fn body(&self, response: reqwest::Response, length: Option<u64>) -> HttpBody {
        let line = self.line.clone();
        let chunks = stream::unfold(Some(response), move |response| {
            let line = line.clone();
            async move {
                let mut response = response?;
                match timeout(STALL, response.chunk()).await {
                    Err(_) => Some((Err(carried(stalled())), None)),
                    Ok(Err(e)) => Some((Err(carried(of_client(&e))), None)),
                    Ok(Ok(None)) => None,
                    Ok(Ok(Some(bytes))) => {
                        line.meter.received(bytes.len());
                        line.down.pass(bytes.len()).await;
                        Some((Ok(Buffer::from(bytes)), Some(response)))
                    }
                }
            }
        });
        HttpBody::new(Box::pin(chunks), length)
    }

    /// The text of an answer that is an error.
    async fn answer(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        while text.len() < MAX_ANSWER_BYTES {
            match timeout(STALL, response.chunk()).await {
                Err(_) => return Err(stalled()),
                // The status says enough.
                Ok(Err(_) | Ok(None)) => break,
                Ok(Ok(Some(bytes))) => {
                    self.line.meter.received(bytes.len());
                    text.extend_from_slice(&bytes);
                }
            }
        }
        Ok(text)
    }

    fn note_date(&self, response: &reqwest::Response) {
        let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        if let Some(theirs) = date.and_then(|date| opendal::raw::Timestamp::parse_rfc2822(date).ok()) {
            let ahead = theirs.into_inner().as_second() - crate::clock::now().secs;
            self.ahead.store(ahead, Ordering::Relaxed);
        }
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        self.exchange(request).await.map_err(carried)
    }
}

/// A failure inside an error of OpenDAL; [`super::answers::of_opendal`] takes it out again.
fn carried(failure: Failure) -> opendal::Error {
    opendal::Error::new(ErrorKind::Unexpected, failure.why.clone()).set_source(failure)
}

/// Which kind of request of S3 this is.
fn kind_of(method: &Method, uri: &Uri) -> Kind {
    let query = uri.query().unwrap_or_default();
    let asks = |word: &str| query.split('&').any(|part| part.split('=').next() == Some(word));
    match *method {
        Method::PUT => Kind::Put,
        Method::GET if asks("list-type") || asks("prefix") || asks("delimiter") => Kind::List,
        Method::GET => Kind::Get,
        Method::DELETE => Kind::Delete,
        Method::POST if asks("delete") => Kind::Delete,
        // Google's and Backblaze's way to put, WebDAV's to list.
        Method::POST if uri.path().starts_with("/upload") || uri.path().contains("b2_upload_file") => Kind::Put,
        _ if method.as_str() == "PROPFIND" => Kind::List,
        _ => Kind::Other,
    }
}

fn stalled() -> Failure {
    Failure::again(format!("nothing moved for {} s", STALL.as_secs()))
}

fn of_client(error: &reqwest::Error) -> Failure {
    let why = root_cause(error);
    if why.contains("invalid HTTP") {
        return Failure::new(Remedy::Contact, format!("what answers does not speak HTTP: {why}"))
            .or_hint("check the endpoint: https or http, host and port");
    }
    if !error.is_connect() {
        return Failure::again(format!("the connection was lost: {why}"));
    }
    let lower = why.to_lowercase();
    if lower.contains("certificate") {
        let hint = "check the endpoint; AWS_CA_BUNDLE names a file of certificates to trust instead of the system's";
        return Failure::hopeless(format!("the server's certificate is not to be trusted: {why}"), hint);
    }
    if lower.contains("lookup") || lower.contains("dns") || lower.contains("name or service") {
        let hint = "check the endpoint and the region for typing errors, and the network";
        return Failure::new(Remedy::Contact, format!("the host's name is not known: {why}")).or_hint(hint);
    }
    if error.is_timeout() {
        return Failure::new(Remedy::Contact, format!("no connection was made within {} s", CONNECT.as_secs()))
            .or_hint("check the endpoint, the network, and what filters it");
    }
    if lower.contains("corrupt message") {
        return Failure::new(Remedy::Contact, format!("what answers does not speak TLS: {why}"))
            .or_hint("check the endpoint: https or http, host and port");
    }
    Failure::new(Remedy::Contact, format!("no connection can be made: {why}"))
        .or_hint("check the endpoint, and whether the server runs")
}

/// The innermost error's words.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// A body that is sent slice by slice.
struct Paced {
    bytes: Bytes,
    line: Arc<Line>,
    /// Until the next slice may pass.
    wait: Option<Pin<Box<Sleep>>>,
    /// Bytes that were handed out.
    sent: Arc<AtomicU64>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let slice = this.line.up.slice_bytes().min(this.bytes.len());
        if this.wait.is_none() {
            this.wait = this.line.up.reserve(slice).map(|at| Box::pin(sleep_until(at)));
        }
        if let Some(wait) = &mut this.wait {
            ready!(wait.as_mut().poll(cx));
        }
        this.wait = None;
        let slice = this.bytes.split_to(slice);
        this.line.meter.sent(slice.len());
        this.sent.fetch_add(slice.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// Whether a status is an error that means the same in all services.
fn is_common(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 429 | 500..=599) && status != StatusCode::NOT_IMPLEMENTED
}

/// Whether a status is handled by what made the request: there is none, a condition is not met, nothing in the range.
pub(super) fn is_plain(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        for (method, uri, kind) in [
            (Method::PUT, "http://h/b/p", Kind::Put),
            (Method::GET, "http://h/b/p", Kind::Get),
            (Method::GET, "http://h/b?list-type=2&prefix=p", Kind::List),
            (Method::POST, "http://h/b/?delete", Kind::Delete),
            (Method::DELETE, "http://h/b/p", Kind::Delete),
            (Method::HEAD, "http://h/b/p", Kind::Other),
        ] {
            assert_eq!(kind_of(&method, &uri.parse().unwrap()), kind, "{method} {uri}");
        }
    }
}
