//! Reads the configuration: from arguments, variables and the file, at the start and again while
//! running.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::time::Duration;

use super::admin::AdminConfig;
use super::error::ConfigError;
use super::sources::{self, CommandLine, KeyValues};
use super::types::{ChannelsConfig, Config};
use super::{checks, text, value};

/// The request of the command line, with its configuration loaded.
#[derive(Debug)]
pub enum Loaded {
    /// Start with this.
    Run(Box<Config>),
    /// Print this and exit 0: `--help`.
    Help(String),
    /// Print this and exit 0: `--version`.
    Version(String),
    /// `--check-config`, and the values are good. The caller checks the files that they name,
    /// prints the text and exits 0.
    Checked(Box<Config>, Effective),
}

/// The output of `--check-config`.
pub struct Effective(KeyValues);

impl Effective {
    /// TOML with every value. `on_host` has the values of unset keys that follow from the host, if
    /// they are known.
    #[must_use]
    pub fn text(&self, config: &Config, on_host: Option<&OnHost>) -> String {
        let mut derived = vec![("gateway_id", value::write_text(&config.gateway_id))];
        if let Some(host) = on_host {
            // As `settings::Settings` reads it: all channels in development mode, and else none.
            let channels = if config.auth.is_development() { "[\"*\"]" } else { "[]" };
            derived.extend(["channels.subscribe", "channels.publish"].map(|key| (key, channels.to_owned())));
            derived.push(("shards", host.cpus.len().to_string()));
            derived.push(("cpus", value::write_text(&value::write_assignment(&host.cpus))));
            derived.push(("limits.connections", host.connections.to_string()));
            derived.push(("limits.handshakes", host.handshakes.to_string()));
        }
        text::effective(&self.0, &derived)
    }
}

impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Effective")
    }
}

/// Values that follow from the host where the configuration sets none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnHost {
    /// The CPU of each shard, `None` where it is not pinned.
    pub cpus: Vec<Option<usize>>,
    /// `limits.connections`
    pub connections: usize,
    /// `limits.handshakes`
    pub handshakes: usize,
}

/// Reads the configuration from arguments (without the program's name) and environment variables.
///
/// ```no_run
/// let outcome = shardgate::config::load(std::env::args_os().skip(1), std::env::vars_os());
/// ```
///
/// # Errors
/// A [`ConfigError`] names the first mistake, strongest source last; print it and exit with
/// [`ConfigError::EXIT_CODE`].
pub fn load<A, E, K, V>(args: A, env: E) -> Result<Loaded, ConfigError>
where
    A: IntoIterator<Item: Into<OsString>>,
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let invocation = match sources::read_args(args.into_iter().map(Into::into).collect())? {
        CommandLine::Help => return Ok(Loaded::Help(text::help())),
        CommandLine::Version => return Ok(Loaded::Version(text::version())),
        CommandLine::Run(invocation) => invocation,
    };
    let env = env
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let settings = KeyValues::gather(&invocation, env)?;
    let config = settings.build(default_gateway_id)?;
    if invocation.check {
        return Ok(Loaded::Checked(Box::new(config), Effective(settings)));
    }
    Ok(Loaded::Run(Box::new(config)))
}

/// Reads the configuration again, for SIGHUP, from the arguments and variables that the program was
/// started with.
///
/// Gives the configuration to run with from now on, and the keys that were changed but need a
/// restart. A gateway without a configured id keeps the one it has.
///
/// # Errors
/// As [`load`]; the running configuration then stays.
pub fn reload<A, E, K, V>(running: &Config, args: A, env: E) -> Result<(Config, Vec<&'static str>), ConfigError>
where
    A: IntoIterator<Item: Into<OsString>>,
    E: IntoIterator<Item = (K, V)>,
    K: Into<OsString>,
    V: Into<OsString>,
{
    let CommandLine::Run(invocation) = sources::read_args(args.into_iter().map(Into::into).collect())? else {
        // A program that prints its help text does not run long enough to reload.
        return Ok((running.clone(), Vec::new()));
    };
    let env = env
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let new = KeyValues::gather(&invocation, env)?.build(|| Ok(running.gateway_id.clone()))?;
    Ok(running.reloadable_changes(&new))
}

/// Reads a time with its unit, as the configuration writes it: `25s`, `500ms`, `2m`, `1h`.
///
/// # Errors
/// The allowed values.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let hint = "a number and its unit, such as 25s, 500ms, 2m or 1h";
    value::parse_duration(text).map_err(|why| format!("{hint}{why}"))
}

/// A URL as logs and errors may show it: passwords and keys are masked.
#[must_use]
pub fn shown_url(url: &str) -> String {
    value::mask_url(url)
}

/// Host name and a random suffix: unique without configuration, and a person can see on which host
/// it runs.
fn default_gateway_id() -> Result<String, ConfigError> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let random = getrandom::u32().map_err(|cause| ConfigError::NoRandom { cause })?;
    let suffix: String = (0..6)
        .map(|at| char::from(ALPHABET[(random >> (5 * at)) as usize % ALPHABET.len()]))
        .collect();
    // The kernel limits it to 64 bytes. Without /proc, the suffix alone distinguishes gateways.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    let host = if host.is_empty() { "shardgate" } else { &host };
    Ok(format!("{host}-{suffix}"))
}

impl Config {
    /// This configuration with all values taken from `new` that can change while running, and the
    /// names of the keys that differ and need a restart.
    ///
    /// Can change: log level, limits, origins, proxies, patterns of channels, TLS, the
    /// administrator's token, keys, and the required claims of tokens.
    ///
    /// The source of credentials needs a restart: a line that is missing from the file for a moment
    /// must not open the gateway to everyone. A gateway that runs without credentials takes no
    /// proxies either, as it would not start with some.
    #[must_use]
    pub fn reloadable_changes(&self, new: &Config) -> (Config, Vec<&'static str>) {
        let auth = if checks::is_same_source(&self.auth.source, &new.auth.source) {
            new.auth.clone()
        } else {
            self.auth.clone()
        };
        let changed = Config {
            log_level: new.log_level,
            limits: new.limits,
            origins: new.origins.clone(),
            proxies: if self.is_open() { &self.proxies } else { &new.proxies }.clone(),
            auth,
            tls: new.tls.clone(),
            channels: ChannelsConfig {
                partitions: self.channels.partitions,
                ..new.channels.clone()
            },
            messages: new.messages.clone(),
            admin: AdminConfig {
                token: new.admin.token.clone(),
                ..self.admin.clone()
            },
            ..self.clone()
        };
        (changed, checks::restart_keys(self, new))
    }
}

impl Default for Config {
    /// Every key at its default, and the gateway id `shardgate`: reproducible, for tests and tools.
    fn default() -> Self {
        KeyValues::defaults()
            .build(|| Ok("shardgate".to_owned()))
            .expect("a test loads the defaults")
    }
}
