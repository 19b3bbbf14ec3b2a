//! `admin.listen`: the same HTTP as on the public port, over sockets of the control thread.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::Desk;
use crate::admin::Answer;
use crate::http::{HttpConn, HttpContext, HttpProgress};
use crate::runtime::admin::AdminSocket;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may take for a request, and to read what it asked for.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take to end its side after we did.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// Accepting is tried again this long after the process ran out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until the gateway ends.
///
/// # Errors
/// The runtime does not take the socket.
pub(in crate::control) fn serve(socket: AdminSocket, context: Rc<HttpContext>, desk: Rc<Desk>) -> std::io::Result<()> {
    let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    match socket {
        AdminSocket::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(async move {
                loop {
                    let places = Arc::clone(&all);
                    let accepted = listener.accept().await.inspect(|(stream, _)| {
                        // Answers are whole; what refuses is of no use for one.
                        let _ = stream.set_nodelay(true);
                    });
                    let accepted = accepted.map(|(stream, peer)| (stream, Some(peer)));
                    begin(accepted, places, &context, &desk).await;
                }
            });
        }
        AdminSocket::Unix(listener, file) => {
            let listener = UnixListener::from_std(listener)?;
            tokio::task::spawn_local(async move {
                // It goes with the listener.
                let _file = file;
                loop {
                    let places = Arc::clone(&all);
                    let accepted = listener.accept().await.map(|(stream, _)| (stream, None));
                    begin(accepted, places, &context, &desk).await;
                }
            });
        }
    }
    Ok(())
}

/// Begins to serve a connection as soon as there is a place.
async fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    accepted: std::io::Result<(S, Option<SocketAddr>)>,
    places: Arc<Semaphore>,
    context: &Rc<HttpContext>,
    desk: &Rc<Desk>,
) {
    let (stream, peer) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            log::warn!("admin.listen: cannot accept: {error}");
            return tokio::time::sleep(ACCEPT_RETRY).await;
        }
    };
    let place = places.acquire_owned().await;
    let (context, desk) = (Rc::clone(context), Rc::clone(desk));
    tokio::task::spawn_local(async move {
        let _place = place;
        let _ = converse(stream, peer, context, &desk).await;
    });
}

/// Serves one connection to its end.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    peer: Option<SocketAddr>,
    context: Rc<HttpContext>,
    desk: &Desk,
) -> std::io::Result<()> {
    let mut http = HttpConn::new(context, None);
    let mut input = vec![0; 8 * 1024];
    let mut output = Vec::new();
    // Bytes that trickle in do not buy time.
    let mut until = Instant::now() + SILENCE_MAX;
    // Held until the answer has left; if it is the last one, until the peer's end, as what it has not read may be destroyed by ours.
    let mut expected = None;
    loop {
        match timeout_at(until, stream.read(&mut input)).await?? {
            0 => http.end(),
            bytes => http.push(&input[..bytes]),
        }
        let mut progress = http.go_on(&mut output);
        loop {
            while let Some(request) = http.take_request() {
                // One at a time: the answer before this one may still be in `output`.
                expected = expected.or_else(|| desk.expect_answer());
                let answer = match expected {
                    Some(_) => desk.serve(&request, peer).await,
                    None => Answer::ending(),
                };
                progress = http.answer(answer, &mut output);
            }
            if output.is_empty() {
                // What is rendered slice by slice takes the thread no longer than a slice at a time.
                tokio::task::yield_now().await;
            } else {
                timeout(SILENCE_MAX, stream.write_all(&output)).await??;
                until = Instant::now() + SILENCE_MAX;
                output.clear();
            }
            if !http.is_blocked() {
                break;
            }
            progress = http.go_on(&mut output);
        }
        if !matches!(progress, HttpProgress::Continue) || http.has_ended() {
            break;
        }
        expected = None;
    }
    // A socket that is closed with something unread takes our last words with it.
    stream.shutdown().await?;
    let _ = timeout(LINGER_MAX, async {
        while stream.read(&mut input).await.is_ok_and(|bytes| bytes > 0) {}
    })
    .await;
    Ok(())
}
