//! Being one of the gateways: the lease, and who may have it.
//!
//! Pure; owned by the control thread.
//!
//! ```text
//! Away ──Redis is there──> Reading ──nobody has it──> Taking ──> Entering ──subscribed──> Member
//!   ^                        │  ^                                   ^
//!   │                        v  │ not yet                           │
//!   │                     Watching ──holder is dead──> Claiming ────┘
//!   └── Redis goes, from anywhere
//! ```
//!
//! Whoever finds the lease taken watches its holder: one that renews it lives. One whose channel
//! nobody hears and that does not renew is dead, and its id is taken over.
//!
//! Rules: a lease that was lost is never taken up again under the same incarnation, as others may
//! have swept what was written under it. A gateway writes its lease only after it has read it as
//! its own.

use std::sync::Arc;

use bytes::Bytes;

use super::packet::{Origin, PacketBuilder};
use super::store::{Answer, Channel, Incarnation, Lease, LeaseState, Op, Task};

/// A holder that nobody hears and that does not renew for this long is dead. A live one that lost
/// its subscription has it back sooner.
const TAKE_OVER_MS: u64 = 1_500;
/// Time between two looks at somebody else's lease.
const WATCH_MS: u64 = 250;
/// How long a claim to a dead gateway's id lasts.
const CLAIM_MS: u64 = 5_000;

/// Times that follow from `presence.ttl`: a dead gateway's lease lasts two thirds of it, and the
/// others need up to a ninth to see that it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a lease lasts, milliseconds.
    pub lease_ms: u64,
    /// How often it is renewed, milliseconds.
    pub renew_ms: u64,
    /// How often the directory is read, milliseconds.
    pub directory_ms: u64,
}

impl LeaseTimes {
    /// The times for this `presence.ttl`.
    pub fn new(ttl_ms: u64) -> Self {
        LeaseTimes {
            lease_ms: ttl_ms * 2 / 3,
            renew_ms: ttl_ms / 9,
            directory_ms: (ttl_ms / 9).min(2_000),
        }
    }
}

/// Where a gateway stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Redis is away.
    Away,
    /// The lease is not ours yet.
    Joining,
    /// Somebody else has our id, and lives.
    IdTaken,
    /// The lease is ours; the channels are not heard yet.
    Entering,
    /// One of the gateways.
    Member,
}

impl Standing {
    /// True where the lease is ours.
    pub fn has_lease(self) -> bool {
        matches!(self, Standing::Entering | Standing::Member)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Away,
    Reading,
    Taking,
    Watching { challenged: bool },
    Claiming,
    TakingOver,
    Entering,
    Member,
}

/// A holder that is being watched.
#[derive(Debug, Clone, Copy)]
struct Watched {
    lease: Lease,
    silent_since_ms: Option<u64>,
    lives: bool,
}

/// Owned by the control thread.
#[derive(Debug)]
pub struct Membership {
    id: Arc<str>,
    incarnation: Incarnation,
    /// The incarnation with which this process began; each one is greater than the one before.
    first: Incarnation,
    /// For the next incarnation.
    seed: fastrand::Rng,
    times: LeaseTimes,
    stage: Stage,
    state: LeaseState,
    renewals: u64,
    /// `channels.partitions`
    partitions: u16,
    /// Packets are sealed.
    keyed: bool,
    /// The state is not written yet.
    state_changed: bool,
    /// What the lease said when it was last written.
    written: Option<(Incarnation, LeaseState)>,
    /// The others should look at the directory.
    announce: bool,
    asked: bool,
    due_ms: u64,
    watched: Option<Watched>,
    /// The lease was just read, and is ours: now it may be written.
    read_as_ours: bool,
    was_member: bool,
    leaves: bool,
    finished: bool,
}

impl Membership {
    /// A gateway that is not a member yet. The seed makes incarnations differ that begin in the
    /// same millisecond.
    pub fn new(id: &str, times: LeaseTimes, seed: u64, now_wall_ms: u64) -> Self {
        let mut seed = fastrand::Rng::with_seed(seed);
        let first = next_incarnation(&mut seed, now_wall_ms);
        Membership {
            id: id.into(),
            incarnation: first,
            first,
            seed,
            times,
            stage: Stage::Away,
            state: LeaseState::Synced,
            renewals: 0,
            partitions: 0,
            keyed: false,
            state_changed: false,
            written: None,
            announce: false,
            asked: false,
            due_ms: 0,
            watched: None,
            read_as_ours: false,
            was_member: false,
            leaves: false,
            finished: false,
        }
    }

