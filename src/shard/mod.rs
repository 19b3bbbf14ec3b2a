//! One shard: its connections, its users, and the turn that moves them.
//!
//! Owned by the shard's thread. [`core::Core`] holds all state and decides everything. It makes no
//! system call and reads no clock, so tests drive it with bytes and virtual time. [`run`] owns the
//! engine and the executor.
//!
//! | file | duty |
//! | --- | --- |
//! | `kernel` | the only owner of a connection's entry: stage, outbox, deadline, tally; what is queued for it |
//! | **services** | each owns its tables, gets the kernel lent, and names no other service |
//! | `admission` | everything before a connection is open, under one budget: heads, TLS, tokens, plain HTTP, limits by address |
//! | `messages` | direct messages, and messages that are parked until their receivers' locations are known |
//! | `presence` | presence questions that wait for shards or for the cluster |
//! | `channels` | subscriptions, publications, fan-out, a channel's home, overload |
//! | `lifecycle` | heartbeats, the drain, and how many connections a user keeps |
//! | **together** | |
//! | [`core`] | all state; what happened goes to its service, and ended connections leave all tables |
//! | `receive` | input of sockets, to the service that understands it |
//! | `frames` | frames of clients, to the service that carries them out |
//! | `admin` | queries and commands of the control thread for administrators, carried out |
//! | `dispatch` | mail of other threads, to the service that carries it out |
//! | `checks` | what must hold between two calls |
//! | [`turn`] | one turn, for the thread, the simulations and tests |
//! | [`run`] | the thread: engine, clock, parking, reports |

mod admin;
mod admission;
mod channels;
mod checks;
pub mod core;
mod dispatch;
mod frames;
mod kernel;
mod lifecycle;
mod messages;
mod presence;
mod receive;
pub mod run;
#[cfg(test)]
mod tests;
pub mod turn;

pub use checks::Outstanding;
pub use kernel::{Connection, Stage, wheel};
