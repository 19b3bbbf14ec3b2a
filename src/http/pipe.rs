//! A socket made of two buffers, for hyper.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Bytes of answers that may wait for the socket: beyond that hyper waits, and so do the requests
/// behind.
const OUTPUT_BYTES_MAX: usize = 32 * 1024;

/// Both ends of it: hyper's through the traits, the shard's through the methods.
#[derive(Debug, Clone, Default)]
pub(super) struct Pipe(Rc<RefCell<Buffers>>);

#[derive(Debug, Default)]
struct Buffers {
    input: Vec<u8>,
    read: usize,
    ended: bool,
    output: Vec<u8>,
    /// hyper has more work, or more output than there was room for.
    blocked: bool,
}

impl Pipe {
    pub(super) fn push(&self, bytes: &[u8]) {
        self.0.borrow_mut().input.extend_from_slice(bytes);
    }

    pub(super) fn end(&self) {
        self.0.borrow_mut().ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.borrow().ended
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.0.borrow().blocked
    }

    /// hyper has more to do.
    pub(super) fn block(&self) {
        self.0.borrow_mut().blocked = true;
    }

    /// There is room again: earlier output was sent.
    pub(super) fn unblock(&self) {
        self.0.borrow_mut().blocked = false;
    }

    /// Waits until earlier output was sent. Requests are thus carried out one at a time, when there
    /// is room for the answer.
    pub(super) async fn room(&self) {
        poll_fn(|_| {
            let mut buffers = self.0.borrow_mut();
            buffers.blocked |= !buffers.output.is_empty();
            if buffers.blocked {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await
    }

    /// Yields to other connections until [`Pipe::unblock`].
    pub(super) async fn pause(&self) {
        let mut paused = false;
        poll_fn(|_| {
            let mut buffers = self.0.borrow_mut();
            if paused && !buffers.blocked {
                return Poll::Ready(());
            }
            paused = true;
            buffers.blocked = true;
            Poll::Pending
        })
        .await
    }

    pub(super) fn take_output(&self, out: &mut Vec<u8>) {
        out.append(&mut self.0.borrow_mut().output);
    }

    pub(super) fn take_input(&self, out: &mut Vec<u8>) {
        let mut buffers = self.0.borrow_mut();
        out.extend_from_slice(&buffers.input[buffers.read..]);
        buffers.input = Vec::new();
        buffers.read = 0;
    }
}

impl Read for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut buffers = self.0.borrow_mut();
        let rest = &buffers.input[buffers.read..];
        if rest.is_empty() {
            // The end of the input is a read of nothing.
            return if buffers.ended {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        }
        let taken = rest.len().min(cursor.remaining());
        cursor.put_slice(&rest[..taken]);
        buffers.read += taken;
        if buffers.read == buffers.input.len() {
            buffers.input = Vec::new();
            buffers.read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    /// Where this is offered hyper keeps what it is given; elsewhere it copies all of it into a
    /// buffer of its own.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let mut buffers = self.0.borrow_mut();
        let room = OUTPUT_BYTES_MAX.saturating_sub(buffers.output.len());
        if room == 0 || buffers.blocked {
            buffers.blocked = true;
            return Poll::Pending;
        }
        let before = buffers.output.len();
        for slice in slices {
            let room = OUTPUT_BYTES_MAX - buffers.output.len();
            buffers.output.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        Poll::Ready(Ok(buffers.output.len() - before))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
