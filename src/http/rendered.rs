//! Documents that are rendered for everybody, and bodies of answers made of them.
//!
//! Rendering takes milliseconds with many shards, and a turn has no milliseconds. So a document is
//! rendered slice by slice: each time that a connection which waits for it has its turn, another
//! slice. One thread at a time renders one document.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::pipe::Pipe;
use crate::metrics::{self, Exposition};
use crate::shared::{Now, Reading, Rendering, Renderings, Shared, SharedAt};

/// A document that is rendered for everybody.
pub(super) struct Document {
    /// Where its renderings are.
    pub(super) renderings: fn(&Shared) -> &Renderings,
    /// Renders it, and pauses after each slice.
    pub(super) render: for<'a> fn(&'a SharedAt, &'a mut Exposition) -> Steps<'a>,
}

/// Rendering, slice by slice.
type Steps<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A rendering under way; `None` once it is done.
#[derive(Default)]
struct Job(RefCell<Option<Steps<'static>>>);

impl Job {
    /// Renders another slice. True when there is nothing more to do.
    fn go_on(&self) -> bool {
        let mut job = self.0.borrow_mut();
        let mut context = Context::from_waker(Waker::noop());
        if job
            .as_mut()
            .is_some_and(|job| job.as_mut().poll(&mut context).is_pending())
        {
            return false;
        }
        *job = None;
        true
    }
}

/// A thread's present rendering of one document. It lasts as long as some connection waits for it.
#[derive(Default)]
pub(super) struct Workshop(RefCell<Weak<Job>>);

impl std::fmt::Debug for Workshop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workshop").finish_non_exhaustive()
    }
}

impl Document {
    /// The document as it was at most [`crate::shared::RENDER_INTERVAL_MS`] before this call. All
    /// that wait for it on this thread render together, each a slice when it has its turn.
    pub(super) async fn get(
        &'static self,
        (shared, now): (&Arc<Shared>, &Rc<Cell<Now>>),
        workshop: &Workshop,
        pipe: &Pipe,
    ) -> Arc<Rendering> {
        let asked_ms = now.get().mono_ms();
        let mut job = None;
        loop {
            if let Some(rendering) = (self.renderings)(shared).for_request(asked_ms) {
                return rendering;
            }
            if job.get_or_insert_with(|| self.join((shared, now), workshop)).go_on() {
                job = None;
            } else {
                pipe.pause().await;
            }
        }
    }

    /// The rendering under way on this thread, or a new one.
    fn join(&'static self, (shared, now): (&Arc<Shared>, &Rc<Cell<Now>>), workshop: &Workshop) -> Rc<Job> {
        let mut under_way = workshop.0.borrow_mut();
        if let Some(job) = under_way.upgrade().filter(|job| job.0.borrow().is_some()) {
            return job;
        }
        let (shared, now) = (Arc::clone(shared), Rc::clone(now));
        let job = Rc::new(Job(RefCell::new(Some(Box::pin(async move {
            self.work(shared, &now).await
        })))));
        *under_way = Rc::downgrade(&job);
        job
    }

    /// Waits for the right to render, and renders.
    async fn work(&self, shared: Arc<Shared>, now: &Cell<Now>) {
        let renderings = (self.renderings)(&shared);
        let asked_ms = now.get().mono_ms();
        while renderings.for_request(asked_ms).is_none() {
            let Some(claim) = renderings.claim(now.get()) else {
                // Another thread is at it.
                metrics::pause().await;
                continue;
            };
            let mut exposition = Exposition::default();
            let at = SharedAt {
                shared: Arc::clone(&shared),
                now: now.get(),
            };
            (self.render)(&at, &mut exposition).await;
            return claim.publish(exposition.into_pieces());
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Content {
    /// Pieces of memory, this answer's own or the program's.
    Own(VecDeque<Bytes>),
    /// The shared rendering from this piece on; so many bytes are left.
    Shared {
        /// It does not keep the rendering alive: a client that does not read holds two pieces of it
        /// and not the whole.
        reading: Reading,
        next: usize,
        bytes_left: u64,
    },
}

/// The rendering that an answer is made of is not kept any more: its reader was too slow.
#[derive(Debug, thiserror::Error)]
#[error("the answer was read too slowly")]
pub(super) struct TooSlow;

impl Content {
    pub(super) fn shared(rendering: &Arc<Rendering>) -> Self {
        Content::Shared {
            reading: Arc::downgrade(rendering),
            next: 0,
            bytes_left: rendering.bytes(),
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = TooSlow;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TooSlow>>> {
        Poll::Ready(match &mut *self {
            Content::Own(pieces) => pieces.pop_front().map(|piece| Ok(Frame::data(piece))),
            Content::Shared { bytes_left: 0, .. } => None,
            Content::Shared {
                reading,
                next,
                bytes_left,
            } => match reading
                .upgrade()
                .and_then(|rendering| rendering.pieces.get(*next).cloned())
            {
                Some(piece) => {
                    *next += 1;
                    *bytes_left -= piece.len() as u64;
                    Some(Ok(Frame::data(piece)))
                }
                None => Some(Err(TooSlow)),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Content::Own(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Content::Shared { bytes_left, .. } => *bytes_left,
        })
    }
}
