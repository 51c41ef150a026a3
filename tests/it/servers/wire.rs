//! A proxy of connections: what stands before sshd. It can be slow, cut a connection after so many bytes, and be away.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes passed on at a time.
const PIECE_BYTES: usize = 16 << 10;

/// A speed that several threads share.
#[derive(Default)]
pub struct Pace {
    /// 0: as fast as it goes.
    bytes_per_second: AtomicU64,
    /// When all that was passed on will have got through.
    busy_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// Sets the speed; 0 is without limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Waits as long as these bytes take.
    pub fn pass(&self, bytes: usize) {
        let speed = self.bytes_per_second.load(Ordering::SeqCst);
        if speed == 0 {
            return;
        }
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let through = busy_until.unwrap_or(now).max(now) + Duration::from_secs_f64(bytes as f64 / speed as f64);
        *busy_until = Some(through);
        drop(busy_until);
        thread::sleep(through - now);
    }
}

/// What a proxy of connections does, and has done.
#[derive(Default)]
struct State {
    pace: Pace,
    /// Bytes that went either way.
    passed: AtomicU64,
    /// At so many, all connections are cut, once; 0: never.
    cut_at: AtomicU64,
    is_away: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// A proxy of connections. It ends with the test's process.
pub struct Wire {
    port: u16,
    state: Arc<State>,
}

impl Wire {
    /// Passes on to this port of the loopback.
    pub fn to(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                shared.connect(client, SocketAddr::from(([127, 0, 0, 1], upstream)));
            }
        });
        Self { port, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes passed on so far, both ways together.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }

    /// Passes on so many bytes a second, of both ways together; 0: all.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.state.pace.set(bytes_per_second);
    }

    /// Cuts all connections, once, when so many more bytes have been passed on.
    pub fn cut_after(&self, bytes: u64) {
        self.state.cut_at.store(self.passed() + bytes.max(1), Ordering::SeqCst);
    }

    /// Cuts all connections and lets none through, or does again.
    pub fn set_away(&self, is_away: bool) {
        self.state.is_away.store(is_away, Ordering::SeqCst);
        if is_away {
            self.state.cut();
        }
    }
}

impl State {
    fn connect(self: &Arc<Self>, client: TcpStream, upstream: SocketAddr) {
        if self.is_away.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(upstream) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let ways = [(&client, &server), (&server, &client)].map(|(from, to)| (copy(from), copy(to)));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
        for (from, to) in ways {
            let state = self.clone();
            thread::spawn(move || state.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(len @ 1..) = from.read(&mut piece) {
            self.pace.pass(len);
            let before = self.passed.fetch_add(len as u64, Ordering::SeqCst);
            let cut_at = self.cut_at.load(Ordering::SeqCst);
            if cut_at != 0 && before + len as u64 >= cut_at && self.cut_at.swap(0, Ordering::SeqCst) != 0 {
                // What was on its way until then arrives.
                let _ = to.write_all(&piece[..usize::try_from(cut_at.saturating_sub(before)).unwrap().min(len)]);
                return self.cut();
            }
            if to.write_all(&piece[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().unwrap()
}
