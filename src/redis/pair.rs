//! Two brokers on one Redis: look-ups have connections of their own, so that no question of clients delays leases, probes,
//! packets or presence.
//!
//! Belongs to the control thread. To whoever asks they are one store: connected when both are, lost when either is. When the
//! connection for everything else goes, look-ups begin anew: what they were told by might be another server by now.

use std::sync::Arc;

use super::{Broker, BrokerCounters};
use crate::cluster::store::{Channel, Op, Request, StoreEvent};
use crate::config::RedisTarget;

/// What was last told of the store as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Connected,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Main,
    Lookups,
}

/// Which lines can be asked, and what was told of that. Pure.
#[derive(Debug)]
struct Standing {
    main: bool,
    lookups: bool,
    told: Told,
}

impl Standing {
    /// What an event of one line means for the store as a whole.
    fn handle(&mut self, line: Line, event: StoreEvent) -> Option<StoreEvent> {
        let up = match line {
            Line::Main => &mut self.main,
            Line::Lookups => &mut self.lookups,
        };
        match event {
            StoreEvent::Connected => {
                *up = true;
                let whole = self.main && self.lookups && self.told != Told::Connected;
                whole.then(|| {
                    self.told = Told::Connected;
                    StoreEvent::Connected
                })
            }
            StoreEvent::Lost(cause) => {
                *up = false;
                (self.told != Told::Lost).then(|| {
                    self.told = Told::Lost;
                    StoreEvent::Lost(cause)
                })
            }
            other => Some(other),
        }
    }
}

/// A store in Redis, over two brokers. Their tasks end when it is dropped.
#[derive(Debug)]
pub struct BrokerPair {
    main: Broker,
    lookups: Broker,
    standing: Standing,
    target: RedisTarget,
    prefix: String,
    counters: Arc<BrokerCounters>,
}

impl BrokerPair {
    /// As [`Broker::start`].
    ///
    /// # Panics
    /// Outside of a tokio `LocalSet`.
    #[must_use]
    pub fn start(target: RedisTarget, prefix: &str, counters: Arc<BrokerCounters>) -> BrokerPair {
        BrokerPair {
            main: Broker::start(target.clone(), prefix, Arc::clone(&counters)),
            lookups: start_lookups(&target, prefix, &counters),
            standing: Standing {
                main: false,
                lookups: false,
                told: Told::Nothing,
            },
            target,
            prefix: prefix.to_owned(),
            counters,
        }
    }

    /// As [`Broker::submit`]. A request is of look-ups alone, or has none. Look-ups that are under way when the store is lost may
    /// stay without an answer.
    pub fn submit(&mut self, request: Request) {
        let looks_up = |op: &Op| matches!(op, Op::Locate { .. });
        if request.ops.iter().all(looks_up) {
            self.lookups.submit(request);
        } else {
            debug_assert!(!request.ops.iter().any(looks_up), "look-ups and others in one request");
            self.main.submit(request);
        }
    }

    /// As [`Broker::subscribe`].
    pub fn subscribe(&mut self, channel: Channel) {
        self.main.subscribe(channel);
    }

    /// As [`Broker::unsubscribe`].
    pub fn unsubscribe(&mut self, channel: &Channel) {
        self.main.unsubscribe(channel);
    }

    /// As [`Broker::renew`].
    pub fn renew(&mut self, channel: &Channel) {
        self.main.renew(channel);
    }

    /// The next event. Cancel-safe.
    pub async fn next_event(&mut self) -> StoreEvent {
        loop {
            let (line, event) = tokio::select! {
                biased;
                event = self.main.next_event() => (Line::Main, event),
                event = self.lookups.next_event() => (Line::Lookups, event),
            };
            if let Some(event) = self.handle(line, event) {
                return event;
            }
        }
    }

    /// The next event, if there is one already.
    pub fn try_next_event(&mut self) -> Option<StoreEvent> {
        loop {
            let main = self.main.try_next_event().map(|event| (Line::Main, event));
            let lookups = |lookups: &mut Broker| lookups.try_next_event().map(|event| (Line::Lookups, event));
            let (line, event) = main.or_else(|| lookups(&mut self.lookups))?;
            if let Some(event) = self.handle(line, event) {
                return Some(event);
            }
        }
    }

    fn handle(&mut self, line: Line, event: StoreEvent) -> Option<StoreEvent> {
        if line == Line::Main && matches!(event, StoreEvent::Lost(_)) {
            self.lookups = start_lookups(&self.target, &self.prefix, &self.counters);
            self.standing.lookups = false;
        }
        self.standing.handle(line, event)
    }
}

fn start_lookups(target: &RedisTarget, prefix: &str, counters: &Arc<BrokerCounters>) -> Broker {
    Broker::start_as(target.clone(), prefix, Arc::clone(counters), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_connected_when_both_are_and_lost_when_either_is() {
        let mut standing = Standing {
            main: false,
            lookups: false,
            told: Told::Nothing,
        };
        let lost = || StoreEvent::Lost("gone".into());
        assert_eq!(standing.handle(Line::Main, StoreEvent::Connected), None);
        let connected = Some(StoreEvent::Connected);
        assert_eq!(standing.handle(Line::Lookups, StoreEvent::Connected), connected);
        assert_eq!(standing.handle(Line::Lookups, lost()), Some(lost()));
        assert_eq!(standing.handle(Line::Main, lost()), None, "once");
        assert_eq!(standing.handle(Line::Lookups, StoreEvent::Connected), None);
        assert_eq!(standing.handle(Line::Main, StoreEvent::Connected), connected);
        let other = StoreEvent::ForgetAll;
        assert_eq!(standing.handle(Line::Lookups, other.clone()), Some(other));
    }
}