    /// Says in the lease into how many partitions channels are divided.
    #[must_use]
    pub fn with_partitions(self, partitions: u16) -> Self {
        Membership { partitions, ..self }
    }

    /// Says in the lease whether packets are sealed.
    #[must_use]
    pub fn with_key(self, keyed: bool) -> Self {
        Membership { keyed, ..self }
    }

    /// Our id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Our name in packets.
    pub fn origin(&self) -> Origin<'_> {
        Origin {
            id: &self.id,
            incarnation: self.incarnation,
        }
    }

    /// Our incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// True if this is one of our incarnations. What we said before we lost our lease may come back
    /// when we have another.
    pub fn is_own(&self, origin: &Origin<'_>) -> bool {
        *origin.id == *self.id && (self.first..=self.incarnation).contains(&origin.incarnation)
    }

    /// True if we have been a member.
    pub fn was_member(&self) -> bool {
        self.was_member
    }

    /// How often the directory is read, milliseconds.
    pub fn directory_ms(&self) -> u64 {
        self.times.directory_ms
    }

    /// Our users do not count from now on.
    pub fn leave(&mut self) {
        self.leaves = true;
        self.set_state(LeaseState::Leaving);
    }

    /// True from [`Membership::leave`] on.
    pub fn is_leaving(&self) -> bool {
        self.leaves
    }

    /// The end: whether the lease is still ours is to be asked, if it seems so.
    pub fn finish(&mut self) -> Option<Op> {
        self.standing().has_lease().then(|| {
            self.finished = true;
            let id = Arc::clone(&self.id);
            Op::LeaseRead { id }
        })
    }

    /// True from [`Membership::finish`] on: nothing that follows may take the lease again.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The answer to [`Membership::finish`]: how to give the lease back, if it is still ours.
    pub fn farewell(&self, answer: Option<&Answer>) -> Option<Op> {
        let ours = matches!(answer, Some(Answer::Lease(Some(lease))) if lease.incarnation == self.incarnation);
        ours.then(|| {
            let id = Arc::clone(&self.id);
            Op::LeaseDrop { id }
        })
    }

    /// Our channel.
    pub fn channel(&self) -> Channel {
        Channel::Gateway(Arc::clone(&self.id), self.incarnation)
    }

    /// Where we stand.
    pub fn standing(&self) -> Standing {
        match self.stage {
            Stage::Away => Standing::Away,
            Stage::Entering => Standing::Entering,
            Stage::Member => Standing::Member,
            _ if self.watched.is_some_and(|watched| watched.lives) => Standing::IdTaken,
            _ => Standing::Joining,
        }
    }

    /// True while somebody else has our id.
    pub fn is_watching(&self) -> bool {
        self.watched.is_some()
    }

    /// Redis can be asked again.
    pub fn redis_there(&mut self) {
        self.go(Stage::Reading, 0);
        self.watched = None;
    }

    /// Redis went.
    pub fn redis_away(&mut self) {
        self.go(Stage::Away, 0);
    }

    fn go(&mut self, stage: Stage, due_ms: u64) {
        self.stage = stage;
        self.read_as_ours = false;
        self.asked = false;
        self.due_ms = due_ms;
    }

    /// Our channels are heard.
    pub fn subscribed(&mut self, now_ms: u64) {
        // A question under way stays so.
        if self.stage == Stage::Entering {
            self.stage = Stage::Member;
            self.was_member = true;
            if !self.asked && !self.state_changed && !self.read_as_ours {
                self.due_ms = self.due_ms.min(now_ms + self.times.renew_ms);
            }
        }
    }

    /// Our channels are not heard any more.
    pub fn unsubscribed(&mut self) {
        if self.stage == Stage::Member {
            self.stage = Stage::Entering;
        }
    }

    /// How far we are.
    pub fn state(&self) -> LeaseState {
        self.state
    }

    /// Writes into the lease how far we are.
    pub fn set_state(&mut self, state: LeaseState) {
        // Who leaves does not come back.
        if self.state != state && self.state != LeaseState::Leaving {
            self.state = state;
            self.state_changed = true;
            self.due_ms = 0;
        }
    }

