//! The opponent of one gateway on tokio, hyper and fastwebsockets.
//!
//! Duty: [`Transport`] by that library. It is used as its documentation does for connections that
//! others write to: hyper shakes hands, the socket is split into owned halves, and one future of
//! the task reads while another one writes, as reading a frame cannot be broken off without losing
//! bytes. On purpose: the socket is taken back out of hyper, so that no call goes through a box;
//! and what is waiting for a connection leaves by one flush.

mod local;
mod opponent;

use std::cell::Cell;
use std::rc::Rc;

use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, WebSocketWrite};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use local::Local;
use opponent::{
    HANDSHAKE_TIMEOUT, Hub, LIFE_TIMEOUT, MESSAGE_BYTES_MAX, PING_INTERVAL, Result, Route, Session, Transport, user_of,
};
use tokio::io::BufWriter;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// Room for a few frames: what does not fit is written before the flush.
const WRITE_BUFFER_BYTES: usize = 1024;

type Reader = WebSocketRead<OwnedReadHalf>;
type Writer = WebSocketWrite<BufWriter<OwnedWriteHalf>>;

struct Fastwebsockets;

impl Transport for Fastwebsockets {
    async fn serve<R: Route>(hub: Rc<Hub<R>>, socket: TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_TIMEOUT, accept(socket)));
        let (socket, user) = handshake.await??;
        let (reader, writer) = socket.into_split();
        let writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
        let (mut reader, writer) = fastwebsockets::after_handshake_split(reader, writer, Role::Server);
        reader.set_max_message_size(MESSAGE_BYTES_MAX);
        let writer = Mutex::new(writer);
        let (mut session, inbox) = Session::new(hub);
        let result = match user {
            Some(user) => match session.welcome(&user).await {
                Ok(frame) => session.queue(frame),
                Err(error) => Err(error),
            },
            None => Ok(()),
        };
        let last_seen = Cell::new(Instant::now());
        let result = match result {
            Ok(()) => tokio::select! {
                result = read(&mut session, reader, &writer, &last_seen) => result,
                result = write(inbox, &writer, &last_seen) => result,
            },
            Err(error) => Err(error),
        };
        session.leave().await;
        result
    }
}

/// Carries out what the client says. Answers take their turn in the connection's queue.
async fn read<R: Route>(
    session: &mut Session<R>,
    mut reader: Reader,
    writer: &Mutex<Writer>,
    last_seen: &Cell<Instant>,
) -> Result<()> {
    // Pongs, and the answer to a close frame.
    let oblige = async |frame: Frame<'_>| -> std::result::Result<(), WebSocketError> {
        let mut writer = writer.lock().await;
        writer
            .write_frame(Frame::new(
                true,
                frame.opcode,
                None,
                Payload::Owned(frame.payload.to_vec()),
            ))
            .await?;
        writer.flush().await
    };
    loop {
        let frame = reader.read_frame(&mut |frame| oblige(frame)).await?;
        last_seen.set(Instant::now());
        match frame.opcode {
            OpCode::Text => {
                if let Some(answer) = session.handle_text(std::str::from_utf8(&frame.payload)?).await? {
                    session.queue(answer)?;
                }
            }
            OpCode::Ping | OpCode::Pong => {}
            OpCode::Close | OpCode::Binary | OpCode::Continuation => return Ok(()),
        }
    }
}

/// Writes what is queued, and pings a client that is silent.
async fn write(mut inbox: mpsc::Receiver<Utf8Bytes>, writer: &Mutex<Writer>, last_seen: &Cell<Instant>) -> Result<()> {
    let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Some(frame) = inbox.recv() => {
                let mut writer = writer.lock().await;
                writer.write_frame(text(&frame)).await?;
                while let Ok(frame) = inbox.try_recv() {
                    writer.write_frame(text(&frame)).await?;
                }
                writer.flush().await?;
            }
            now = ping.tick() => {
                if now.duration_since(last_seen.get()) > LIFE_TIMEOUT {
                    return Ok(());
                }
                if now.duration_since(last_seen.get()) >= PING_INTERVAL {
                    let mut writer = writer.lock().await;
                    writer.write_frame(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(b""))).await?;
                    writer.flush().await?;
                }
            }
        }
    }
}

fn text(frame: &Utf8Bytes) -> Frame<'_> {
    Frame::text(Payload::Borrowed(frame.as_bytes()))
}

/// What a handshake led to, and whose it is.
type Upgraded = (UpgradeFut, Option<String>);

/// Answers one request.
fn answer(
    mut request: Request<Incoming>,
    upgraded: &Cell<Option<Upgraded>>,
) -> std::result::Result<Response<Empty<Bytes>>, WebSocketError> {
    if request.uri().path() != "/ws" || !is_upgrade_request(&request) {
        let mut refusal = Response::new(Empty::new());
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        return Ok(refusal);
    }
    let user = user_of(request.uri().query());
    let (response, future) = upgrade(&mut request)?;
    upgraded.set(Some((future, user)));
    Ok(response)
}

/// Shakes hands and takes the socket back out of hyper.
async fn accept(socket: TcpStream) -> Result<(TcpStream, Option<String>)> {
    let upgraded = Rc::new(Cell::new(None));
    let seen = upgraded.clone();
    let service = service_fn(move |request| std::future::ready(answer(request, &seen)));
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await?;
    let (future, user) = upgraded.take().ok_or("no upgrade")?;
    let stream = future.await?.into_inner().into_inner();
    let parts = stream
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| "not the socket that was served")?;
    if !parts.read_buf.is_empty() {
        return Err("frames before the answer to the handshake".into());
    }
    Ok((parts.io.into_inner(), user))
}

fn main() -> Result<()> {
    let [address, cpu] = opponent::arguments(["--listen", "--cpu"])?;
    let Some(address) = address else {
        // `cargo bench` and `cargo test --all-targets` start every bench: a server would never end.
        println!("fastwebsockets_server --listen ADDR [--cpu N]: nothing to do without an address");
        return Ok(());
    };
    opponent::run::<Fastwebsockets, _>(&address, cpu.as_deref(), async |_| Ok(Local("fastwebsockets")))
}
