//! What the opponents have in common: the gateway's wire contract, as far as the benchmark uses it, on tokio and
//! tungstenite. Where a message goes is the part that differs: [`Route`].
//!
//! Duty: to be the server that a competent user of tokio would write for one core, so that a comparison with
//! shardgate says something. What it does for speed and memory, on purpose: one task per connection and no split
//! of the stream (no lock between halves), a read buffer of 4 KiB instead of 128, everything that is ready is
//! handled before one flush, a frame is encoded once for all connections of a user, the envelope is parsed with
//! borrows and the content is spliced through, message ids come without a system call, and the future of the
//! handshake is boxed so that it does not stay in the connection's task. A publication is encoded once, too, and all
//! queues of a channel share it.
//! What it does not have: authentication, limits per connection, metrics, presence, channels beyond one process.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

const PING_INTERVAL: Duration = Duration::from_secs(25);
const LIFE_TIMEOUT: Duration = Duration::from_secs(90);
/// How many frames may wait for one connection before it counts as too slow.
const QUEUE_FRAMES_MAX: usize = 1024;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Finds the connections that a message is for, and is told who is here.
pub(crate) trait Route: 'static {
    /// How many frames one connection may read before its own messages are written and the others get their turn.
    const READ_BATCH_MAX: usize;

    /// How this gateway calls itself.
    fn gateway_id(&self) -> &str;

    /// The first connection of `user` is there, and gets its `welcome` after this.
    async fn join(&self, user: &str) -> Result<()>;

    /// The last connection of `user` here has gone.
    async fn leave(&self, user: &str);

    /// Brings `frame` to `to` and says what became of it, in the words of `ack`.
    async fn send(&self, users: &Users, to: &str, frame: Utf8Bytes) -> &'static str;
}

/// The connections here. One thread, so a `RefCell`, never borrowed across an `await`.
#[derive(Default)]
pub(crate) struct Users {
    users: RefCell<HashMap<Box<str>, Vec<Device>>>,
}

/// The queues of a channel's subscribers, by their connections.
type Subscribers = HashMap<uuid::Uuid, mpsc::Sender<Utf8Bytes>>;

/// Who subscribed to what here. As with [`Users`].
#[derive(Default)]
struct Channels {
    channels: RefCell<HashMap<Rc<str>, Subscribers>>,
}

/// Everything that tasks share.
struct Hub<R> {
    users: Rc<Users>,
    channels: Channels,
    route: R,
}

/// One live connection of a user, as senders see it.
struct Device {
    conn: uuid::Uuid,
    queue: mpsc::Sender<Utf8Bytes>,
}

impl Users {
    /// True for the first connection of `user`.
    fn join(&self, user: &str, conn: uuid::Uuid, queue: mpsc::Sender<Utf8Bytes>) -> bool {
        let mut users = self.users.borrow_mut();
        let device = Device { conn, queue };
        match users.get_mut(user) {
            Some(devices) => {
                devices.push(device);
                false
            }
            None => {
                users.insert(user.into(), vec![device]);
                true
            }
        }
    }

    /// True if that was the last connection of `user`.
    fn leave(&self, user: &str, conn: uuid::Uuid) -> bool {
        let mut users = self.users.borrow_mut();
        let Some(devices) = users.get_mut(user) else {
            return false;
        };
        devices.retain(|device| device.conn != conn);
        let gone = devices.is_empty();
        if gone {
            users.remove(user);
        }
        gone
    }

    /// Queues `frame` for every connection of `user`; false if nobody took it.
    pub(crate) fn deliver(&self, user: &str, frame: &Utf8Bytes) -> bool {
        let users = self.users.borrow();
        let Some(devices) = users.get(user) else {
            return false;
        };
        let mut taken = false;
        for device in devices {
            taken |= device.queue.try_send(frame.clone()).is_ok();
        }
        taken
    }
}

