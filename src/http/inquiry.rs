//! One administrator's request at a time, between hyper, which waits, and the owner of the
//! connection, who answers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use crate::admin::{AdminReply, Request};

/// Both ends of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Inquiry(Rc<RefCell<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Nothing,
    Asked(Request),
    Waiting,
    Answered(AdminReply),
}

impl Inquiry {
    /// Passes a request on and waits for its answer. The owner that answers also polls, so no waker
    /// is needed.
    pub(super) async fn ask(&self, request: Request) -> AdminReply {
        *self.0.borrow_mut() = State::Asked(request);
        poll_fn(|_| match self.0.take() {
            State::Answered(answer) => Poll::Ready(answer),
            state => {
                *self.0.borrow_mut() = state;
                Poll::Pending
            }
        })
        .await
    }

    pub(super) fn take(&self) -> Option<Request> {
        match self.0.replace(State::Waiting) {
            State::Asked(request) => Some(request),
            state => {
                *self.0.borrow_mut() = state;
                None
            }
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(*self.0.borrow(), State::Asked(_) | State::Waiting)
    }

    pub(super) fn answer(&self, answer: AdminReply) {
        let waited = self.0.replace(State::Answered(answer));
        debug_assert!(matches!(waited, State::Waiting), "answered without being asked");
    }
}
