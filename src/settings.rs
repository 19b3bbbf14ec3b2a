//! The settings of shards, made of the configuration and of the host's limits.
//!
//! Immutable; shared by `Arc`, and replaced as a whole when the configuration is read again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::networks::{NetworkError, Networks};
use crate::auth::Verifier;
use crate::config::origins::{OriginError, OriginPolicy};
use crate::config::patterns::{PatternError, Patterns};
use crate::config::{Config, Heartbeat, Limits, Listen, Secret};
use crate::ids::{is_plain_user_id, is_valid_user_id};
use crate::jws::{BadKey, KeySet};
use crate::tls::ServerConfig;
use crate::wire::ws::credentials::Credentials;
use crate::wire::ws::head::Policy;

/// `limits.handshakes` of a shard if none is configured: 10,000 connects per second that take 400
/// ms each.
pub const HANDSHAKES_PER_SHARD: usize = 4096;

/// The settings of a shard; replaced as a whole when the configuration is read again.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits of connections, users and handshakes.
    pub limits: Limits,
    /// `limits.connections`, or what nofile permits less a reserve.
    pub connections_max: usize,
    /// Heartbeat times.
    pub heartbeat: Heartbeat,
    /// Time to show a credential.
    pub auth_timeout: Duration,
    /// Decides on tokens; `None` in development mode.
    pub auth: Option<Verifier>,
    /// The cookie that may carry a token.
    pub cookie: String,
    /// A handshake without a token is refused.
    pub token_required: bool,
    /// Browsers whose credential is refused get a close code instead of an HTTP status.
    pub browser_close: bool,
    /// User ids may have format characters and outer spaces.
    pub any_user_id: bool,
    /// The public listener refuses requests for other hosts than this machine.
    pub local_only: bool,
    /// And so does that of administrators.
    pub admin_local_only: bool,
    /// Allowed origins.
    pub origins: OriginPolicy,
    /// Proxies that are trusted to name their clients' addresses.
    pub proxies: Networks,
    /// Channels that every user may subscribe to.
    pub subscribe: Patterns,
    /// Channels that every user may publish to.
    pub publish: Patterns,
    /// Users that every user may write to, unless the token lists its own.
    pub send: Patterns,
    /// Users that every user may see, unless the token lists its own.
    pub see: Patterns,
    /// Serve `/echo`.
    pub echo: bool,
    /// The TLS configuration of new connections; `None`: plain text.
    pub tls: Option<Arc<ServerConfig>>,
    /// The secret of administrators; `None`: there is no admin API.
    pub admin_token: Option<Secret>,
    /// Administrators and their tools have a listener of their own.
    pub admin_elsewhere: bool,
}