impl Channels {
    /// The channel's name, if that was not a subscriber before.
    fn join(&self, channel: &str, conn: uuid::Uuid, queue: &mpsc::Sender<Utf8Bytes>) -> Option<Rc<str>> {
        let mut channels = self.channels.borrow_mut();
        let name = match channels.get_key_value(channel) {
            Some((name, _)) => name.clone(),
            None => channel.into(),
        };
        let subscribers = channels.entry(name.clone()).or_default();
        subscribers.insert(conn, queue.clone()).is_none().then_some(name)
    }

    fn leave(&self, channel: &str, conn: uuid::Uuid) {
        let mut channels = self.channels.borrow_mut();
        if let Some(subscribers) = channels.get_mut(channel) {
            subscribers.remove(&conn);
            if subscribers.is_empty() {
                channels.remove(channel);
            }
        }
    }

    /// Queues `frame` for every subscriber; one whose queue is full misses it.
    fn publish(&self, channel: &str, frame: &Utf8Bytes) {
        if let Some(subscribers) = self.channels.borrow().get(channel) {
            for queue in subscribers.values() {
                let _ = queue.try_send(frame.clone());
            }
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    to: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "userId")]
    user_id: Option<Cow<'a, str>>,
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

fn new_id(now_ms: u64) -> uuid::Uuid {
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid()
}

/// A frame with a new id, and the id: `before`, which ends where the id goes, then who wrote it, `after`, what and when.
fn encode(before: &str, from: &str, after: [&str; 2], content: &str) -> (uuid::Uuid, Utf8Bytes) {
    let ts = now_ms();
    let id = new_id(ts);
    let mut frame = String::with_capacity(128 + before.len() + from.len() + after[1].len() + content.len());
    frame.push_str(before);
    frame.push_str(id.hyphenated().encode_lower(&mut [0; uuid::fmt::Hyphenated::LENGTH]));
    for part in [
        r#"","from":"#,
        from,
        after[0],
        after[1],
        r#","content":"#,
        content,
        r#","ts":"#,
    ] {
        frame.push_str(part);
    }
    frame.push_str(itoa::Buffer::new().format(ts));
    frame.push('}');
    (id, frame.into())
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// One connection's task: its stream, its user once it is known, and whether something waits for a flush.
struct Connection<R> {
    hub: Rc<Hub<R>>,
    stream: WebSocketStream<TcpStream>,
    id: uuid::Uuid,
    /// The user and the same as a JSON string; `None` until authenticated.
    user: Option<(Box<str>, Box<str>)>,
    queue: mpsc::Sender<Utf8Bytes>,
    /// What it subscribed to.
    channels: Vec<Rc<str>>,
    dirty: bool,
}

impl<R: Route> Connection<R> {
    async fn feed(&mut self, frame: Message) -> Result<()> {
        self.dirty = true;
        Ok(self.stream.feed(frame).await?)
    }

    async fn flush(&mut self) -> Result<()> {
        if self.dirty {
            self.dirty = false;
            self.stream.flush().await?;
        }
        Ok(())
    }

    async fn welcome(&mut self, user: &str) -> Result<()> {
        let quoted = json_string(user);
        let frame = format!(
            r#"{{"type":"welcome","connId":"{}","userId":{quoted},"gatewayId":"{}","heartbeatMs":25000}}"#,
            self.id,
            self.hub.route.gateway_id()
        );
        self.user = Some((user.into(), quoted.into()));
        if self.hub.users.join(user, self.id, self.queue.clone()) {
            self.hub.route.join(user).await?;
        }
        self.feed(Message::text(frame)).await
    }

    async fn error(&mut self, code: &str, message: &str) -> Result<()> {
        let frame = format!(r#"{{"type":"error","code":"{code}","message":"{message}"}}"#);
        self.feed(Message::text(frame)).await
    }

    /// Says what became of message `id`, if its sender gave it an id and so wants to know.
    async fn ack(&mut self, asked: Option<Cow<'_, str>>, id: uuid::Uuid, status: &str) -> Result<()> {
        let Some(asked) = asked else {
            return Ok(());
        };
        let (asked, id) = (json_string(&asked), id.hyphenated());
        let frame = format!(r#"{{"type":"ack","id":{asked},"messageId":"{id}","status":"{status}"}}"#);
        self.feed(Message::text(frame)).await
    }

    /// Carries out one text frame.
    async fn handle_text(&mut self, text: &str) -> Result<()> {
        let Ok(envelope) = serde_json::from_str::<Envelope>(text) else {
            return self.error("badRequest", "not a valid frame").await;
        };
        match (&*envelope.kind, &self.user) {
            ("message", Some((_, from))) => {
                let (Some(to), Some(content)) = (envelope.to, envelope.content) else {
                    return self.error("badRequest", "to or content is missing").await;
                };
                let to_key = r#","to":"#;
                let (id, frame) = encode(
                    r#"{"type":"message","id":""#,
                    from,
                    [to_key, &json_string(&to)],
                    content.get(),
                );
                let status = self.hub.route.send(&self.hub.users, &to, frame).await;
                self.ack(envelope.id, id, status).await
            }
            ("publish", Some((_, from))) => {
                let (Some(channel), Some(content)) = (envelope.channel, envelope.content) else {
                    return self.error("badRequest", "channel or content is missing").await;
                };
                let head = format!(r#"{{"type":"publication","channel":{},"id":""#, json_string(&channel));
                let (id, frame) = encode(&head, from, ["", ""], content.get());
                self.hub.channels.publish(&channel, &frame);
                self.ack(envelope.id, id, "published").await
            }
            ("subscribe" | "unsubscribe", Some(_)) => {
                let Some(channel) = envelope.channel else {
                    return self.error("badRequest", "channel is missing").await;
                };
                if envelope.kind == "subscribe" {
                    let joined = self.hub.channels.join(&channel, self.id, &self.queue);
                    self.channels.extend(joined);
                } else {
                    self.hub.channels.leave(&channel, self.id);
                    self.channels.retain(|joined| **joined != *channel);
                }
                let id = envelope
                    .id
                    .map_or(String::new(), |id| format!(r#","id":{}"#, json_string(&id)));
                let (kind, channel) = (&*envelope.kind, json_string(&channel));
                self.feed(Message::text(format!(
                    r#"{{"type":"{kind}d","channel":{channel}{id}}}"#
                )))
                .await
            }
            ("heartbeat", Some(_)) => {
                self.feed(Message::text(format!(r#"{{"type":"heartbeat","ts":{}}}"#, now_ms())))
                    .await
            }
            ("auth", None) => match envelope.user_id {
                Some(user) => self.welcome(&user).await,
                None => self.error("badRequest", "userId is missing").await,
            },
            (_, None) => self.error("unauthorized", "authenticate first").await,
            _ => self.error("unknownType", "unknown type").await,
        }
    }

    /// Handles one frame; false when the peer is leaving.
    async fn handle(&mut self, message: Message) -> Result<bool> {
        match message {
            Message::Text(text) => self.handle_text(&text).await?,
            // tungstenite queued the pong; it leaves with the flush.
            Message::Ping(_) => self.dirty = true,
            Message::Pong(_) | Message::Frame(_) => {}
            Message::Close(_) => {
                self.stream.flush().await.ok();
                return Ok(false);
            }
            Message::Binary(_) => {
                self.stream.close(None).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn run(&mut self, mut inbox: mpsc::Receiver<Utf8Bytes>) -> Result<()> {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_seen = Instant::now();
        self.flush().await?;
        loop {
            tokio::select! {
                biased;
                frame = self.stream.next() => {
                    let Some(frame) = frame else { return Ok(()) };
                    if !self.handle(frame?).await? {
                        return Ok(());
                    }
                    for _ in 1..R::READ_BATCH_MAX {
                        match self.stream.next().now_or_never() {
                            Some(Some(frame)) => if !self.handle(frame?).await? {
                                return Ok(());
                            },
                            Some(None) => return Ok(()),
                            None => break,
                        }
                    }
                    last_seen = Instant::now();
                }
                frame = inbox.recv() => {
                    if let Some(frame) = frame {
                        self.feed(Message::Text(frame)).await?;
                    }
                }
                now = ping.tick() => {
                    if now.duration_since(last_seen) > LIFE_TIMEOUT {
                        return Ok(());
                    }
                    if now.duration_since(last_seen) >= PING_INTERVAL {
                        self.feed(Message::Ping(Bytes::new())).await?;
                    }
                }
            }
            while let Ok(frame) = inbox.try_recv() {
                self.feed(Message::Text(frame)).await?;
            }
            self.flush().await?;
        }
    }
}

// The error type is what tungstenite's callback asks for.
#[allow(clippy::result_large_err)]
async fn accept(socket: TcpStream) -> Result<(WebSocketStream<TcpStream>, Option<String>)> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(16 * 1024)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(64 * 1024))
        .max_frame_size(Some(64 * 1024));
    let mut user = None;
    let check = |request: &Request, response: Response| -> std::result::Result<Response, ErrorResponse> {
        if request.uri().path() != "/ws" {
            let mut refusal = ErrorResponse::new(Some("not found".to_owned()));
            *refusal.status_mut() = StatusCode::NOT_FOUND;
            return Err(refusal);
        }
        user = request
            .uri()
            .query()
            .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("user=")))
            .map(str::to_owned);
        Ok(response)
    };
    let stream = tokio_tungstenite::accept_hdr_async_with_config(socket, check, Some(config)).await?;
    Ok((stream, user))
}

async fn serve<R: Route>(hub: Rc<Hub<R>>, socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let handshake = Box::pin(tokio::time::timeout(Duration::from_secs(10), accept(socket)));
    let (stream, user) = handshake.await??;
    let (queue, inbox) = mpsc::channel(QUEUE_FRAMES_MAX);
    let id = new_id(now_ms());
    let mut connection = Connection {
        hub,
        stream,
        id,
        user: None,
        queue,
        channels: vec![],
        dirty: false,
    };
    let result = match user {
        Some(user) => connection.welcome(&user).await,
        None => Ok(()),
    };
    let result = match result {
        Ok(()) => connection.run(inbox).await,
        Err(error) => Err(error),
    };
    for channel in &connection.channels {
        connection.hub.channels.leave(channel, id);
    }
    if let Some((user, _)) = &connection.user
        && connection.hub.users.leave(user, id)
    {
        connection.hub.route.leave(user).await;
    }
    result
}

async fn listen<R: Route>(listener: TcpListener, hub: Rc<Hub<R>>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let hub = hub.clone();
                tokio::task::spawn_local(async move {
                    // A broken connection is the peer's business; this server keeps no log.
                    let _ = serve(hub, socket).await;
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The values of the flags `names`, in their order.
///
/// # Errors
/// A flag that is not among them, or one without a value.
pub(crate) fn arguments<const N: usize>(names: [&str; N]) -> Result<[Option<String>; N]> {
    let mut values = [const { None }; N];
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        // cargo bench adds this one.
        if word == "--bench" {
            continue;
        }
        let Some(at) = names.iter().position(|name| *name == word) else {
            return Err(format!("unknown argument {word}; there are {}", names.join(", ")).into());
        };
        values[at] = Some(words.next().ok_or_else(|| format!("{word} needs a value"))?);
    }
    Ok(values)
}

/// Serves `address` for ever on one thread, pinned to `cpu` if there is one; `route` is made on that thread, before
/// anybody can connect.
///
/// # Errors
/// What keeps it from listening.
pub(crate) fn run<R: Route>(
    address: &str,
    cpu: Option<&str>,
    route: impl AsyncFnOnce(Rc<Users>) -> Result<R>,
) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    if let Some(id) = cpu.map(str::parse).transpose()?
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        return Err(format!("cannot pin to CPU {id}").into());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let users = Rc::new(Users::default());
        let route = route(users.clone()).await?;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(4096)?;
        println!("listening on {}", listener.local_addr()?);
        listen(
            listener,
            Rc::new(Hub {
                users,
                channels: Channels::default(),
                route,
            }),
        )
        .await;
        Ok(())
    })
}
