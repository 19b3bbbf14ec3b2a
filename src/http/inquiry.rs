//! One administrator's request at a time, between hyper, which waits, and the owner of the connection, who answers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use crate::admin::{Answer, Request};

/// Both ends of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Inquiry(Rc<RefCell<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Nothing,
    Asked(Request),
    Waiting,
    Answered(Answer),
}

impl Inquiry {
    /// Asks and waits. Who answers also polls, so nobody needs to be woken.
    pub(super) async fn ask(&self, request: Request) -> Answer {
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

    pub(super) fn answer(&self, answer: Answer) {
        let waited = self.0.replace(State::Answered(answer));
        debug_assert!(matches!(waited, State::Waiting), "answered without being asked");
    }
}