/// Lists that a shard cannot use. The configuration room refuses them earlier and with their
/// source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// `origins` has an entry that is no origin.
    #[error("origins: {0}")]
    Origins(#[from] OriginError),
    /// `proxies` has an entry that is no network.
    #[error("proxies: {0}")]
    Proxies(#[from] NetworkError),
    /// `auth.key` is no key for `auth.algorithm`.
    #[error("auth.key: {0}")]
    Key(#[from] BadKey),
    /// `channels.subscribe` has an entry that is no pattern.
    #[error("channels.subscribe: {0}")]
    Subscribe(#[source] PatternError),
    /// `channels.publish` has an entry that is no pattern.
    #[error("channels.publish: {0}")]
    Publish(#[source] PatternError),
    /// `messages.send` has an entry that is no pattern.
    #[error("messages.send: {0}")]
    Send(#[source] PatternError),
    /// `messages.presence` has an entry that is no pattern.
    #[error("messages.presence: {0}")]
    Presence(#[source] PatternError),
}

impl Settings {
    /// The settings of `config`, with at most `connections_max` connections. With a JWKS URL no key
    /// is known.
    ///
    /// # Errors
    /// Origins, proxies, patterns or the key cannot be understood.
    pub fn new(config: &Config, connections_max: usize) -> Result<Self, SettingsError> {
        Self::with_keys(config, connections_max, None)
    }

    /// As [`Settings::new`], with the keys that were fetched.
    ///
    /// # Errors
    /// As there.
    pub fn with_keys(
        config: &Config,
        connections_max: usize,
        fetched: Option<&Arc<KeySet>>,
    ) -> Result<Self, SettingsError> {
        let auth = Verifier::new(&config.auth, fetched)?;
        let development = auth.is_none();
        let local_only = development && !config.insecure;
        // Browsers reach no Unix socket. An address for other hosts has names of other hosts.
        let is_loopback = |listen: &Listen| !matches!(listen, Listen::Unix(_)) && listen.is_local();
        let admin_local_only = local_only && config.admin.listen.as_ref().is_some_and(is_loopback);
        let channels = &config.channels;
        Ok(Settings {
            limits: config.limits,
            connections_max,
            heartbeat: config.heartbeat,
            auth_timeout: config.auth_timeout,
            auth,
            cookie: config.auth.cookie.clone(),
            token_required: config.auth.required_at_handshake,
            browser_close: config.auth.browser_close,
            any_user_id: config.auth.any_user_id,
            local_only,
            admin_local_only,
            origins: OriginPolicy::parse(&config.origins)?.in_development(development),
            proxies: Networks::parse(&config.proxies)?,
            subscribe: patterns(channels.subscribe.as_deref(), development).map_err(SettingsError::Subscribe)?,
            publish: patterns(channels.publish.as_deref(), development).map_err(SettingsError::Publish)?,
            send: Patterns::parse(&config.messages.send).map_err(SettingsError::Send)?,
            see: Patterns::parse(&config.messages.presence).map_err(SettingsError::Presence)?,
            echo: config.echo,
            tls: None,
            admin_token: config.admin.token.clone(),
            admin_elsewhere: config.admin.listen.is_some(),
        })
    }

    /// The same with TLS, or without. The control thread reads the certificates.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<ServerConfig>>) -> Self {
        let origins = self.origins.over_tls(tls.is_some());
        Settings { tls, origins, ..self }
    }
}

/// The configured patterns. Without any: every channel in development mode, and else none. In
/// development mode a permission would keep nobody out who takes another name.
fn patterns(configured: Option<&[String]>, development: bool) -> Result<Patterns, PatternError> {
    match configured {
        Some(patterns) => Patterns::parse(patterns),
        None if development => Ok(Patterns::any()),
        None => Ok(Patterns::default()),
    }
}

impl Policy for Settings {
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        self.origins.allows(origin, host)
    }

    fn serves_echo(&self) -> bool {
        self.echo
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.contains(address)
    }

    fn is_local_only(&self) -> bool {
        self.local_only
    }

    fn takes_user_id(&self, user: &str) -> bool {
        if self.any_user_id {
            is_valid_user_id(user)
        } else {
            is_plain_user_id(user)
        }
    }

    fn credentials(&self) -> Credentials<'_> {
        if self.auth.is_none() {
            return Credentials::Names;
        }
        Credentials::Tokens {
            cookie: &self.cookie,
            required: self.token_required,
            browser_close: self.browser_close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_open_in_development_mode_only_unless_configured() {
        assert_eq!(patterns(None, true), Ok(Patterns::any()));
        assert_eq!(patterns(None, false), Ok(Patterns::default()));
        for development in [true, false] {
            assert_eq!(patterns(Some(&[]), development), Ok(Patterns::default()));
            let news = patterns(Some(&["news".to_owned()]), development).unwrap();
            assert!(news.allows("alice", "news") && !news.allows("alice", "room"));
        }
    }

    #[test]
    fn each_list_is_its_own_and_named_when_it_is_bad() {
        let mut config = Config::default();
        config.channels.publish = Some(vec!["inbox:{user}".to_owned()]);
        let settings = Settings::new(&config, 1).unwrap();
        assert!(settings.subscribe.allows("alice", "inbox:bob") && !settings.publish.allows("alice", "inbox:bob"));
        config.channels.publish = Some(vec!["{".to_owned()]);
        let said = Settings::new(&config, 1).unwrap_err().to_string();
        assert!(said.starts_with("channels.publish: \"{\" has"), "{said}");
    }
}