    /// True if everybody can see that we leave.
    pub fn has_left(&self) -> bool {
        self.written.is_some_and(|(_, state)| state == LeaseState::Leaving)
    }

    /// True once for each change that the others should look at.
    pub fn poll_announcement(&mut self) -> bool {
        std::mem::take(&mut self.announce)
    }

    fn handle_written(&mut self) {
        let now = (self.incarnation, self.state);
        // What changed meanwhile is written next.
        if !self.state_changed && self.written != Some(now) {
            self.written = Some(now);
            self.announce = true;
        }
    }

    /// Somebody asked whether we live: the next renewal is due at once.
    pub fn challenged(&mut self) {
        if matches!(self.stage, Stage::Member | Stage::Entering) {
            self.due_ms = 0;
        }
    }

    fn lease(&self) -> Lease {
        Lease {
            incarnation: self.incarnation,
            state: self.state,
            renewals: self.renewals,
            partitions: self.partitions,
            keyed: self.keyed,
            reads_bodies: true,
        }
    }

    fn write(&mut self) -> Vec<Op> {
        self.renewals += 1;
        self.state_changed = false;
        vec![
            Op::LeaseWrite {
                id: Arc::clone(&self.id),
                lease: self.lease(),
                ttl_ms: self.times.lease_ms,
            },
            // Again each time: a failover may have lost it.
            Op::Register {
                id: Arc::clone(&self.id),
                incarnation: self.incarnation,
            },
        ]
    }

    /// What to ask now; one request at a time. Its answers go to [`Membership::handle_answers`].
    pub fn poll_ops(&mut self, now_ms: u64) -> Option<Vec<Op>> {
        if self.asked || now_ms < self.due_ms {
            return None;
        }
        let id = Arc::clone(&self.id);
        let ops = match self.stage {
            Stage::Away => return None,
            Stage::Entering | Stage::Member if std::mem::take(&mut self.read_as_ours) => self.write(),
            Stage::Reading | Stage::Entering | Stage::Member => vec![Op::LeaseRead { id }],
            Stage::Taking => vec![Op::LeaseTake {
                id,
                lease: self.lease(),
                ttl_ms: self.times.lease_ms,
            }],
            Stage::Watching { challenged: false } => {
                let holder = self.watched?.lease.incarnation;
                vec![Op::Publish {
                    channel: Channel::Gateway(id, holder),
                    payload: challenge(self.origin()),
                }]
            }
            Stage::Watching { challenged: true } => vec![Op::LeaseRead { id }],
            Stage::Claiming => vec![Op::Claim {
                task: Task::TakeOver(id),
                by: self.incarnation,
                ttl_ms: CLAIM_MS,
            }],
            Stage::TakingOver => self.write(),
        };
        self.asked = true;
        Some(ops)
    }

    /// What was asked is answered. Returns true if the incarnation is another one now.
    pub fn handle_answers(&mut self, answers: &[Answer], now_ms: u64, now_wall_ms: u64) -> bool {
        if !std::mem::take(&mut self.asked) {
            return false;
        }
        let Some(answer) = answers.first() else {
            return false;
        };
        if matches!(answer, Answer::Failed(_)) {
            self.due_ms = now_ms + WATCH_MS;
            return false;
        }
        match (self.stage, answer) {
            (Stage::Reading | Stage::Watching { .. }, Answer::Lease(None)) => {
                // At the first start nothing was written yet under this incarnation.
                let renewed = self.renewals > 0;
                if renewed {
                    self.renew_incarnation(now_wall_ms);
                }
                self.go(Stage::Taking, now_ms);
                return renewed;
            }
            (Stage::Reading, Answer::Lease(Some(lease))) if lease.incarnation == self.incarnation => {
                self.go(Stage::TakingOver, now_ms);
            }
            (Stage::Reading | Stage::Watching { .. }, Answer::Lease(Some(lease))) => {
                return self.watch(*lease, now_ms, now_wall_ms);
            }
            (Stage::Watching { .. }, Answer::Count(heard)) => self.holder_heard(*heard > 0, now_ms),
            (Stage::Taking | Stage::Claiming, Answer::Taken(false)) => self.go(Stage::Reading, now_ms + WATCH_MS),
            (Stage::Taking | Stage::Claiming, Answer::Taken(true)) => self.go(Stage::TakingOver, now_ms),
            (Stage::TakingOver, _) => {
                self.handle_written();
                self.watched = None;
                self.go(Stage::Entering, now_ms + self.times.renew_ms);
            }
            (Stage::Entering | Stage::Member, Answer::Lease(Some(lease))) if lease.incarnation == self.incarnation => {
                self.read_as_ours = true;
                self.due_ms = now_ms;
            }
            (Stage::Entering | Stage::Member, Answer::Lease(_)) => {
                // Lost: to Redis, which forgot it, or to somebody who took us for dead.
                self.renew_incarnation(now_wall_ms);
                self.go(Stage::Reading, now_ms);
                return true;
            }
            (Stage::Entering | Stage::Member, _) => {
                self.handle_written();
                // A state that changed meanwhile is written at once.
                self.due_ms = if self.state_changed {
                    now_ms
                } else {
                    now_ms + self.times.renew_ms
                };
            }
            _ => {}
        }
        false
    }

