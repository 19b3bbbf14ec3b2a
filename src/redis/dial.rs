//! Opens connections: address, TLS, credentials, socket options.
//!
//! Owns the target with its credentials. Its error texts never contain them.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, RedisConnectionInfo, TlsCertificates, Value, cmd,
};
use tokio::time::timeout;

use super::server::{Cause, Endpoint};
use super::topology::ClusterSlots;
use super::{commands, remedies};
use crate::config::{RedisAddress, RedisServers, RedisTarget};

/// The longest that a server may take to let us in, or to answer one pipeline. A slower server is
/// treated as gone, so the client gets its error within 2.5 s.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The longest that one of several servers of a cluster may take to list the cluster's servers.
const LOOK_ANSWER_MAX: Duration = Duration::from_secs(1);
/// Unacknowledged bytes for this long end a connection in the kernel. This covers connections
/// without a pending reply.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that may wait inside the crate's connection before their senders wait, in order.
const PIPELINE_BUFFER: usize = 1024;

/// Opens connections to one target.
#[derive(Debug)]
pub(super) struct Dialer {
    target: RedisTarget,
}

/// As whom a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// With the credentials, in the database.
    Full,
    /// With the credentials; sentinels have no databases.
    WithoutDatabase,
    /// With the credentials for sentinels.
    Sentinel,
    /// Without credentials.
    Anonymous,
}

/// The command for a server's view of the cluster. `CLUSTER SHARDS` is the newer one, but Redis 6
/// does not know it, and all later versions answer this one.
pub(super) fn view_commands() -> [Cmd; 2] {
    [cmd("CLUSTER").arg("INFO").clone(), cmd("CLUSTER").arg("SLOTS").clone()]
}

