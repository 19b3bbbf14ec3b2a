//! The driver of a cluster's store: carries out [`Op`](crate::cluster::store::Op)s on Redis and
//! returns the replies.
//!
//! Belongs to the control thread, on a tokio `current_thread` runtime inside a `LocalSet`. It
//! decides nothing: what to write, when and why is [`crate::cluster`]'s. May touch sockets and
//! clocks; knows no shard.
//!
//! | file | duty |
//! | --- | --- |
//! | [`pair`] | pure: two stores as one, look-ups on a connection of their own |
//! | `broker` | the owner's end of a broker |
//! | `driver` | the one task that knows all servers |
//! | `node` | one server: its command connection, order, time limits |
//! | `pubsub` | one server: its connection for subscriptions |
//! | `tasks` | what the tasks share, and what they tell each other |
//! | `signal` | what the tasks tell the owner |
//! | `server` | pure: where a server is found, and which life of it |
//! | `dial` | opens connections |
//! | `masters` | opens connections to masters that can be asked |
//! | `whereabouts` | pure: whether a node's two connections are on one server |
//! | `facts` | pure: what a server says of itself |
//! | `sentinels` | where the master is, as sentinels say |
//! | `gather` | answers of a request until all are there |
//! | `commands` | pure: operation to command, reply to answer, what errors mean |
//! | `topology` | pure: slots, and who serves them |
//! | `detours` | pure: order while a slot changes its server |
//! | `remedies` | pure: what to do about an error |
//! | [`keys`] | pure: names of keys and channels |
//! | `backlog` | how many packets may wait |
//! | `backoff` | how long to wait before the next attempt |
//! | `counters` | what is counted |
//!
//! Invariants:
//! - *answered once*: every request is answered exactly once and within 2.5 s, see `gather` and
//!   `node`.
//! - *order*: operations for one server are sent in the order of
//!   [`Store::submit`](crate::cluster::store::Store::submit), see `node`.
//! - *no invalidation is lost*: each becomes an event. An invalidation that overtakes the reply to
//!   a read comes before it in the queue, which shows the reader that the reply is stale.
//! - *no secret*: credentials are in no event, log line or `Debug`.

mod backlog;
mod backoff;
mod broker;
mod commands;
mod counters;
mod detours;
mod dial;
mod driver;
mod facts;
mod gather;
pub mod keys;
mod masters;
mod node;
pub mod pair;
mod pubsub;
mod remedies;
mod sentinels;
mod server;
mod signal;
mod tasks;
mod topology;
mod whereabouts;

pub use broker::Broker;
pub use counters::BrokerCounters;
