//! A client in Rust: joins a channel, publishes each line that it reads and prints what others
//! publish.
//!
//! `cargo run --example client [ws://127.0.0.1:8080/ws?user=rust] [room1]`
//!
//! With a gateway that has a key, TOKEN in the environment is the user's token. It ends with its
//! input, once all is published.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A publication that failed goes out again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

struct Client {
    url: String,
    channel: String,
    /// Lines to publish; `None` once the input has ended.
    lines: Option<UnboundedReceiver<String>>,
    /// Publications without an ack, by id.
    unanswered: BTreeMap<u64, Value>,
    last_id: u64,
    attempt: u32,
}

/// How a connection ended.
enum End {
    /// All is published.
    Done,
    /// To be made again.
    Lost,
    /// The gateway says not to come back.
    Refused(CloseFrame),
}

impl Client {
    /// Connects again and again, until all is done or the gateway says not to come back.
    async fn run(mut self) -> Result<(), Box<dyn Error>> {
        loop {
            match self.connect().await {
                Ok(End::Done) => return Ok(()),
                Ok(End::Refused(close)) => return Err(format!("closed: {} {}", close.code, close.reason).into()),
                Ok(End::Lost) => {}
                Err(error) => eprintln!("{error}"),
            }
            let most_ms = (500 << self.attempt.min(6)).min(20_000);
            sleep(Duration::from_millis(fastrand::u64(..most_ms))).await;
            self.attempt += 1;
        }
    }

    /// One connection, to its end.
    async fn connect(&mut self) -> Result<End, WsError> {
        let mut request = self.url.as_str().into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("Sec-WebSocket-Protocol", HeaderValue::from_static("shardgate.v1"));
        if let Ok(token) = std::env::var("TOKEN") {
            headers.insert("Authorization", HeaderValue::try_from(format!("Bearer {token}"))?);
        }
        let (mut socket, _) = connect_async(request).await?;
        let mut joined = false;
        // When to leave, and when to publish again: far away, until there is a reason.
        let far = Instant::now() + Duration::from_secs(1 << 30);
        let (mut leave_at, mut again_at) = (far, far);
        loop {
            if self.lines.is_none() && self.unanswered.is_empty() {
                socket.close(None).await?;
                return Ok(End::Done);
            }
            tokio::select! {
                line = next_line(&mut self.lines), if self.lines.is_some() => match line {
                    None => self.lines = None,
                    Some(content) => {
                        self.last_id += 1;
                        let id = self.last_id;
                        let frame = json!({"type": "publish", "channel": self.channel, "content": content, "id": id.to_string()});
                        if joined {
                            send(&mut socket, &frame).await?;
                        }
                        self.unanswered.insert(id, frame);
                    }
                },
                () = sleep_until(leave_at) => {
                    socket.close(None).await?;
                    return Ok(End::Lost);
                }
                () = sleep_until(again_at), if joined => {
                    again_at = far;
                    self.send_unanswered(&mut socket).await?;
                }
                message = socket.next() => {
                    let frame: Value = match message.transpose()? {
                        Some(Message::Text(text)) => serde_json::from_str(&text).unwrap_or_default(),
                        Some(Message::Close(Some(close))) if (3500..4000).contains(&u16::from(close.code)) => {
                            return Ok(End::Refused(close));
                        }
                        Some(Message::Close(_)) | None => return Ok(End::Lost),
                        Some(_) => continue,
                    };
                    let text = |key: &str| frame[key].as_str().unwrap_or_default();
                    let id = text("id").parse().unwrap_or(0);
                    match text("type") {
                        "welcome" => {
                            self.attempt = 0;
                            send(&mut socket, &json!({"type": "subscribe", "channel": self.channel})).await?;
                        }
                        "subscribed" => {
                            println!("joined {}", text("channel"));
                            joined = true;
                            // Their first copies may have arrived: readers see them twice then.
                            self.send_unanswered(&mut socket).await?;
                        }
                        "publication" => println!("{}: {}", text("from"), text("content")),
                        "ack" if text("status") == "published" => drop(self.unanswered.remove(&id)),
                        "ack" => again_at = Instant::now() + AGAIN_AFTER,
                        // The gateway leaves and gives every client another time to go.
                        "shutdown" => {
                            let ms = frame["reconnectAfterMs"].as_u64().unwrap_or(0);
                            leave_at = Instant::now() + Duration::from_millis(ms);
                        }
                        "error" => {
                            eprintln!("{}: {}", text("code"), text("message"));
                            if matches!(text("code"), "rateLimited" | "unavailable") {
                                again_at = Instant::now() + AGAIN_AFTER;
                            } else {
                                self.unanswered.remove(&id);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    async fn send_unanswered(&self, socket: &mut Socket) -> Result<(), WsError> {
        for frame in self.unanswered.values() {
            send(socket, frame).await?;
        }
        Ok(())
    }
}

/// The next line of the input, while it goes on.
async fn next_line(lines: &mut Option<UnboundedReceiver<String>>) -> Option<String> {
    lines.as_mut()?.recv().await
}

async fn send(socket: &mut Socket, frame: &Value) -> Result<(), WsError> {
    socket.send(Message::text(frame.to_string())).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (sender, lines) = unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin()
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    let client = Client {
        url: args
            .next()
            .unwrap_or_else(|| "ws://127.0.0.1:8080/ws?user=rust".to_owned()),
        channel: args.next().unwrap_or_else(|| "room1".to_owned()),
        lines: Some(lines),
        unanswered: BTreeMap::new(),
        last_id: 0,
        attempt: 0,
    };
    client.run().await
}
