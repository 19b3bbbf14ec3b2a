//! Which gateway's presence is cleared: ours when we leave, what is left of our earlier
//! incarnations, or a dead gateway's.
//!
//! Pure; owned by the control thread. One at a time. A dead gateway's is claimed first, so that one
//! gateway does it.

use std::sync::Arc;

use super::store::{Answer, Incarnation, Op, Task};

/// Time between two parts of a sweep: 20,000 users per second, a few per cent of what Redis can do.
const STEP_MS: u64 = 25;
/// How long a claim to sweep lasts.
const SWEEP_CLAIM_MS: u64 = 60_000;

/// The clearing of everything that one gateway wrote: a dead one's, or our own when we leave.
#[derive(Debug)]
struct Sweep {
    target: Incarnation,
    cursor: u64,
    found: bool,
    due_ms: u64,
    asked: bool,
}

impl Sweep {
    /// Begins with the first part of the index.
    fn new(target: Incarnation) -> Self {
        Sweep {
            target,
            cursor: 0,
            found: false,
            due_ms: 0,
            asked: false,
        }
    }

    /// Whose presence it is.
    fn target(&self) -> Incarnation {
        self.target
    }

    /// The next part of the index to read.
    fn poll_scan(&mut self, now_ms: u64) -> Option<Op> {
        if self.asked || now_ms < self.due_ms {
            return None;
        }
        self.asked = true;
        self.due_ms = now_ms + STEP_MS;
        Some(Op::IndexScan {
            owner: self.target,
            cursor: self.cursor,
        })
    }

    /// When the next part may be read.
    fn poll_timeout(&self) -> Option<u64> {
        (!self.asked).then_some(self.due_ms)
    }

    /// A part was read: what to clear. `Err` when nothing is left.
    fn handle_scanned(&mut self, cursor: u64, users: Vec<Arc<str>>) -> Result<Vec<Op>, Swept> {
        self.asked = false;
        self.cursor = cursor;
        let owner = self.target;
        if users.is_empty() {
            if cursor == 0 && !std::mem::take(&mut self.found) {
                return Err(Swept);
            }
            return Ok(Vec::new());
        }
        // Taking members out while scanning may hide others from this pass: there is one more after
        // it.
        self.found = true;
        let mut ops: Vec<Op> = users
            .iter()
            .map(|user| Op::ClearPresence {
                user: Arc::clone(user),
                owner,
            })
            .collect();
        ops.push(Op::IndexRemove { owner, users });
        Ok(ops)
    }
}

/// A sweep is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Swept;

/// Where this gateway stands, as far as sweeping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// It is no member.
    Nothing,
    /// It leaves, and what it has written is not whole yet, or still counts.
    NotYet,
    /// It leaves: its own.
    Own,
    /// It is a member: what others have left.
    Others,
}

/// What to ask of the store.
#[derive(Debug)]
pub(super) enum SweepStep {
    Claim(Incarnation, Op),
    Scan(Op),
}

/// All sweeping. Owned by the control thread.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    sweep: Option<Sweep>,
    dead: Vec<Incarnation>,
    /// A claim is under way: one at a time, as a claim that we do not use keeps others from it.
    claiming: bool,
    /// Our own earlier incarnations.
    past: Vec<Incarnation>,
    /// Our own presence was swept, or cannot be.
    left: bool,
}

/// What came of a part of a sweep.
#[derive(Debug)]
pub(super) enum SweepResult {
    /// The store is in trouble.
    GivenUp,
    /// These are to be carried out.
    Clear(Vec<Op>),
    /// A sweep is through: the gateway is to be taken out of the directory.
    Done(Incarnation),
}

impl Sweeps {
    /// The store can be asked again: what was asked before is asked again.
    pub(super) fn restart(&mut self) {
        self.claiming = false;
        self.sweep = None;
    }

