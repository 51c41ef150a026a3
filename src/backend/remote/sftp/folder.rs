//! The names in a folder. A server tells some hundred at a time, and then that there are no more: several requests are under
//! way at once, and share what there is.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::{Stream, StreamExt, stream};
use openssh_sftp_client::error::Error as SftpError;
use openssh_sftp_client::fs::{Dir, DirEntry, ReadDir};

/// Requests for the names in one folder at a time.
const REQUESTS: usize = 4;

/// The names in a folder, in no order.
pub(super) fn entries(dir: &Dir) -> impl Stream<Item = Result<DirEntry, SftpError>> + Unpin + use<> {
    let at_end = Arc::<AtomicBool>::default();
    stream::select_all((0..REQUESTS).map(|_| Names {
        inner: Box::pin(dir.clone().read_dir()),
        is_asked: false,
        at_end: at_end.clone(),
    }))
}

/// What one request after the other tells.
struct Names {
    inner: Pin<Box<ReadDir>>,
    /// Whether a request is under way.
    is_asked: bool,
    /// Whether one of all requests was told that there are no more.
    at_end: Arc<AtomicBool>,
}

impl Stream for Names {
    type Item = Result<DirEntry, SftpError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let was_at_end = self.at_end.load(Ordering::Relaxed);
        match self.inner.poll_next_unpin(cx) {
            // What is asked for after the end was told brings nothing: it need not be waited for.
            Poll::Pending if was_at_end && !self.is_asked => Poll::Ready(None),
            Poll::Pending => {
                self.is_asked = true;
                Poll::Pending
            }
            Poll::Ready(told) => {
                self.is_asked = false;
                self.at_end.fetch_or(told.is_none(), Ordering::Relaxed);
                Poll::Ready(told)
            }
        }
    }
}