    /// Somebody else has the lease. Returns true if the incarnation is another one now.
    fn watch(&mut self, lease: Lease, now_ms: u64, now_wall_ms: u64) -> bool {
        let renewed = self.renewals > 0;
        if renewed {
            self.renew_incarnation(now_wall_ms);
        }
        let same = self
            .watched
            .filter(|watched| watched.lease.incarnation == lease.incarnation);
        let mut watched = same.unwrap_or(Watched {
            lease,
            silent_since_ms: None,
            lives: false,
        });
        if watched.lease.renewals != lease.renewals {
            watched = Watched {
                lease,
                silent_since_ms: None,
                lives: true,
            };
        }
        self.watched = Some(watched);
        let silent = watched.silent_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
        if silent >= TAKE_OVER_MS {
            self.go(Stage::Claiming, now_ms);
        } else {
            self.go(Stage::Watching { challenged: false }, now_ms);
        }
        renewed
    }

    /// The holder was told that somebody wants its id.
    fn holder_heard(&mut self, heard: bool, now_ms: u64) {
        if let Some(watched) = &mut self.watched {
            watched.silent_since_ms = match (heard, watched.silent_since_ms) {
                (true, _) => None,
                (false, since) => Some(since.unwrap_or(now_ms)),
            };
        }
        self.go(Stage::Watching { challenged: true }, now_ms + WATCH_MS);
    }

    fn renew_incarnation(&mut self, now_wall_ms: u64) {
        self.incarnation = next_incarnation(&mut self.seed, now_wall_ms).max(Incarnation(self.incarnation.0 + 1));
        self.renewals = 0;
        if self.state == LeaseState::Synced {
            self.state = LeaseState::Syncing;
        }
    }

    /// When there is something to ask without anything happening before.
    pub fn poll_timeout(&self) -> Option<u64> {
        (self.stage != Stage::Away && !self.asked).then_some(self.due_ms)
    }
}

/// Time in the upper 48 bits, chance in the lower 16.
fn next_incarnation(seed: &mut fastrand::Rng, now_wall_ms: u64) -> Incarnation {
    Incarnation(now_wall_ms << 16 | u64::from(seed.u16(..)))
}

