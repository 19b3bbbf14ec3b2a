//! Two stores on one server as one: look-ups have connections of their own, so that no question of
//! clients delays leases, probes, packets or presence.
//!
//! Pure, and generic over the store, so that the simulation runs the same code. Owned by the
//! control thread. The pair is connected when both stores are, and lost when either is. When the
//! main store is lost, look-ups begin anew: their server may be another one by now.

use crate::cluster::store::{Channel, Op, Request, Store, StoreEvent};

/// The state of the pair that its owner last got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Connected,
    Lost,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Main,
    Lookups,
}

/// Which stores are connected, and the state that the owner got.
#[derive(Debug)]
struct Standing {
    main: bool,
    lookups: bool,
    told: Told,
}

impl Standing {
    /// The meaning of an event of one store for the pair.
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

/// A store made of two: one for look-ups, one for everything else.
#[derive(Debug)]
pub struct Pair<S> {
    main: S,
    lookups: S,
    standing: Standing,
    /// It came while the control thread waited.
    next: Option<StoreEvent>,
}

impl<S: Store> Pair<S> {
    /// Both are new.
    #[must_use]
    pub fn new(main: S, lookups: S) -> Self {
        Pair {
            main,
            lookups,
            standing: Standing {
                main: false,
                lookups: false,
                told: Told::Nothing,
            },
            next: None,
        }
    }

    /// The main store, and that of look-ups.
    pub fn lines(&self) -> [&S; 2] {
        [&self.main, &self.lookups]
    }

    /// The main store, and that of look-ups.
    pub fn lines_mut(&mut self) -> [&mut S; 2] {
        [&mut self.main, &mut self.lookups]
    }

    /// True if [`Store::try_next_event`] has an event that came by [`Pair::put`].
    pub(super) fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// An event of one store came while the control thread waited.
    pub(super) fn put(&mut self, line: Line, event: StoreEvent) {
        debug_assert!(self.next.is_none(), "one at a time");
        self.next = self.handle(line, event);
    }

    fn handle(&mut self, line: Line, event: StoreEvent) -> Option<StoreEvent> {
        if line == Line::Main && matches!(event, StoreEvent::Lost(_)) {
            self.lookups.restart();
            self.standing.lookups = false;
        }
        self.standing.handle(line, event)
    }
}

impl<S: Store> Store for Pair<S> {
    /// A request is of look-ups alone, or has none.
    fn submit(&mut self, request: Request) {
        let looks_up = |op: &Op| matches!(op, Op::Locate { .. });
        if request.ops.iter().all(looks_up) {
            self.lookups.submit(request);
        } else {
            debug_assert!(!request.ops.iter().any(looks_up), "look-ups and others in one request");
            self.main.submit(request);
        }
    }

    fn subscribe(&mut self, channel: Channel) {
        self.main.subscribe(channel);
    }

    fn unsubscribe(&mut self, channel: &Channel) {
        self.main.unsubscribe(channel);
    }

    fn renew(&mut self, channel: &Channel) {
        self.main.renew(channel);
    }

    fn restart(&mut self) {
        let [main, lookups] = self.lines_mut();
        main.restart();
        lookups.restart();
        self.standing.main = false;
        self.standing.lookups = false;
        self.next = None;
    }

    fn try_next_event(&mut self) -> Option<StoreEvent> {
        if let Some(event) = self.next.take() {
            return Some(event);
        }
        loop {
            let (line, event) = match self.main.try_next_event() {
                Some(event) => (Line::Main, event),
                None => (Line::Lookups, self.lookups.try_next_event()?),
            };
            if let Some(event) = self.handle(line, event) {
                return Some(event);
            }
        }
    }
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
