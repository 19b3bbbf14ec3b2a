//! Opens connections to masters that take commands, wherever discovery leads.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, Value, cmd};
use tokio::time::timeout;

use super::dial::{ANSWER_MAX, Dialer, Login};
use super::facts::{self, Facts};
use super::server::{Cause, Endpoint, Line, Location, Server};
use super::{commands, remedies};
use crate::config::RedisServers;

impl Dialer {
    /// The master that the location leads to by now, if it is another one than this. Sentinels are
    /// asked. A name or a proxy is followed once more, and twice if it leads elsewhere: one that
    /// rotates between its servers counts as no move.
    pub(super) async fn find_another(&self, location: &Location, current: &Server) -> Result<Option<Server>, Cause> {
        if let Location::BySentinel = location
            && Endpoint::from(self.ask_sentinels().await?) == current.at
        {
            return Ok(None);
        }
        let (first, _) = self.open_master(location, Line::Scout, |_| {}).await?;
        if first.is(current) {
            return Ok(None);
        }
        let (second, _) = self.open_master(location, Line::Scout, |_| {}).await?;
        Ok(second.is(&first).then_some(second))
    }

    /// Opens a connection to the master at that location, once the server has confirmed that it is
    /// one. For commands tracking is on. Pushes of the server go to `push`, on the connection's own
    /// task.
    pub(super) async fn open_master<F>(
        &self,
        location: &Location,
        line: Line,
        push: F,
    ) -> Result<(Server, MultiplexedConnection), Cause>
    where
        F: Fn(PushInfo) + Send + Sync + 'static,
    {
        self.within(location, async {
            let at = match location {
                Location::At(endpoint) => endpoint.clone(),
                Location::BySentinel => self.ask_sentinels().await?.into(),
            };
            let mut connection = self.open(&at, push, Login::Full).await?;
            let run_id = self.check_master(&at, &mut connection, line).await?;
            Ok((Server { at, run_id }, connection))
        })
        .await
    }

    async fn within<T>(
        &self,
        location: &Location,
        opening: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        match timeout(ANSWER_MAX, opening).await {
            Ok(opened) => opened,
            Err(_) => {
                let who = match location {
                    Location::At(endpoint) => format!("Redis at {endpoint}"),
                    Location::BySentinel => "Redis behind the sentinels".to_owned(),
                };
                let words = format!("{who} did not let us in within {} s", ANSWER_MAX.as_secs());
                Err(remedies::with_silent(words, self.is_tls()).into())
            }
        }
    }

    /// Checks that the server is a master and ready, and sends our name. Returns the id of this
    /// life of the server.
    async fn check_master(
        &self,
        at: &Endpoint,
        connection: &mut MultiplexedConnection,
        line: Line,
    ) -> Result<Option<Arc<str>>, Cause> {
        let mut questions = vec![
            cmd("CLIENT").arg("SETNAME").arg("shardgate").clone(),
            cmd("ROLE"),
            cmd("INFO").arg("server").clone(),
            // Unlike most of a connection's set-up it is refused while the server loads its data.
            cmd("PING"),
        ];
        if line == Line::Commands {
            // Not NOLOOP: it withholds our own changes, but still forgets that we have read the
            // key. The next change by another client would then not be notified either.
            questions.push(cmd("CLIENT").arg("TRACKING").arg("ON").clone());
        }
        let replies = self.ask(at, connection, &questions).await?;
        let mut facts = Facts::default();
        for (which, reply) in replies.iter().enumerate() {
            match (which, reply) {
                // A name is a courtesy. A user without permission for the role gets READONLY
                // instead; without permission for the run id the address identifies the server.
                (0..=2, Value::ServerError(error)) if error.code() == "NOPERM" => {}
                (_, Value::ServerError(error)) => {
                    return Err(format!("Redis at {at} refused: {}", commands::explained(error)).into());
                }
                (1, Value::Array(role)) if !says_master(role) => {
                    let words = format!("Redis at {at} is a read-only replica, not a master");
                    return Err(remedies::with(words, "READONLY").into());
                }
                (2, info) => facts = Facts::read(info),
                _ => {}
            }
        }
        if facts.is_of_cluster && !matches!(self.servers(), RedisServers::Cluster(_)) {
            // Of a cluster of one server every key is here, and so it may be used like one alone.
            let info = self.ask(at, connection, &[cmd("CLUSTER").arg("INFO").clone()]).await?;
            if info.first().is_some_and(facts::shares_slots) {
                let words = format!("Redis at {at} has a part of the keys only");
                return Err(remedies::with(words, remedies::NOT_ALONE).into());
            }
        }
        Ok(facts.run_id)
    }
}

fn says_master(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(word)) if word == b"master")
        || matches!(role.first(), Some(Value::SimpleString(word)) if word == "master")
}
