//! The control thread of one gateway: it starts the shards, watches them, drains and stops them,
//! and owns everything that is Redis.
//!
//! Owns the join handles of the shards and everything that concerns the gateway as a whole. Shards
//! never wait for it. Two gateways in one process share nothing.
//!
//! | file | duty |
//! | --- | --- |
//! | `gateway` | [`Gateway`]: what the rest of the program sees; the start |
//! | `handle` | [`Handle`]: orders from other threads |
//! | `shards` | the shards' threads |
//! | [`turn`] | pure: the control thread's turn; joining, draining, leaving |
//! | `thread` | the control thread from its start to its end |
//! | `run` | the same while the gateway runs: turns, and waits |
//! | `admin` | administrators' requests |
//! | `jwks` | keys from a URL |
//! | `woken` | how the control thread waits for others |
//! | `watchdog` | what systemd hears while the gateway lives |

mod admin;
mod gateway;
mod handle;
mod jwks;
mod process;
mod run;
mod shards;
mod thread;
pub mod turn;
mod watchdog;
mod woken;

pub use gateway::{Gateway, log_reload};
pub use handle::Handle;
pub use turn::Exit;
