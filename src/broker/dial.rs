//! Opens connections: address, TLS, credentials, socket options, and the questions that show whether a server is a
//! master that can be asked.
//!
//! Owns the target with its credentials; what it says of a failure never has them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo,
    RedisConnectionInfo, TlsCertificates, Value, cmd,
};
use tokio::time::timeout;

use super::topology::View;
use super::{commands, remedies};
use crate::config::{RedisAddress, RedisServers, RedisTarget};

/// How long a server may take for anything: to let us in, or to answer one pipeline. A server that takes longer is
/// treated as gone, so that the asker hears within [2.5 s](super::Broker::submit).
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a sentinel may take: several must fit into one attempt.
const SENTINEL_ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long one of several servers of a cluster may take to say who is in it.
const LOOK_ANSWER_MAX: Duration = Duration::from_secs(1);
/// Unacknowledged bytes for this long end a connection in the kernel, for those that nobody waits for.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that may wait inside the crate's connection before their senders wait, in order.
const PIPELINE_BUFFER: usize = 1024;

/// Why a server cannot be asked, for the log and `/readyz`.
pub(super) type Cause = Arc<str>;

/// Where a server is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Here.
    At(RedisAddress),
    /// Wherever the sentinels say.
    BySentinel,
}

/// Opens connections to one target.
#[derive(Debug)]
pub(super) struct Dialer {
    target: RedisTarget,
    /// Which sentinel is asked first.
    first_sentinel: Cell<usize>,
}

/// As whom a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    /// With the credentials, in the database.
    Full,
    /// With the credentials; sentinels have no databases.
    WithoutDatabase,
    /// As nobody.
    Anonymous,
}

/// What a server is asked for its view of the cluster. `CLUSTER SHARDS` would be the newer question, but Redis 6 does not
/// know it, and all later ones answer this one.
pub(super) fn view_commands() -> [Cmd; 2] {
    [cmd("CLUSTER").arg("INFO").clone(), cmd("CLUSTER").arg("SLOTS").clone()]
}

/// What a connection to a master is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Commands,
    Subscriptions,
}

impl Dialer {
    pub(super) fn new(target: RedisTarget) -> Dialer {
        if target.tls {
            // The crate takes the process's provider; that somebody chose one before is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        Dialer {
            target,
            first_sentinel: Cell::new(0),
        }
    }

    pub(super) fn servers(&self) -> &RedisServers {
        &self.target.servers
    }

    /// Opens a connection to the master at that place, which has said that it can be asked. For commands tracking is on.
    /// What the server says unasked goes to `push`, on the connection's own task.
    pub(super) async fn open_master<F>(
        &self,
        place: &Place,
        line: Line,
        push: F,
    ) -> Result<(RedisAddress, MultiplexedConnection), Cause>
    where
        F: Fn(PushInfo) + Send + Sync + 'static,
    {
        self.within(place, async {
            let address = self.find(place).await?;
            let mut connection = self.open(&address, push, Login::Full).await?;
            self.check_master(&address, &mut connection, line).await?;
            Ok((address, connection))
        })
        .await
    }

    async fn within<T>(&self, place: &Place, opening: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
        match timeout(ANSWER_MAX, opening).await {
            Ok(opened) => opened,
            Err(_) => {
                let who = match place {
                    Place::At(address) => format!("Redis at {address}"),
                    Place::BySentinel => "Redis behind the sentinels".to_owned(),
                };
                let words = format!("{who} did not let us in within {} s", ANSWER_MAX.as_secs());
                Err(remedies::with_silent(words, self.target.tls).into())
            }
        }
    }

    async fn find(&self, place: &Place) -> Result<RedisAddress, Cause> {
        match place {
            Place::At(address) => Ok(address.clone()),
            Place::BySentinel => self.ask_sentinels().await,
        }
    }

    /// Where the first sentinel that answers says that the master is. Sentinels that were asked in vain are asked last
    /// the next time.
    async fn ask_sentinels(&self) -> Result<RedisAddress, Cause> {
        let RedisServers::Sentinel { sentinels, master } = &self.target.servers else {
            return Err("there are no sentinels".into());
        };
        let mut cause: Cause = "there are no sentinels".into();
        for _ in 0..sentinels.len() {
            let first = self.first_sentinel.get() % sentinels.len();
            let sentinel = &sentinels[first];
            cause = match timeout(SENTINEL_ANSWER_MAX, self.ask_sentinel(sentinel, master)).await {
                Ok(Ok(address)) => return Ok(address),
                Ok(Err(why)) => why,
                Err(_) => format!("the sentinel at {sentinel} did not answer").into(),
            };
            self.first_sentinel.set(first + 1);
        }
        Err(cause)
    }

    async fn ask_sentinel(&self, sentinel: &RedisAddress, master: &str) -> Result<RedisAddress, Cause> {
        let mut question = cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(master);
        // Most sentinels have no password, and one without it may refuse a user that only the servers know.
        let mut connection = match self.open(sentinel, |_| {}, Login::Anonymous).await {
            Err(why) if why.contains("NOAUTH") => self.open(sentinel, |_| {}, Login::WithoutDatabase).await?,
            opened => opened?,
        };
        let mut reply = connection.send_packed_command(&question).await;
        if matches!(&reply, Ok(Value::ServerError(error)) if error.code() == "NOAUTH") {
            connection = self.open(sentinel, |_| {}, Login::WithoutDatabase).await?;
            reply = connection.send_packed_command(&question).await;
        }
        let words = match reply.map_err(|error| self.cause(sentinel, &error))? {
            Value::Array(words) => words,
            Value::ServerError(error) => {
                return Err(format!("the sentinel at {sentinel} refused: {}", commands::explained(&error)).into());
            }
            _ => return Err(format!("the sentinel at {sentinel} knows no master {master:?}").into()),
        };
        let text = |at: usize| match words.get(at) {
            Some(Value::BulkString(text)) => std::str::from_utf8(text).ok(),
            _ => None,
        };
        match (text(0), text(1).and_then(|port| port.parse().ok())) {
            (Some(host), Some(port)) => Ok(RedisAddress {
                host: host.to_owned(),
                port,
            }),
            _ => Err(format!("the sentinel at {sentinel} gave no address").into()),
        }
    }

