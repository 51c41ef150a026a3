//! A proxy of requests: what stands before an S3 server. A test decides for each request what becomes of it.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::message::{Answer, Head};
use super::wire::Pace;

/// Bytes passed on at a time.
const PIECE_BYTES: usize = 16 << 10;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Counted from 0 since the fate was last set.
    pub number: u64,
    /// GET, PUT, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Length of its body.
    pub bytes: usize,
}

impl Request {
    /// The object's path below bucket and prefix, if they are `folders` deep.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// Whether it lists.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=2")
    }

    /// Whether it deletes, one or many.
    pub fn is_delete(&self) -> bool {
        self.method == "DELETE" || (self.method == "POST" && self.target.contains("?delete"))
    }

    /// Whether it writes an object.
    pub fn is_put(&self) -> bool {
        self.method == "PUT"
    }

    /// Whether it reads an object.
    pub fn is_get(&self) -> bool {
        self.method == "GET" && !self.is_list()
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is passed on, and its answer back.
    Good,
    /// The connection ends before anything is passed on.
    Unheard,
    /// It is passed on, and the connection ends without an answer.
    Unanswered,
    /// Half of its body is passed on, and both connections end.
    HalfSent,
    /// Half of the answer's body comes, and the connection ends.
    HalfAnswered,
    /// Half of the answer's body comes as if it were all.
    ShortAnswer,
    /// A byte in the middle of the answer's body is another.
    WrongAnswer,
    /// This status and code, of the proxy's own.
    Error(u16, &'static str),
    /// The first answer there was to the same request, or a new one.
    Stale,
}

type Decide = dyn Fn(&Request) -> Fate + Send + Sync;

struct State {
    upstream: u16,
    decide: Mutex<Arc<Decide>>,
    number: AtomicU64,
    seen: Mutex<Vec<Request>>,
    /// The first answer to each listing.
    first_lists: Mutex<HashMap<String, (Vec<String>, Vec<u8>)>>,
    up: Pace,
    down: Pace,
}

/// A proxy of requests. It ends with the test's process.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Passes on to this port of the loopback.
    pub fn to(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            upstream,
            decide: Mutex::new(Arc::new(|_: &Request| Fate::Good)),
            number: AtomicU64::new(0),
            seen: Mutex::default(),
            first_lists: Mutex::default(),
            up: Pace::default(),
            down: Pace::default(),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || state.serve(&client));
            }
        });
        Self { port, state }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Decides so from now on. Requests are counted anew.
    pub fn set_fate(&self, decide: impl Fn(&Request) -> Fate + Send + Sync + 'static) {
        *lock(&self.state.decide) = Arc::new(decide);
        self.state.number.store(0, Ordering::SeqCst);
        lock(&self.state.seen).clear();
    }

    /// Passes on everything from now on.
    pub fn be_good(&self) {
        self.set_fate(|_| Fate::Good);
    }

    /// The requests that came since the fate was last set.
    pub fn seen(&self) -> Vec<Request> {
        lock(&self.state.seen).clone()
    }

    /// Passes on so many bytes a second of bodies, to the server and from it; 0: all.
    pub fn set_pace(&self, up: u64, down: u64) {
        self.state.up.set(up);
        self.state.down.set(down);
    }

    /// Forgets the listings that it could repeat.
    pub fn forget_lists(&self) {
        lock(&self.state.first_lists).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn serve(&self, client: &TcpStream) {
        // Whatever goes wrong here ends the connection, which is what the client sees of it.
        let _ = TcpStream::connect(("127.0.0.1", self.upstream)).and_then(|server| {
            server.set_nodelay(true)?;
            client.set_nodelay(true)?;
            let ended = self.exchange(client, &server);
            let _ = server.shutdown(Shutdown::Both);
            ended
        });
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Requests and answers of one connection, one after the other, until one of them ends it.
    fn exchange(&self, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
        let (mut requests, mut answers) = (BufReader::new(client), BufReader::new(server));
        while let Some(head) = Head::read(&mut requests)? {
            let request = self.note(&head);
            let fate = (lock(&self.decide).clone())(&request);
            let mut to_client = client;
            match fate {
                Fate::Unheard => break,
                Fate::Error(status, code) => {
                    io::copy(&mut (&mut requests).take(request.bytes as u64), &mut io::sink())?;
                    let answer = Answer::error(status, code);
                    answer.head.write(&mut to_client)?;
                    to_client.write_all(&answer.body)?;
                    continue;
                }
                _ => {}
            }
            let sent = if fate == Fate::HalfSent { request.bytes / 2 } else { request.bytes };
            head.write(&mut &*server)?;
            copy_paced(&mut requests, &mut &*server, sent, &self.up)?;
            if fate == Fate::HalfSent {
                break;
            }
            let answer = Answer::read(&mut answers, &request.method)?;
            if fate == Fate::Unanswered || !self.reply(&mut to_client, &request, fate, answer)? {
                break;
            }
        }
        Ok(())
    }

    fn note(&self, head: &Head) -> Request {
        let mut words = head.first.split(' ').map(str::to_owned);
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let bytes = head.length().unwrap_or_default();
        let request = Request { number, method: words.next().unwrap(), target: words.next().unwrap(), bytes };
        lock(&self.seen).push(request.clone());
        request
    }

    /// Gives the answer, or what the fate makes of it; `false` if that ends the connection.
    fn reply(&self, client: &mut &TcpStream, request: &Request, fate: Fate, mut answer: Answer) -> io::Result<bool> {
        if request.is_list() && answer.status() == 200 {
            let mut first = lock(&self.first_lists);
            let first = first.entry(request.target.clone());
            let first = first.or_insert_with(|| (answer.head.lines.clone(), answer.body.clone()));
            if fate == Fate::Stale {
                (answer.head.lines, answer.body) = first.clone();
            }
        }
        let middle = answer.body.len() / 2;
        match fate {
            Fate::ShortAnswer if middle > 0 => {
                answer.body.truncate(middle);
                answer.head.set("Content-Length", middle);
            }
            Fate::WrongAnswer if middle > 0 => answer.body[middle] ^= 0x20,
            _ => {}
        }
        answer.head.write(client)?;
        let is_half = fate == Fate::HalfAnswered && middle > 0;
        let given = if is_half { middle } else { answer.body.len() };
        copy_paced(&mut &answer.body[..given], client, given, &self.down)?;
        Ok(!is_half)
    }
}

fn copy_paced(from: &mut impl Read, to: &mut impl Write, mut bytes: usize, pace: &Pace) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    while bytes > 0 {
        let len = from.read(&mut piece[..bytes.min(PIECE_BYTES)])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pace.pass(len);
        to.write_all(&piece[..len])?;
        bytes -= len;
    }
    Ok(())
}