impl Dialer {
    pub(super) fn new(target: RedisTarget) -> Dialer {
        if target.tls {
            // The crate takes the process's provider. One that is already installed is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        Dialer { target }
    }

    pub(super) fn servers(&self) -> &RedisServers {
        &self.target.servers
    }

    pub(super) fn is_tls(&self) -> bool {
        self.target.tls
    }

    /// Sentinels have credentials of their own.
    pub(super) fn has_sentinel_login(&self) -> bool {
        self.target.sentinel_username.is_some() || self.target.sentinel_password.is_some()
    }

    /// Asks these servers in turn for their view of the cluster; the first view is taken.
    pub(super) async fn look(&self, candidates: Vec<RedisAddress>) -> Result<ClusterSlots, Cause> {
        let mut cause: Cause = "no server of the cluster is known".into();
        for address in candidates {
            match timeout(LOOK_ANSWER_MAX, self.look_from(&address)).await {
                Ok(Ok(shared)) => return Ok(shared),
                Ok(Err(why)) => cause = why,
                Err(_) => cause = format!("Redis at {address} did not answer").into(),
            }
        }
        Err(cause)
    }

    async fn look_from(&self, address: &RedisAddress) -> Result<ClusterSlots, Cause> {
        let at = address.clone().into();
        let mut connection = self.open(&at, |_| {}, Login::Full).await?;
        let mut pipeline = Pipeline::new();
        for command in view_commands() {
            pipeline.add_command(command);
        }
        let replies = connection.send_packed_commands(&pipeline, 0, 2).await;
        let replies = replies.map_err(|error| self.cause(&at, &error))?;
        if let Some(Value::ServerError(error)) = replies.iter().find(|reply| matches!(reply, Value::ServerError(_))) {
            return Err(format!("Redis at {address} refused: {}", commands::explained(error)).into());
        }
        match &replies[..] {
            [info, slots] => ClusterSlots::read(info, slots, address),
            _ => None,
        }
        .ok_or_else(|| format!("Redis at {address} does not say who is in the cluster").into())
    }

    /// A connection that is logged in, and no more.
    pub(super) async fn open<F>(&self, at: &Endpoint, push: F, as_whom: Login) -> Result<MultiplexedConnection, Cause>
    where
        F: Fn(PushInfo) + Send + Sync + 'static,
    {
        let mut login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(if as_whom == Login::Full {
                i64::from(self.target.db)
            } else {
                0
            })
            // Two commands less per connection; CLIENT SETNAME identifies us.
            .set_skip_set_lib_name();
        let target = &self.target;
        let (username, password) = match as_whom {
            Login::Full | Login::WithoutDatabase => (&target.username, &target.password),
            Login::Sentinel => (&target.sentinel_username, &target.sentinel_password),
            Login::Anonymous => (&None, &None),
        };
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(password);
        }
        let addr = match at.clone() {
            Endpoint::Socket(path) => ConnectionAddr::Unix(path),
            Endpoint::Tcp(RedisAddress { host, port }) if target.tls => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
            Endpoint::Tcp(RedisAddress { host, port }) => ConnectionAddr::Tcp(host, port),
        };
        let tcp = TcpSettings::default()
            // Without it throughput drops by 39 to 68 %, as replies wait for delayed
            // acknowledgements.
            .set_nodelay(true)
            .set_user_timeout(TCP_USER_TIMEOUT)
            .set_keepalive(
                TcpKeepalive::new()
                    .with_time(TCP_USER_TIMEOUT)
                    .with_interval(Duration::from_secs(1))
                    .with_retries(3),
            );
        let failed = |error: &redis::RedisError| -> Cause { self.cause(at, error) };
        let info = addr
            .into_connection_info()
            .map_err(|error| failed(&error))?
            .set_tcp_settings(tcp)
            .set_redis_settings(login);
        let client = if self.target.tls {
            Client::build_with_tls(info, self.certificates()?)
        } else {
            Client::open(info)
        };
        let settings = AsyncConnectionConfig::new()
            // Every wait has its own limit with its own meaning, so none of the crate's.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER)
            .set_push_sender(move |info| {
                push(info);
                Ok::<(), redis::aio::SendError>(())
            });
        let client = client.map_err(|error| failed(&error))?;
        let opened = client.get_multiplexed_async_connection_with_config(&settings).await;
        opened.map_err(|error| failed(&error))
    }

    /// The files are read for each connection, so a replaced file counts from the next one on.
    fn certificates(&self) -> Result<TlsCertificates, Cause> {
        let read = |key: &str, path: &Path| -> Result<Vec<u8>, Cause> {
            std::fs::read(path).map_err(|error| format!("cannot read {key} {path:?}: {error}").into())
        };
        let client_tls = match &self.target.client {
            Some((cert, key)) => Some(ClientTlsConfig {
                client_cert: read("redis.cert", cert)?,
                client_key: read("redis.key", key)?,
            }),
            None => None,
        };
        let root_cert = match &self.target.ca {
            Some(path) => Some(read("redis.ca", path)?),
            None => None,
        };
        Ok(TlsCertificates { client_tls, root_cert })
    }

    /// The replies to these questions.
    pub(super) async fn ask(
        &self,
        at: &Endpoint,
        connection: &mut MultiplexedConnection,
        questions: &[Cmd],
    ) -> Result<Vec<Value>, Cause> {
        let mut pipeline = Pipeline::new();
        for question in questions {
            pipeline.add_command(question.clone());
        }
        let replies = connection.send_packed_commands(&pipeline, 0, questions.len()).await;
        replies.map_err(|error| self.cause(at, &error))
    }

    /// In words that name the server, and what to do.
    pub(super) fn cause(&self, at: &Endpoint, error: &redis::RedisError) -> Cause {
        let words = if error.is_io_error() || error.is_connection_dropped() {
            format!("Redis at {at} cannot be reached: {error}")
        } else {
            format!("Redis at {at} refused the connection: {error}")
        };
        remedies::with_connecting(words, error, self.target.tls).into()
    }
}
