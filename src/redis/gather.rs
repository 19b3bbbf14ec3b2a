//! Answers of one request as they come in from several servers, until all are there.
//!
//! Owned by the request's items together. When the last of them is gone, the request is answered;
//! an item that got lost on the way, whatever the reason, counts as failed. So every request is
//! answered exactly once.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::commands::{Step, failed};
use super::signal::{NodeId, Signal};
use crate::cluster::store::{Answer, FailureKind, Op, Request, StoreEvent};

/// Where the answers of one request meet.
#[derive(Debug)]
struct Gather {
    ticket: u64,
    answers: RefCell<Vec<Option<Answer>>>,
    signals: UnboundedSender<Signal>,
}

impl Drop for Gather {
    fn drop(&mut self) {
        let answers = self.answers.take().into_iter();
        let answers = answers.map(|answer| {
            answer.unwrap_or_else(|| failed(FailureKind::Unavailable, "the connection to Redis was given up"))
        });
        // If the receiver is gone, no caller waits for the answer.
        let _ = self.signals.send(Signal::Event(StoreEvent::Answered {
            ticket: self.ticket,
            answers: answers.collect(),
        }));
    }
}

/// One operation of a request on its way.
#[derive(Debug)]
pub(super) struct Item {
    /// The step to carry out.
    pub(super) step: Step,
    /// Its slot; 0 where there are none.
    pub(super) slot: u16,
    /// How often it was sent to another server or once more.
    pub(super) tries: u8,
    /// Goes to that node whoever owns its slot: a server redirected it there with ASKING.
    pub(super) asking: Option<NodeId>,
    /// When it fails, wherever it is.
    pub(super) deadline: Instant,
    gather: Rc<Gather>,
    at: usize,
}

impl Item {
    /// This is its answer.
    pub(super) fn answer(self, answer: Answer) {
        if let Some(entry) = self.gather.answers.borrow_mut().get_mut(self.at) {
            *entry = Some(answer);
        }
    }

    /// It was not carried out, or that is unknown.
    pub(super) fn unavailable(self, text: &str) {
        self.answer(failed(FailureKind::Unavailable, text));
    }

    /// A publish is never sent twice: the second could come after a later one.
    pub(super) fn may_be_repeated(&self) -> bool {
        !matches!(self.step, Step::Op(Op::Publish { .. }))
    }
}

/// Takes a request apart.
pub(super) fn items(request: Request, deadline: Instant, signals: &UnboundedSender<Signal>) -> Vec<Item> {
    let gather = Rc::new(Gather {
        ticket: request.ticket,
        answers: RefCell::new(vec![None; request.ops.len()]),
        signals: signals.clone(),
    });
    let item = |(at, op)| Item {
        step: Step::Op(op),
        slot: 0,
        tries: 0,
        asking: None,
        deadline,
        gather: gather.clone(),
        at,
    };
    request.ops.into_iter().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_request_is_answered_once_when_its_last_item_is_gone_and_a_lost_one_counts_as_failed() {
        let (signals, mut received) = unbounded_channel();
        let ops = vec![Op::ReadDirectory, Op::ReadDirectory, Op::ReadDirectory];
        let mut made = items(Request { ticket: 3, ops }, Instant::now(), &signals);
        made.remove(2).answer(Answer::Done);
        made.remove(0).unavailable("gone");
        assert!(received.try_recv().is_err());
        drop(made);
        let Ok(Signal::Event(StoreEvent::Answered { ticket: 3, answers })) = received.try_recv() else {
            panic!("no answer")
        };
        let kinds: Vec<bool> = answers
            .iter()
            .map(|answer| matches!(answer, Answer::Failed(_)))
            .collect();
        assert_eq!(kinds, [true, true, false]);
        assert!(received.try_recv().is_err());
    }
}
