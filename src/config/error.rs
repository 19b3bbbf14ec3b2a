//! Why a configuration was refused: one line with the key, its source, its value and the allowed
//! values.
//!
//! Values are kept as they may be shown, so that an error never carries a secret.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::listen::Listen;

/// Where a value was given. Errors keep it in fields named `from`, as `thiserror` takes a field
/// named `source` for the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// By this flag, `--listen`.
    Flag(String),
    /// By this environment variable, `SHARDGATE_LISTEN`.
    Variable(String),
    /// On this line of the TOML file, counted from 1.
    File {
        /// Path as it was given.
        path: PathBuf,
        /// Line of the key.
        line: usize,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => write!(f, "default"),
            Source::Flag(flag) => write!(f, "flag {flag}"),
            Source::Variable(variable) => write!(f, "variable {variable}"),
            // Debug of a path quotes and escapes: a line break must not get out of a TOML comment.
            Source::File { path, line } => write!(f, "file {path:?} line {line}"),
        }
    }
}

/// A configuration that must not start; the program prints it and exits with
/// [`ConfigError::EXIT_CODE`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag, variable or TOML key that is not in the table.
    #[error("unknown {name}{}: {}", shown(.value), advice(.nearest))]
    UnknownKey {
        /// With its source: `flag --listn`, `variable SHARDGATE_LISTN`, `key listn (file "a.toml"
        /// line 2)`.
        name: String,
        /// As it may be shown; none where nothing was given with the name.
        value: Option<String>,
        /// Valid name in the same spelling, if one is near.
        nearest: Option<String>,
    },
    /// An argument that is no flag.
    #[error("unexpected argument {argument}: every argument is a --flag or its value; see shardgate --help")]
    UnexpectedArgument {
        /// As it may be shown.
        argument: String,
    },
    /// A flag or variable whose bytes are not UTF-8.
    #[error("{name} is not valid UTF-8")]
    NotUtf8 {
        /// `argument 3`, `flag --listen` or `variable SHARDGATE_LISTEN`.
        name: String,
    },
    /// A flag or variable without a value.
    #[error("{from} has no value: {allowed}; leave it out for the default")]
    MissingValue {
        /// Which.
        from: Source,
        /// The allowed values.
        allowed: String,
    },
    /// `--help=x` and the like.
    #[error("flag {flag} takes no value")]
    NeedlessValue {
        /// The flag.
        flag: String,
    },
    /// The same key twice in one source.
    #[error("{name} is given twice: {first} and {second}; give it once")]
    GivenTwice {
        /// Dotted name, or a flag that is no key.
        name: String,
        /// First source.
        first: Source,
        /// Second source.
        second: Source,
    },
    /// A value that its key does not take.
    #[error("{key} = {value} ({from}) is not allowed: {allowed}")]
    BadValue {
        /// Dotted name.
        key: String,
        /// Where it was given.
        from: Source,
        /// As it may be shown.
        value: String,
        /// The allowed values.
        allowed: String,
    },
    /// Two values that are each fine, but not together.
    #[error("{first} contradicts {second}: {rule}")]
    Contradiction {
        /// `key = value (source)`
        first: String,
        /// `key = value (source)`
        second: String,
        /// The rule that must hold, and its reason.
        rule: &'static str,
    },
    /// Any client could be any user, from anywhere.
    #[error(
        "listen = {listen} ({from}) is not a loopback address, and without a key the gateway runs in development mode, \
         where anyone may be any user: configure a key (auth.key with auth.algorithm, or auth.jwks_url with auth.algorithm), listen on 127.0.0.1, or say --insecure if you mean it"
    )]
    OpenDevelopmentMode {
        /// The address.
        listen: Listen,
        /// Where it was given.
        from: Source,
    },
    /// A key that cannot verify by every one of the algorithms.
    #[error("auth.key ({from}) does not serve {algorithm}: {cause}")]
    BadKey {
        /// Where it was given.
        from: Source,
        /// `auth.algorithm = value (source)`
        algorithm: String,
        /// The error in it; the key is not shown.
        cause: crate::jws::BadKey,
    },
    /// A secret that was most likely changed by a tool, such as an editor.
    #[error("{key} ({from}){file} {trouble}")]
    BadSecret {
        /// Dotted name.
        key: String,
        /// Where it was given.
        from: Source,
        /// `, read from "secret.txt",` where a file holds it.
        file: String,
        /// The error in it; the key is not shown.
        trouble: &'static str,
    },
    /// The TOML file, or a file that an `@` names, cannot be read.
    #[error("cannot read {path:?} ({from}): {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The source that named the file.
        from: Source,
        /// The system's error.
        cause: io::Error,
    },
    /// The file is not TOML.
    #[error("file {path:?} line {line} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's message; never the line itself, which may hold a secret.
        message: String,
    },
    /// The system has no random numbers for the default gateway id.
    #[error("no random suffix for the gateway id ({cause}): set gateway_id")]
    NoRandom {
        /// The system's error.
        cause: getrandom::Error,
    },
}

impl ConfigError {
    /// Exit code of a refused configuration.
    pub const EXIT_CODE: u8 = 2;
}

fn shown(value: &Option<String>) -> String {
    value.as_ref().map_or_else(String::new, |value| format!(" = {value}"))
}

fn advice(nearest: &Option<String>) -> String {
    let all = "shardgate --help lists all keys";
    nearest
        .as_ref()
        .map_or_else(|| all.to_owned(), |nearest| format!("did you mean {nearest}? {all}"))
}