    /// Asks these servers, one after the other, for their view of the cluster; the first that has one is it.
    pub(super) async fn look(&self, candidates: Vec<RedisAddress>) -> Result<View, Cause> {
        let mut cause: Cause = "no server of the cluster is known".into();
        for address in candidates {
            match timeout(LOOK_ANSWER_MAX, self.look_from(&address)).await {
                Ok(Ok(view)) => return Ok(view),
                Ok(Err(why)) => cause = why,
                Err(_) => cause = format!("Redis at {address} did not answer").into(),
            }
        }
        Err(cause)
    }

    async fn look_from(&self, address: &RedisAddress) -> Result<View, Cause> {
        let mut connection = self.open(address, |_| {}, Login::Full).await?;
        let mut pipeline = Pipeline::new();
        for command in view_commands() {
            pipeline.add_command(command);
        }
        let replies = connection.send_packed_commands(&pipeline, 0, 2).await;
        let replies = replies.map_err(|error| self.cause(address, &error))?;
        if let Some(Value::ServerError(error)) = replies.iter().find(|reply| matches!(reply, Value::ServerError(_))) {
            return Err(format!("Redis at {address} refused: {}", commands::explained(error)).into());
        }
        match &replies[..] {
            [info, slots] => View::read(info, slots, address),
            _ => None,
        }
        .ok_or_else(|| format!("Redis at {address} does not say who is in the cluster").into())
    }

    /// A connection that is logged in, and no more.
    async fn open<F>(&self, address: &RedisAddress, push: F, as_whom: Login) -> Result<MultiplexedConnection, Cause>
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
            // Two commands less per connection; CLIENT SETNAME tells who we are.
            .set_skip_set_lib_name();
        if as_whom != Login::Anonymous {
            if let Some(username) = &self.target.username {
                login = login.set_username(username);
            }
            if let Some(password) = &self.target.password {
                login = login.set_password(password);
            }
        }
        let RedisAddress { host, port } = address.clone();
        let addr = if self.target.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let tcp = TcpSettings::default()
            // Without it throughput drops by 39 to 68 %, as replies wait for delayed acknowledgements.
            .set_nodelay(true)
            .set_user_timeout(TCP_USER_TIMEOUT)
            .set_keepalive(
                TcpKeepalive::new()
                    .with_time(TCP_USER_TIMEOUT)
                    .with_interval(Duration::from_secs(1))
                    .with_retries(3),
            );
        let failed = |error: &redis::RedisError| -> Cause { self.cause(address, error) };
        let info = addr
            .into_connection_info()
            .map_err(|error| failed(&error))?
            .set_tcp_settings(tcp)
            .set_redis_settings(login);
        let client = if self.target.tls {
            let certificates = TlsCertificates {
                client_tls: None,
                root_cert: self.authorities()?,
            };
            Client::build_with_tls(info, certificates)
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

    /// The file is read each time: an authority that was replaced counts from the next connection on.
    fn authorities(&self) -> Result<Option<Vec<u8>>, Cause> {
        let Some(path) = &self.target.ca else { return Ok(None) };
        match std::fs::read(path) {
            Ok(pem) => Ok(Some(pem)),
            Err(error) => Err(format!("cannot read redis.ca {path:?}: {error}").into()),
        }
    }

    /// Asks the server whether it is a master and ready, and tells it who we are.
    async fn check_master(
        &self,
        address: &RedisAddress,
        connection: &mut MultiplexedConnection,
        line: Line,
    ) -> Result<(), Cause> {
        let mut questions = Pipeline::new();
        questions.add_command(cmd("CLIENT").arg("SETNAME").arg("shardgate").clone());
        questions.add_command(cmd("ROLE"));
        // Unlike most of a connection's set-up it is refused while the server loads its data.
        questions.add_command(cmd("PING"));
        if line == Line::Commands {
            // Not NOLOOP: it withholds what we change ourselves, but forgets all the same that we have read the key, and so
            // the next change of somebody else is not told either.
            questions.add_command(cmd("CLIENT").arg("TRACKING").arg("ON").clone());
        }
        let count = questions.len();
        let replies = connection.send_packed_commands(&questions, 0, count).await;
        let replies = replies.map_err(|error| self.cause(address, &error))?;
        for (at, reply) in replies.iter().enumerate() {
            match (at, reply) {
                // A name is a courtesy, and who may not ask for the role finds it out by READONLY.
                (0 | 1, Value::ServerError(error)) if error.code() == "NOPERM" => {}
                (_, Value::ServerError(error)) => {
                    return Err(format!("Redis at {address} refused: {}", commands::explained(error)).into());
                }
                (1, Value::Array(role)) if !says_master(role) => {
                    return Err(format!("Redis at {address} is a read-only replica, not a master").into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// In words that name the server, and what to do.
    pub(super) fn cause(&self, address: &RedisAddress, error: &redis::RedisError) -> Cause {
        let words = if error.is_io_error() || error.is_connection_dropped() {
            format!("Redis at {address} cannot be reached: {error}")
        } else {
            format!("Redis at {address} refused the connection: {error}")
        };
        remedies::with_connecting(words, error, self.target.tls).into()
    }
}

fn says_master(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(word)) if word == b"master")
        || matches!(role.first(), Some(Value::SimpleString(word)) if word == "master")
}
