//! The opponent of several gateways: the classic design with Redis, on tokio and tungstenite.
//!
//! Duty: the part of [`opponent`] that differs. `SET` where a user is when they connect; for each
//! message one `GET` of the receiver's place and one `PUBLISH` to their gateway, which holds one
//! `SUBSCRIBE`. It is done well: one multiplexed connection without Nagle's delay and with room for
//! all connections' commands, so that commands of different connections travel together; no reply
//! is waited for longer than it takes; a message for a user of this gateway is not published; what
//! is published is the finished frame. Messages of one connection are carried out one after the
//! other, which is what keeps their order. What it does not have: leases, so the places of a dead
//! gateway stay; users on several gateways at once; a new try after the connection to Redis was
//! lost.

mod opponent;
mod tungstenite;

use std::rc::Rc;

use futures_util::StreamExt;
use opponent::{Result, Route, Users};
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig, IntoConnectionInfo, io::tcp::TcpSettings};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tungstenite::Tungstenite;

/// Commands that may wait to be written; 50 by default, fewer than the connections of a benchmark.
const PIPELINE_COMMANDS_MAX: usize = 1024;

struct Classic {
    id: String,
    prefix: String,
    redis: MultiplexedConnection,
}

impl Classic {
    fn place_key(&self, user: &str) -> String {
        format!("{}user:{user}", self.prefix)
    }

    /// Where `to` is, and then there.
    async fn route(&self, users: &Users, to: &str, frame: &Utf8Bytes) -> Result<&'static str> {
        // A clone is a handle; all are the same connection.
        let mut redis = self.redis.clone();
        let place: Option<String> = redis.get(self.place_key(to)).await?;
        let Some(gateway) = place else {
            return Ok("offline");
        };
        if gateway == self.id {
            return Ok(if users.deliver(to, frame) {
                "delivered"
            } else {
                "offline"
            });
        }
        // No user id has a control character.
        let packet = format!("{to}\n{}", frame.as_str());
        let takers: u64 = redis.publish(channel(&self.prefix, &gateway), packet).await?;
        Ok(if takers > 0 { "routed" } else { "offline" })
    }
}

impl Route for Classic {
    /// Carrying out a message takes two round trips: what came for this connection meanwhile is
    /// written in between. With 64, as without Redis, CPU per message was the same within noise,
    /// and p99 with 8 in flight 90 to 100 ms instead of 20 to 40.
    const READ_BATCH_MAX: usize = 1;

    fn gateway_id(&self) -> &str {
        &self.id
    }

    async fn join(&self, user: &str) -> Result<()> {
        let _: () = self.redis.clone().set(self.place_key(user), &self.id).await?;
        Ok(())
    }

    async fn leave(&self, user: &str) {
        // Nobody is left to be told; the next connection of this user writes the place anew.
        let _: redis::RedisResult<()> = self.redis.clone().del(self.place_key(user)).await;
    }

    async fn send(&self, users: &Users, to: &str, frame: Utf8Bytes) -> &'static str {
        self.route(users, to, &frame).await.unwrap_or("failed")
    }
}

fn channel(prefix: &str, gateway: &str) -> String {
    format!("{prefix}gw:{gateway}")
}

async fn connect(url: &str, prefix: String, id: String, users: Rc<Users>) -> Result<Classic> {
    let tcp = TcpSettings::default().set_nodelay(true);
    let client = redis::Client::open(url.into_connection_info()?.set_tcp_settings(tcp))?;
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_pipeline_buffer_size(PIPELINE_COMMANDS_MAX);
    let redis = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut inbox = client.get_async_pubsub().await?;
    inbox.subscribe(channel(&prefix, &id)).await?;
    tokio::task::spawn_local(async move {
        let mut packets = inbox.into_on_message();
        while let Some(packet) = packets.next().await {
            let text = std::str::from_utf8(packet.get_payload_bytes()).unwrap_or_default();
            if let Some((to, frame)) = text.split_once('\n') {
                users.deliver(to, &Utf8Bytes::from(frame));
            }
        }
        eprintln!("the subscription ended: no message comes from other gateways any more");
    });
    Ok(Classic { id, prefix, redis })
}

fn main() -> Result<()> {
    let [address, cpu, url, prefix, id] =
        opponent::arguments(["--listen", "--cpu", "--redis-url", "--redis-prefix", "--gateway-id"])?;
    let Some(address) = address else {
        // `cargo bench` and `cargo test --all-targets` start every bench: a server would never end.
        println!(
            "naive_gateway --listen ADDR --redis-url URL --gateway-id ID [--redis-prefix P] [--cpu N]: \
             nothing to do without an address"
        );
        return Ok(());
    };
    let url = url.ok_or("--redis-url is missing")?;
    let id = id.ok_or("--gateway-id is missing")?;
    let prefix = prefix.unwrap_or_else(|| "naive:".to_owned());
    opponent::run::<Tungstenite, _>(&address, cpu.as_deref(), async move |users| {
        connect(&url, prefix, id, users).await
    })
}
