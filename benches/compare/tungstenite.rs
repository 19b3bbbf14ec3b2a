//! The opponents' WebSocket by tungstenite.
//!
//! Duty: [`Transport`]. For speed and memory, on purpose: no split of the stream (no lock between
//! halves), a read buffer of 4 KiB instead of 128, everything that is ready is handled before one
//! flush, and the future of the handshake is boxed so that it does not stay in the connection's
//! task.

use std::rc::Rc;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use crate::opponent::{
    HANDSHAKE_TIMEOUT, Hub, LIFE_TIMEOUT, MESSAGE_BYTES_MAX, PING_INTERVAL, Result, Route, Session, Transport, user_of,
};

pub(crate) struct Tungstenite;

impl Transport for Tungstenite {
    async fn serve<R: Route>(hub: Rc<Hub<R>>, socket: TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_TIMEOUT, accept(socket)));
        let (stream, user) = handshake.await??;
        let (session, inbox) = Session::new(hub);
        let mut connection = Connection {
            session,
            stream,
            dirty: false,
        };
        let result = connection.run(user, inbox).await;
        connection.session.leave().await;
        result
    }
}

/// One connection's task: its stream, and whether something waits for a flush.
struct Connection<R: Route> {
    session: Session<R>,
    stream: WebSocketStream<TcpStream>,
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

    /// Handles one frame; false when the peer is leaving.
    async fn handle(&mut self, message: Message) -> Result<bool> {
        match message {
            Message::Text(text) => {
                if let Some(answer) = self.session.handle_text(&text).await? {
                    self.feed(Message::Text(answer)).await?;
                }
            }
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

    async fn run(&mut self, user: Option<String>, mut inbox: mpsc::Receiver<Utf8Bytes>) -> Result<()> {
        if let Some(user) = user {
            let welcome = self.session.welcome(&user).await?;
            self.feed(Message::Text(welcome)).await?;
        }
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

#[allow(
    clippy::result_large_err,
    reason = "the error type is what tungstenite's callback asks for"
)]
async fn accept(socket: TcpStream) -> Result<(WebSocketStream<TcpStream>, Option<String>)> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(16 * 1024)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut user = None;
    let check = |request: &Request, response: Response| -> std::result::Result<Response, ErrorResponse> {
        if request.uri().path() != "/ws" {
            let mut refusal = ErrorResponse::new(Some("not found".to_owned()));
            *refusal.status_mut() = StatusCode::NOT_FOUND;
            return Err(refusal);
        }
        user = user_of(request.uri().query());
        Ok(response)
    };
    let stream = tokio_tungstenite::accept_hdr_async_with_config(socket, check, Some(config)).await?;
    Ok((stream, user))
}
