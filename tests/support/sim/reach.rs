//! Whether the simulation is awake: how often it reached the rare events.

use std::fmt;
use std::ops::Add;

macro_rules! reach {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// One count for each entry of a shard that only rare events reach.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct Reach {
            $($(#[doc = $what])+ pub $name: u64,)+
        }

        impl Reach {
            /// Each count with its name and what it counts.
            pub fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($what),+), self.$name)),+]
            }
        }

        impl Add for Reach {
            type Output = Reach;

            fn add(self, more: Reach) -> Reach {
                Reach {
                    $($name: self.$name + more.$name,)+
                }
            }
        }
    };
}

reach! {
    /// Out of descriptors: accepting paused
    accepts_paused,
    /// Turns in which accepting was held, as pre-auth work is crowded
    held_accepts,
    /// Sockets lost between two shards
    lost,
    /// Output that left before pre-auth and bulk work
    early_submits,
    /// Events of bulk senders
    bulk,
    /// Sockets closed by a reset
    resets,
    /// Tokens that opened a connection
    tokens,
    /// Shards that wanted keys
    keys_wanted,
    /// Fetches of keys
    keys_fetched,
    /// Requests of administrators
    asked,
    /// Replies of shards to the control thread's queries
    replied,
    /// Answers to administrators
    answered,
    /// Settings that changed
    reloads,
    /// Subscriptions that ended by order or by new settings
    ended_subscriptions,
    /// Plain HTTP requests that were answered
    http,
    /// Gateways that were stopped
    stops,
}

impl Reach {
    /// Names of counts that are zero.
    pub fn asleep(&self) -> Vec<&'static str> {
        let counts = self.counts().into_iter().filter(|(.., count)| *count == 0);
        counts.map(|(name, ..)| name).collect()
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "is it awake?")?;
        for (_, what, count) in self.counts() {
            writeln!(f, "{count:>10} {}", what.trim())?;
        }
        Ok(())
    }
}