    /// A gateway died, and its presence is to be swept.
    pub(super) fn add_dead(&mut self, target: Incarnation) {
        let running = self.sweep.as_ref().is_some_and(|sweep| sweep.target() == target);
        if !running && !self.dead.contains(&target) {
            self.dead.push(target);
        }
    }

    /// We have another incarnation now: what was written under this one is to be swept.
    pub(super) fn add_past(&mut self, past: Incarnation) {
        self.past.push(past);
    }

    /// True once nothing of us is written any more but the lease, or it cannot be cleared.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    /// What to ask now.
    pub(super) fn poll(&mut self, me: Incarnation, may: May, now_ms: u64) -> Option<SweepStep> {
        let mut claim = None;
        if self.sweep.is_none() {
            claim = self.choose(me, may);
        }
        let scan = self.sweep.as_mut().and_then(|sweep| sweep.poll_scan(now_ms));
        claim.or_else(|| scan.map(SweepStep::Scan))
    }

    fn choose(&mut self, me: Incarnation, may: May) -> Option<SweepStep> {
        match may {
            May::Own if !self.left => self.sweep = Some(Sweep::new(me)),
            May::Others if !self.claiming => {
                if let Some(target) = self.past.pop() {
                    self.sweep = Some(Sweep::new(target));
                } else if let Some(target) = self.dead.pop() {
                    self.claiming = true;
                    let op = Op::Claim {
                        task: Task::Sweep(target),
                        by: me,
                        ttl_ms: SWEEP_CLAIM_MS,
                    };
                    return Some(SweepStep::Claim(target, op));
                }
            }
            May::Own | May::Others | May::NotYet | May::Nothing => {}
        }
        None
    }

    /// A claim was answered. `leaves`: we leave meanwhile.
    pub(super) fn handle_claimed(&mut self, target: Incarnation, taken: bool, leaves: bool) {
        self.claiming = false;
        if taken && self.sweep.is_none() && !leaves {
            log::info!("sweeping the presence of a dead gateway, incarnation {target}");
            self.sweep = Some(Sweep::new(target));
        }
    }

    /// A part of an index was read. `None` if no sweep is under way.
    pub(super) fn handle_scanned(
        &mut self,
        answer: Option<Answer>,
        me: Incarnation,
        leaves: bool,
    ) -> Option<SweepResult> {
        let sweep = self.sweep.as_mut()?;
        let Some(Answer::Users { cursor, users }) = answer else {
            // A dead gateway stays in the directory, and is swept later; we leave without.
            self.sweep = None;
            self.left = leaves;
            return Some(SweepResult::GivenUp);
        };
        Some(match sweep.handle_scanned(cursor, users) {
            Ok(ops) => SweepResult::Clear(ops),
            Err(Swept) => {
                let target = sweep.target();
                self.sweep = None;
                self.left |= target == me;
                SweepResult::Done(target)
            }
        })
    }

    /// When there is something to ask without anything happening before.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.sweep.as_ref().and_then(Sweep::poll_timeout)
    }
}

/// Takes away what dead gateways have written of a user, and was in no index yet when they died.
pub(super) fn clear(user: &Arc<str>, dead: impl Iterator<Item = Incarnation>) -> Vec<Op> {
    dead.map(|owner| Op::ClearPresence {
        user: Arc::clone(user),
        owner,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_ends_after_a_pass_that_found_nothing() {
        let mut sweep = Sweep::new(Incarnation(1));
        assert!(sweep.poll_scan(0).is_some());
        assert!(sweep.poll_scan(1_000).is_none(), "not answered yet");
        let ops = sweep.handle_scanned(0, vec!["a".into(), "b".into()]).unwrap();
        assert_eq!(ops.len(), 3);
        assert!(sweep.poll_scan(1_000).is_some());
        assert_eq!(sweep.handle_scanned(0, vec![]), Ok(vec![]));
        assert!(sweep.poll_scan(2_000).is_some());
        assert_eq!(sweep.handle_scanned(0, vec![]), Err(Swept));
    }
}