fn challenge(origin: Origin<'_>) -> Bytes {
    let mut packet = PacketBuilder::default();
    packet.challenge(origin);
    packet.close(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: LeaseTimes = LeaseTimes {
        lease_ms: 60_000,
        renew_ms: 10_000,
        directory_ms: 2_000,
    };

    fn other(renewals: u64) -> Answer {
        Answer::Lease(Some(Lease {
            incarnation: Incarnation(99),
            state: LeaseState::Synced,
            renewals,
            partitions: 64,
            keyed: false,
            reads_bodies: true,
        }))
    }

    /// Answers what is asked until nothing is, and returns the operations' names.
    fn drive(membership: &mut Membership, now_ms: u64, mut answer: impl FnMut(&Op) -> Answer) -> Vec<&'static str> {
        let mut asked = Vec::new();
        while let Some(ops) = membership.poll_ops(now_ms) {
            asked.push(match &ops[0] {
                Op::LeaseRead { .. } => "read",
                Op::LeaseTake { .. } => "take",
                Op::LeaseWrite { .. } => "write",
                Op::Publish { .. } => "challenge",
                Op::Claim { .. } => "claim",
                other => panic!("{other:?}"),
            });
            let answers: Vec<Answer> = ops.iter().map(&mut answer).collect();
            membership.handle_answers(&answers, now_ms, now_ms + 1_000);
        }
        asked
    }

    fn member() -> Membership {
        let mut membership = Membership::new("gw", TIMES, 1, 1_000);
        membership.redis_there();
        let asked = drive(&mut membership, 0, |op| match op {
            Op::LeaseRead { .. } => Answer::Lease(None),
            Op::LeaseTake { .. } => Answer::Taken(true),
            _ => Answer::Done,
        });
        assert_eq!(asked, ["read", "take", "write"]);
        assert_eq!(membership.standing(), Standing::Entering);
        membership.subscribed(0);
        assert_eq!(membership.standing(), Standing::Member);
        membership
    }

    #[test]
    fn renews_what_is_its_own() {
        let mut membership = member();
        assert_eq!(membership.poll_timeout(), Some(TIMES.renew_ms));
        let ours = membership.lease();
        let asked = drive(&mut membership, TIMES.renew_ms, |op| match op {
            Op::LeaseRead { .. } => Answer::Lease(Some(ours)),
            _ => Answer::Done,
        });
        assert_eq!(asked, ["read", "write"]);
        assert_eq!(membership.lease().renewals, ours.renewals + 1);
        // Changes of state are written at once; a challenge is answered by a renewal.
        membership.set_state(LeaseState::Leaving);
        let asked = drive(&mut membership, TIMES.renew_ms + 1, |op| match op {
            Op::LeaseRead { .. } => Answer::Lease(Some(ours)),
            _ => Answer::Done,
        });
        assert_eq!(asked, ["read", "write"]);
        assert!(membership.has_left() && membership.poll_announcement() && !membership.poll_announcement());
        membership.challenged();
        assert_eq!(membership.poll_timeout(), Some(0));
    }

    #[test]
    fn a_lost_lease_means_another_incarnation() {
        let mut membership = member();
        let before = membership.incarnation();
        drive(&mut membership, TIMES.renew_ms, |op| match op {
            Op::LeaseRead { .. } => Answer::Lease(None),
            Op::LeaseTake { .. } => Answer::Taken(true),
            _ => Answer::Done,
        });
        assert!(membership.incarnation() > before);
        assert_eq!(
            (membership.standing(), membership.state()),
            (Standing::Entering, LeaseState::Syncing)
        );
    }

    #[test]
    fn a_live_holder_is_found_to_live() {
        let mut membership = Membership::new("gw", TIMES, 1, 1_000);
        membership.redis_there();
        for (now, renewals) in [(0, 5), (WATCH_MS, 6)] {
            drive(&mut membership, now, |op| match op {
                Op::LeaseRead { .. } => other(renewals),
                Op::Publish { .. } => Answer::Count(1),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(membership.standing(), Standing::IdTaken);
        // It goes: then the id is free.
        let asked = drive(&mut membership, 2 * WATCH_MS, |op| match op {
            Op::LeaseRead { .. } => Answer::Lease(None),
            Op::LeaseTake { .. } => Answer::Taken(true),
            _ => Answer::Done,
        });
        assert_eq!(asked, ["read", "take", "write"]);
    }

    #[test]
    fn a_dead_holder_is_taken_over() {
        let mut membership = Membership::new("gw", TIMES, 1, 1_000);
        membership.redis_there();
        let mut now = 0;
        while membership.standing() != Standing::Entering {
            drive(&mut membership, now, |op| match op {
                Op::LeaseRead { .. } => other(5),
                Op::Publish { .. } => Answer::Count(0),
                Op::Claim { .. } => Answer::Taken(true),
                _ => Answer::Done,
            });
            assert_ne!(membership.standing(), Standing::IdTaken);
            now += WATCH_MS;
        }
        assert!((TAKE_OVER_MS..TAKE_OVER_MS + 4 * WATCH_MS).contains(&now), "{now}");
    }

    #[test]
    fn one_that_is_heard_but_frozen_is_not_taken_over() {
        let mut membership = Membership::new("gw", TIMES, 1, 1_000);
        membership.redis_there();
        for step in 0..100 {
            drive(&mut membership, step * WATCH_MS, |op| match op {
                Op::LeaseRead { .. } => other(5),
                Op::Publish { .. } => Answer::Count(1),
                other => panic!("{other:?}"),
            });
            assert_eq!(membership.standing(), Standing::Joining);
        }
    }
}
