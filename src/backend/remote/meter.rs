//! What a repository on a network costs: requests and bytes, counted where they leave and arrive.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes an object.
    Put,
    /// Reads an object, or a part of it.
    Get,
    /// Lists names; one request for each page.
    List,
    /// Deletes objects: one, or many.
    Delete,
    /// Everything else: opening a connection, looking for credentials.
    Other,
}

/// Requests by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Writing objects.
    pub put: u64,
    /// Reading objects or parts of them.
    pub get: u64,
    /// Pages of lists.
    pub list: u64,
    /// Deleting objects.
    pub delete: u64,
    /// All else.
    pub other: u64,
}

/// What was asked of a store, repeated attempts included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes of bodies sent.
    pub bytes_up: u64,
    /// Bytes of bodies received.
    pub bytes_down: u64,
    /// How many calls were made again after a failure.
    pub retries: u64,
}

impl Usage {
    /// Of two stores.
    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.requests, other.requests);
        let requests = Requests {
            put: a.put + b.put,
            get: a.get + b.get,
            list: a.list + b.list,
            delete: a.delete + b.delete,
            other: a.other + b.other,
        };
        Self {
            requests,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
            retries: self.retries + other.retries,
        }
    }
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Meter {
    requests: [AtomicU64; 5],
    up: AtomicU64,
    down: AtomicU64,
    retries: AtomicU64,
}

impl Meter {
    pub fn request(&self, kind: Kind) {
        if let Some(count) = self.requests.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn sent(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn received(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub fn usage(&self) -> Usage {
        let [put, get, list, delete, other] = std::array::from_fn(|kind| {
            self.requests.get(kind).map_or(0, |count: &AtomicU64| count.load(Ordering::Relaxed))
        });
        Usage {
            requests: Requests { put, get, list, delete, other },
            bytes_up: self.up.load(Ordering::Relaxed),
            bytes_down: self.down.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_count() {
        let meter = Meter::default();
        for (kind, times) in [(Kind::Put, 1), (Kind::Get, 2), (Kind::List, 3), (Kind::Delete, 4), (Kind::Other, 5)] {
            (0..times).for_each(|_| meter.request(kind));
        }
        meter.sent(7);
        meter.received(9);
        meter.retried();
        let requests = Requests { put: 1, get: 2, list: 3, delete: 4, other: 5 };
        assert_eq!(meter.usage(), Usage { requests, bytes_up: 7, bytes_down: 9, retries: 1 });
        let twice = Requests { put: 2, get: 4, list: 6, delete: 8, other: 10 };
        let both = meter.usage().plus(meter.usage());
        assert_eq!(both, Usage { requests: twice, bytes_up: 14, bytes_down: 18, retries: 2 });
    }
}
