//! The protocol of wakes as a model: every interleaving of two senders and a shard, with store
//! buffers as processors have them, is tried. Stress tests find a missing fence by luck; this one
//! finds it each time.
//!
//! The steps are those of `waker.rs`, `SystemEngine::prepare_park` and a shard's loop. A change
//! there needs the same change here.

use std::collections::HashSet;

const SENDERS: usize = 2;
/// The shard's thread, after the senders'.
const SHARD: usize = SENDERS;

const RUNNING: u8 = 0;
const WAITING: u8 = 1;
const PARKED: u8 = 2;

/// Parts of the protocol that can be left out, to see what they are for.
#[derive(Clone, Copy)]
struct Protocol {
    fence_of_sender: bool,
    fence_of_shard: bool,
    /// A sender looks again after it has written to the descriptor of waiting shards.
    late_look: bool,
    /// The shard looks for completions once more before it parks.
    look_before_parking: bool,
}

const WHOLE: Protocol = Protocol {
    fence_of_sender: true,
    fence_of_shard: true,
    late_look: true,
    look_before_parking: true,
};

/// A variable that threads share: an item per sender, then the state.
type Variable = usize;
const STATE: Variable = SENDERS;

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    memory: [u8; SENDERS + 1],
    /// Stores that their thread has made and the others do not see yet, oldest first.
    buffers: [Vec<(Variable, u8)>; SENDERS + 1],
    step: [u8; SENDERS + 1],
    /// Each sender, between its look at the state and what follows from it.
    saw: [u8; SENDERS],
    /// A completion of the shard's ring, made by a write to the descriptor of waiting shards.
    completion: bool,
    park_fd: bool,
    /// Items that the shard has taken from its inbox.
    taken: [bool; SENDERS],
}

const END: u8 = u8::MAX;
/// The step of the shard at which nothing but `park_fd` helps.
const ASLEEP: u8 = 9;

impl World {
    fn new() -> Self {
        World {
            memory: [0; SENDERS + 1],
            buffers: Default::default(),
            step: [0; SENDERS + 1],
            saw: [0; SENDERS],
            completion: false,
            park_fd: false,
            taken: [false; SENDERS],
        }
    }

    fn store(&mut self, thread: usize, variable: Variable, value: u8) {
        self.buffers[thread].push((variable, value));
    }

    fn load(&self, thread: usize, variable: Variable) -> u8 {
        let own = self.buffers[thread].iter().rev();
        let own = own.filter(|(stored, _)| *stored == variable);
        own.map(|(_, value)| *value).next().unwrap_or(self.memory[variable])
    }

    fn fence(&mut self, thread: usize) {
        for (variable, value) in self.buffers[thread].drain(..) {
            self.memory[variable] = value;
        }
    }

    fn swap_state(&mut self, thread: usize, value: u8) -> u8 {
        self.fence(thread);
        std::mem::replace(&mut self.memory[STATE], value)
    }

    /// Empties the inbox as far as the shard sees it. True if there was something.
    fn take(&mut self) -> bool {
        let before = self.taken;
        self.taken = std::array::from_fn(|item| self.load(SHARD, item) == 1);
        self.taken != before
    }

    /// One step of a sender; `wake` and what comes before it.
    fn sender(&mut self, me: usize, protocol: Protocol) {
        self.step[me] += 1;
        match self.step[me] - 1 {
            0 => self.store(me, me, 1),
            1 if protocol.fence_of_sender => self.fence(me),
            1 => {}
            2 if self.load(me, STATE) == RUNNING => self.step[me] = END,
            2 => {}
            3 => self.saw[me] = self.swap_state(me, RUNNING),
            4 => match self.saw[me] {
                WAITING => self.completion = true,
                PARKED => {
                    self.park_fd = true;
                    self.step[me] = END;
                }
                _ => self.step[me] = END,
            },
            5 if protocol.late_look => {
                self.fence(me);
                if self.memory[STATE] == PARKED {
                    self.memory[STATE] = RUNNING;
                    self.step[me] = 6;
                } else {
                    self.step[me] = END;
                }
            }
            6 => {
                self.park_fd = true;
                self.step[me] = END;
            }
            _ => self.step[me] = END,
        }
    }

    /// One step of the shard: waits a while, and then parks.
    fn shard(&mut self, protocol: Protocol) {
        self.step[SHARD] += 1;
        match self.step[SHARD] - 1 {
            0 => self.store(SHARD, STATE, WAITING),
            1 if protocol.fence_of_shard => self.fence(SHARD),
            1 => {}
            // Something in the inbox: no sleep, but another turn.
            2 | 5 | 8 if self.take() => {
                self.store(SHARD, STATE, RUNNING);
                self.step[SHARD] = 0;
            }
            // The wait, which ends by its completion or by its time.
            3 => self.completion = false,
            4 => self.store(SHARD, STATE, RUNNING),
            6 => self.store(SHARD, STATE, PARKED),
            7 if protocol.fence_of_shard => self.fence(SHARD),
            ASLEEP if protocol.look_before_parking && self.completion => self.wake_up(),
            10 => self.wake_up(),
            _ => {}
        }
    }

    /// Reaps, runs, looks at the inbox, and parks again if not all is there.
    fn wake_up(&mut self) {
        self.store(SHARD, STATE, RUNNING);
        self.completion = false;
        self.park_fd = false;
        self.step[SHARD] = 5;
    }
}

/// Tries everything that can happen. True if the shard can end up asleep with an item in its inbox,
/// or deaf to its sockets.
fn can_sleep_too_long(protocol: Protocol) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![World::new()];
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        let before = open.len();
        for thread in 0..=SENDERS {
            if !world.buffers[thread].is_empty() {
                let mut next = world.clone();
                let (variable, value) = next.buffers[thread].remove(0);
                next.memory[variable] = value;
                open.push(next);
            }
            let asleep = thread == SHARD && world.step[SHARD] == ASLEEP + 1 && !world.park_fd;
            if world.step[thread] == END || asleep {
                continue;
            }
            let mut next = world.clone();
            if thread == SHARD {
                next.shard(protocol);
            } else {
                next.sender(thread, protocol);
            }
            open.push(next);
        }
        // Nothing happens any more: the senders are done and the shard is asleep. Then its inbox
        // must be empty, and no completion may be there that blocks the notification of those of
        // sockets.
        let stuck = open.len() == before;
        if stuck && (world.taken != [true; SENDERS] || world.completion) {
            return true;
        }
    }
    false
}

#[test]
fn no_interleaving_loses_a_wake() {
    assert!(!can_sleep_too_long(WHOLE));
}

#[test]
fn every_part_of_the_protocol_is_needed() {
    for (part, without) in [
        (
            "fence of the sender",
            Protocol {
                fence_of_sender: false,
                ..WHOLE
            },
        ),
        (
            "fence of the shard",
            Protocol {
                fence_of_shard: false,
                ..WHOLE
            },
        ),
        (
            "late look",
            Protocol {
                late_look: false,
                ..WHOLE
            },
        ),
        (
            "look before parking",
            Protocol {
                look_before_parking: false,
                ..WHOLE
            },
        ),
    ] {
        assert!(can_sleep_too_long(without), "{part}: not needed?");
    }
}
