//! Waiting for a descriptor inside glommio: how a shard parks, and how it lets the executor look
//! around.
//!
//! glommio has no public way to wait for a descriptor that is not a socket of its own. But its
//! streams first arm a poll in its reactor and then try `recv`. A stream made from any pollable
//! descriptor pends until that is readable. Then `recv` fails with `ENOTSOCK`, which therefore
//! means *ready*. `tests/quirks.rs` pins this.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::io::AsyncRead;
use glommio::net::UnixStream;

use super::sys;

/// Awaits, inside a glommio executor, that a pollable descriptor is readable. Owned by one task of
/// one executor.
///
/// Not for descriptors of sockets that other code receives from: it makes one `recv` of no bytes on
/// them.
pub struct FdReady {
    /// A duplicate, so that no other code's `close` can reuse the number under the executor's poll.
    /// Made once and not per wait, as a process out of descriptors must be able to park.
    fd: ManuallyDrop<OwnedFd>,
    /// The stream whose poll is armed. It believes to own `fd`, so it is never dropped as it is.
    armed: Option<ManuallyDrop<UnixStream>>,
}

impl FdReady {
    /// Prepares to wait for `fd`, which may be closed afterwards: a duplicate is kept.
    ///
    /// # Errors
    /// `fd` is not open, or the process is out of descriptors.
    pub fn new(fd: RawFd) -> io::Result<Self> {
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: the number is only used for the duplication, which fails if it is not open
        // (`parks_until_readable` would break).
        let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        Ok(FdReady {
            fd: ManuallyDrop::new(fd),
            armed: None,
        })
    }

    /// Ready once the descriptor is readable. After that the next call arms a new wait.
    ///
    /// Always passes through the executor's reactor, so the first call after a `Ready` is `Pending`
    /// even if the descriptor is readable.
    ///
    /// # Panics
    /// Outside a glommio executor.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let fd = self.fd.as_raw_fd();
        let stream = self.armed.get_or_insert_with(|| {
            // SAFETY: `fd` is open as long as `self`. The second owner that this makes never closes
            // it: `poll_ready` forgets it, `drop` makes it the only owner
            // (`parking_keeps_the_descriptor` would break).
            ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(fd) })
        });
        // No bytes: should it be a socket after all, nothing is taken from it.
        match Pin::new(&mut **stream).poll_read(cx, &mut []) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                // Its poll is over and its source gone, so all that is forgotten is a weak count of
                // the reactor.
                self.armed = None;
                Poll::Ready(())
            }
        }
    }

    /// Awaits that the descriptor is readable.
    pub async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

impl Drop for FdReady {
    fn drop(&mut self) {
        // SAFETY: `self.fd` is not used after this (`parking_keeps_the_descriptor` would break).
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if let Some(stream) = self.armed.take() {
            // Dropping the stream takes its poll back, and closes the descriptor; so that is left
            // to it.
            let _ = fd.into_raw_fd();
            drop(ManuallyDrop::into_inner(stream));
        }
    }
}

/// Lets the executor look at its reactor: foreign wakes, timers and other tasks get their turn.
///
/// Waking oneself is not enough, as glommio then runs the task again without a look at its reactor.
/// This awaits a descriptor that is always readable, so it completes with the reactor's next pass.
/// Owned by one task of one executor.
pub struct RingYield {
    ready: FdReady,
}

impl RingYield {
    /// Makes the descriptor.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let always: File = sys::eventfd(1)?;
        Ok(RingYield {
            ready: FdReady::new(always.as_raw_fd())?,
        })
    }

    /// Ready after one pass of the reactor.
    pub fn poll_yield(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ready.poll_ready(cx)
    }

    /// Awaits one pass of the reactor.
    pub async fn pass(&mut self) {
        self.ready.ready().await;
    }
}
