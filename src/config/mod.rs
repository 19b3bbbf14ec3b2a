//! Configuration: flags over environment over TOML file over defaults, checked before anything is
//! opened.
//!
//! Owns names, defaults and meaning of every key, and the text about them. Pure, except that
//! [`load`] reads the TOML file, files that an `@` names, the host name and a random suffix. No
//! sockets, no global state.
//!
//! | file | duty |
//! | --- | --- |
//! | `keys` | the one table of keys, which drives all else |
//! | `bounds` | limits and words that several kinds share |
//! | `value` | kinds: text or TOML to a checked value and back |
//! | `sources` | flags, variables and TOML to one setting per key |
//! | `checks` | settings to a [`Config`]; contradictions |
//! | `types` | [`Config`] and what it holds |
//! | `load` | [`load`] and [`reload`] |
//! | `redis_url` | [`RedisTarget`] |
//! | `secret` | [`Secret`] |
//! | `secrets` | secrets and files that hold them, without what tools put around them |
//! | `text` | `--help`, `--check-config`, documentation |
//! | `error` | [`ConfigError`] |
//! | `admin` | [`AdminConfig`] |
//! | `listen` | [`Listen`] |
//! | [`origins`] | which web pages may connect |
//! | [`patterns`] | which channels a user may use, and whom it may write to and see |
//!
//! Invariants: a value that cannot be honoured is refused, never dropped. Printed text holds no
//! secret. The output of `--check-config` loads to the same [`Config`].

mod admin;
mod bounds;
mod checks;
mod error;
mod keys;
mod listen;
mod load;
pub mod origins;
pub mod patterns;
mod redis_url;
mod secret;
mod secrets;
mod sources;
mod text;
mod types;
mod value;

#[cfg(test)]
mod tests;

pub use admin::AdminConfig;
pub use error::{ConfigError, Source};
pub use listen::Listen;
pub use load::{Effective, Loaded, OnHost, load, parse_duration, reload, shown_url};
pub use origins::{OriginError, OriginPolicy};
pub use patterns::{PatternError, Patterns};
pub use redis_url::{RedisAddress, RedisServers, RedisTarget};
pub use secret::Secret;
pub use types::{
    AuthConfig, ChannelsConfig, Config, CredentialSource, DrainConfig, EngineChoice, Heartbeat, Limits, LogFormat,
    MessagesConfig, Placement, RedisConfig, TlsFiles,
};

/// Most shards of one gateway.
pub const SHARDS_MAX: usize = bounds::SHARDS_MAX as usize;
