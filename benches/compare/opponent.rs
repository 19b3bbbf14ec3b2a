//! What the opponents have in common: the gateway's wire contract, as far as the benchmark uses it,
//! on tokio. Two parts differ: where a message goes ([`Route`]), and which library speaks WebSocket
//! ([`Transport`]).
//!
//! Duty: to be the server that a competent user of tokio would write for one core, so that a
//! comparison with shardgate says something. What it does for speed and memory, on purpose: one
//! task per connection, a frame is encoded once for all connections of a user, the envelope is
//! parsed with borrows and the content is spliced through, and message ids come without a system
//! call. A publication is encoded once, too, and all queues of a channel share it. What it does not
//! have: authentication, limits per connection, metrics, presence, channels beyond one process.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// A connection that said nothing for so long is pinged.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(25);
/// One that said nothing for so long is ended.
pub(crate) const LIFE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How many frames may wait for one connection before it counts as too slow.
const QUEUE_FRAMES_MAX: usize = 1024;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Finds the connections that a message is for, and is told who is here.
pub(crate) trait Route: 'static {
    /// How many frames one connection may read before its own messages are written and the others
    /// get their turn.
    #[allow(dead_code, reason = "for transports that can try to read")]
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

/// Speaks WebSocket with one client.
pub(crate) trait Transport: 'static {
    /// The handshake, then [`Session`]'s frames until one side ends it.
    async fn serve<R: Route>(hub: Rc<Hub<R>>, socket: TcpStream) -> Result<()>;
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
pub(crate) struct Hub<R> {
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

/// A frame with a new id, and the id: `before`, which ends where the id goes, then who wrote it,
/// `after`, what and when.
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

/// What one connection is to the others: its user once that is known, its queue, its channels.
/// Owned by its task.
pub(crate) struct Session<R: Route> {
    hub: Rc<Hub<R>>,
    id: uuid::Uuid,
    /// The user and the same as a JSON string; `None` until authenticated.
    user: Option<(Box<str>, Box<str>)>,
    queue: mpsc::Sender<Utf8Bytes>,
    /// What it subscribed to.
    channels: Vec<Rc<str>>,
}

impl<R: Route> Session<R> {
    /// A session of nobody yet, and what others send to it.
    pub(crate) fn new(hub: Rc<Hub<R>>) -> (Self, mpsc::Receiver<Utf8Bytes>) {
        let (queue, inbox) = mpsc::channel(QUEUE_FRAMES_MAX);
        let session = Self {
            hub,
            id: new_id(now_ms()),
            user: None,
            queue,
            channels: vec![],
        };
        (session, inbox)
    }

    /// `user` is here; the frame says so.
    ///
    /// # Errors
    /// The others could not be told.
    pub(crate) async fn welcome(&mut self, user: &str) -> Result<Utf8Bytes> {
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
        Ok(frame.into())
    }

    /// Carries out one text frame and returns its answer, if it has one.
    ///
    /// # Errors
    /// As with [`Self::welcome`].
    pub(crate) async fn handle_text(&mut self, text: &str) -> Result<Option<Utf8Bytes>> {
        let Ok(envelope) = serde_json::from_str::<Envelope>(text) else {
            return Ok(error("badRequest", "not a valid frame"));
        };
        let answer = match (&*envelope.kind, &self.user) {
            ("message", Some((_, from))) => {
                let (Some(to), Some(content)) = (envelope.to, envelope.content) else {
                    return Ok(error("badRequest", "to or content is missing"));
                };
                let to_key = r#","to":"#;
                let (id, frame) = encode(
                    r#"{"type":"message","id":""#,
                    from,
                    [to_key, &json_string(&to)],
                    content.get(),
                );
                let status = self.hub.route.send(&self.hub.users, &to, frame).await;
                ack(envelope.id, id, status)
            }
            ("publish", Some((_, from))) => {
                let (Some(channel), Some(content)) = (envelope.channel, envelope.content) else {
                    return Ok(error("badRequest", "channel or content is missing"));
                };
                let head = format!(r#"{{"type":"publication","channel":{},"id":""#, json_string(&channel));
                let (id, frame) = encode(&head, from, ["", ""], content.get());
                self.hub.channels.publish(&channel, &frame);
                ack(envelope.id, id, "published")
            }
            ("subscribe" | "unsubscribe", Some(_)) => {
                let Some(channel) = envelope.channel else {
                    return Ok(error("badRequest", "channel is missing"));
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
                Some(format!(r#"{{"type":"{kind}d","channel":{channel}{id}}}"#).into())
            }
            ("heartbeat", Some(_)) => Some(format!(r#"{{"type":"heartbeat","ts":{}}}"#, now_ms()).into()),
            ("auth", None) => match envelope.user_id {
                Some(user) => Some(self.welcome(&user).await?),
                None => error("badRequest", "userId is missing"),
            },
            (_, None) => error("unauthorized", "authenticate first"),
            _ => error("unknownType", "unknown type"),
        };
        Ok(answer)
    }

    /// Queues an answer behind what others sent.
    ///
    /// # Errors
    /// The client does not keep up.
    #[allow(dead_code, reason = "for transports that write from the queue alone")]
    pub(crate) fn queue(&self, frame: Utf8Bytes) -> Result<()> {
        Ok(self.queue.try_send(frame)?)
    }

    /// The connection is over.
    pub(crate) async fn leave(&mut self) {
        for channel in &self.channels {
            self.hub.channels.leave(channel, self.id);
        }
        if let Some((user, _)) = &self.user
            && self.hub.users.leave(user, self.id)
        {
            self.hub.route.leave(user).await;
        }
    }
}

fn error(code: &str, message: &str) -> Option<Utf8Bytes> {
    Some(format!(r#"{{"type":"error","code":"{code}","message":"{message}"}}"#).into())
}

/// What became of message `id`, if its sender gave it an id and so wants to know.
fn ack(asked: Option<Cow<'_, str>>, id: uuid::Uuid, status: &str) -> Option<Utf8Bytes> {
    let (asked, id) = (json_string(&asked?), id.hyphenated());
    Some(format!(r#"{{"type":"ack","id":{asked},"messageId":"{id}","status":"{status}"}}"#).into())
}

/// The user in the query of a request to `/ws`.
pub(crate) fn user_of(query: Option<&str>) -> Option<String> {
    query
        .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("user=")))
        .map(str::to_owned)
}

async fn listen<T: Transport, R: Route>(listener: TcpListener, hub: Rc<Hub<R>>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let hub = hub.clone();
                tokio::task::spawn_local(async move {
                    // A broken connection is the peer's business; this server keeps no log.
                    let _ = T::serve(hub, socket).await;
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

/// Serves `address` for ever on one thread, pinned to `cpu` if there is one; `route` is made on
/// that thread, before anybody can connect.
///
/// # Errors
/// What keeps it from listening.
pub(crate) fn run<T: Transport, R: Route>(
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
        listen::<T, R>(
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
