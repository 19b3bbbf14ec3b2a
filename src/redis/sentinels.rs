//! The master's address, according to the sentinels.
//!
//! One sentinel may be cut off and name a former master, so all are asked at once and the majority
//! decides.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Value, cmd};
use tokio::time::timeout;

use super::commands;
use super::dial::{Dialer, Login};
use super::server::Cause;
use crate::config::{RedisAddress, RedisServers};

/// How long a sentinel may take.
const SENTINEL_ANSWER_MAX: std::time::Duration = std::time::Duration::from_millis(500);

impl Dialer {
    /// The master's address by majority: as soon as more than half of all sentinels agree, else the
    /// one with the most votes among those that answer.
    pub(super) async fn ask_sentinels(&self) -> Result<RedisAddress, Cause> {
        let RedisServers::Sentinel { sentinels, master } = self.servers() else {
            return Err("there are no sentinels".into());
        };
        let mut answers: FuturesUnordered<_> = sentinels
            .iter()
            .map(|sentinel| async move {
                match timeout(SENTINEL_ANSWER_MAX, self.ask_sentinel(sentinel, master)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("the sentinel at {sentinel} did not answer").into()),
                }
            })
            .collect();
        let mut cause: Cause = "there are no sentinels".into();
        let mut named = Vec::with_capacity(sentinels.len());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(address) => named.push(address),
                Err(why) => cause = why,
            }
            if let Some((address, votes)) = most_named(&named)
                && votes * 2 > sentinels.len()
            {
                return Ok(address.clone());
            }
        }
        most_named(&named).map(|(address, _)| address.clone()).ok_or(cause)
    }

    async fn ask_sentinel(&self, sentinel: &RedisAddress, master: &str) -> Result<RedisAddress, Cause> {
        let mut question = cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(master);
        let at = sentinel.clone().into();
        let has_own = self.has_sentinel_login();
        let mut connection = if has_own {
            self.open(&at, |_| {}, Login::Sentinel).await?
        } else {
            // Most sentinels have no password, and one without it may refuse a user that only the
            // servers know.
            match self.open(&at, |_| {}, Login::Anonymous).await {
                Err(why) if why.contains("NOAUTH") => self.open(&at, |_| {}, Login::WithoutDatabase).await?,
                opened => opened?,
            }
        };
        let mut reply = connection.send_packed_command(&question).await;
        if !has_own && matches!(&reply, Ok(Value::ServerError(error)) if error.code() == "NOAUTH") {
            connection = self.open(&at, |_| {}, Login::WithoutDatabase).await?;
            reply = connection.send_packed_command(&question).await;
        }
        let words = match reply.map_err(|error| self.cause(&at, &error))? {
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
}

/// The address that was named most often, the earliest of several, and how often.
fn most_named(named: &[RedisAddress]) -> Option<(&RedisAddress, usize)> {
    let votes = |address: &RedisAddress| named.iter().filter(|other| *other == address).count();
    let most = named.iter().map(votes).max()?;
    named
        .iter()
        .find(|address| votes(address) == most)
        .map(|address| (address, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_sentinels_decide() {
        let at = |port| RedisAddress { host: "h".into(), port };
        assert_eq!(most_named(&[]), None);
        assert_eq!(most_named(&[at(1), at(2), at(2)]), Some((&at(2), 2)));
        assert_eq!(most_named(&[at(1), at(2)]), Some((&at(1), 1)));
    }
}
