//! `admin.listen`: the same HTTP as on the public port, over sockets of the control thread.
//!
//! Anybody who reaches the socket may connect and say nothing. So there are only so many places,
//! and whoever comes gets one: the oldest silent connection goes. Some places are kept for those
//! who have shown the token.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::service::AdminService;
use crate::admin::AdminReply;
use crate::http::{HttpConn, HttpContext, HttpProgress};
use crate::runtime::admin::AdminSocket;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// Those of them that are nobody's who has shown the token: 32 are left for those who have.
const STRANGERS_MAX: usize = CONNECTIONS_MAX - 32;
/// How long a connection may take for a request, and to read what it asked for.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take to end its side after we did.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// Accepting is tried again this long after the process ran out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// That nobody can be accepted is said once in so long, however often it is tried.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Serves until the gateway ends.
///
/// # Errors
/// The runtime does not take the socket.
pub(in crate::control) fn serve(
    socket: AdminSocket,
    context: Rc<HttpContext>,
    service: Rc<AdminService>,
) -> std::io::Result<()> {
    let guests = Rc::new(RefCell::new(Guests::default()));
    match socket {
        AdminSocket::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(async move {
                loop {
                    let accepted = listener.accept().await.inspect(|(stream, _)| {
                        // Answers are whole; what refuses is of no use for one.
                        let _ = stream.set_nodelay(true);
                    });
                    let accepted = accepted.map(|(stream, peer)| (stream, Some(peer)));
                    begin(accepted, &guests, &context, &service).await;
                }
            });
        }
        AdminSocket::Unix(listener, file) => {
            let listener = UnixListener::from_std(listener)?;
            tokio::task::spawn_local(async move {
                // It goes with the listener.
                let _file = file;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| (stream, None));
                    begin(accepted, &guests, &context, &service).await;
                }
            });
        }
    }
    Ok(())
}

/// Begins to serve a connection; another one may have to go for it.
async fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    accepted: std::io::Result<(S, Option<SocketAddr>)>,
    guests: &Rc<RefCell<Guests>>,
    context: &Rc<HttpContext>,
    service: &Rc<AdminService>,
) {
    let (stream, peer) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            if guests.borrow_mut().is_to_be_told(Instant::now()) {
                log::warn!("admin.listen: cannot accept: {error}");
            }
            // Who is silent may be why there are no descriptors.
            guests.borrow_mut().close_oldest();
            return tokio::time::sleep(ACCEPT_RETRY).await;
        }
    };
    let guest = Guest::enter(guests);
    for _ in 0..guests.borrow_mut().make_room() {
        context.shared.admin.crowded.inc();
    }
    let (context, service) = (Rc::clone(context), Rc::clone(service));
    tokio::task::spawn_local(async move {
        let goes = Rc::clone(&guest.goes);
        tokio::select! {
            biased;
            () = goes.notified() => {}
            _ = converse(stream, peer, context, &service, &guest) => {}
        }
    });
}

/// Who is connected.
#[derive(Debug, Default)]
struct Guests {
    /// Counts what guests do, so that it is known who was silent longest.
    clock: u64,
    all: Vec<Seat>,
    /// When the log was told that nobody can be accepted.
    told: Option<Instant>,
}

#[derive(Debug)]
struct Seat {
    number: u64,
    /// When it came, was answered, or has shown the token.
    heard: u64,
    /// It has shown the token.
    known: bool,
    /// What it asked for is being carried out: it gets its answer.
    busy: bool,
    goes: Rc<Notify>,
}

impl Guests {
    fn seat(&mut self, number: u64) -> Option<&mut Seat> {
        self.all.iter_mut().find(|seat| seat.number == number)
    }

    /// True if the log has not been told for a while that nobody can be accepted; then it is now.
    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let is_due = self.told.is_none_or(|told| now - told >= TELL_EVERY);
        if is_due {
            self.told = Some(now);
        }
        is_due
    }

    /// Closes the oldest silent ones while there are too many. Returns how many went.
    fn make_room(&mut self) -> usize {
        let before = self.all.len();
        loop {
            let strangers = self.all.iter().filter(|seat| !seat.known).count();
            let is_crowded = self.all.len() > CONNECTIONS_MAX || strangers > STRANGERS_MAX;
            if !is_crowded || !self.close_oldest() {
                return before - self.all.len();
            }
        }
    }

    /// Closes the one that was silent longest, a stranger if there is one. False if all are being
    /// served.
    fn close_oldest(&mut self) -> bool {
        let silent = self.all.iter().enumerate().filter(|(_, seat)| !seat.busy);
        let oldest = silent.min_by_key(|(_, seat)| (seat.known, seat.heard));
        let Some(place) = oldest.map(|(place, _)| place) else {
            return false;
        };
        self.all.swap_remove(place).goes.notify_one();
        true
    }
}

/// One of them, for as long as it is connected.
struct Guest {
    number: u64,
    guests: Rc<RefCell<Guests>>,
    /// Told when it has to make room.
    goes: Rc<Notify>,
}

impl Guest {
    fn enter(guests: &Rc<RefCell<Guests>>) -> Guest {
        let goes = Rc::new(Notify::new());
        let mut all = guests.borrow_mut();
        all.clock += 1;
        let number = all.clock;
        all.all.push(Seat {
            number,
            heard: number,
            known: false,
            busy: false,
            goes: Rc::clone(&goes),
        });
        Guest {
            number,
            guests: Rc::clone(guests),
            goes,
        }
    }

    fn note(&self, note: impl FnOnce(&mut Seat)) {
        let mut guests = self.guests.borrow_mut();
        guests.clock += 1;
        let clock = guests.clock;
        if let Some(seat) = guests.seat(self.number) {
            seat.heard = clock;
            note(seat);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.borrow_mut().all.retain(|seat| seat.number != self.number);
    }
}

/// Serves one connection to its end.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    peer: Option<SocketAddr>,
    context: Rc<HttpContext>,
    service: &AdminService,
    guest: &Guest,
) -> std::io::Result<()> {
    let mut http = HttpConn::new(Rc::clone(&context), None);
    let mut input = vec![0; 8 * 1024];
    let mut output = Vec::new();
    // Bytes that trickle in do not buy time.
    let mut until = Instant::now() + SILENCE_MAX;
    // Held until the answer has left; if it is the last one, until the peer's end, as what it has
    // not read may be destroyed by ours.
    let mut expected = None;
    loop {
        match timeout_at(until, stream.read(&mut input)).await?? {
            0 => http.end(),
            bytes => http.push(&input[..bytes]),
        }
        context.set_now(service.now());
        let mut progress = http.go_on(&mut output);
        loop {
            while let Some(request) = http.take_request() {
                // Requests that come here have shown the token.
                guest.note(|seat| (seat.known, seat.busy) = (true, true));
                // One at a time: the answer before this one may still be in `output`.
                expected = expected.or_else(|| service.expect_answer());
                let answer = match expected {
                    Some(_) => service.serve(&request, peer).await,
                    None => AdminReply::ending(),
                };
                context.set_now(service.now());
                progress = http.answer(answer, &mut output);
            }
            if output.is_empty() {
                // What is rendered slice by slice takes the thread no longer than a slice at a
                // time.
                tokio::task::yield_now().await;
            } else {
                timeout(SILENCE_MAX, stream.write_all(&output)).await??;
                until = Instant::now() + SILENCE_MAX;
                output.clear();
                guest.note(|seat| seat.busy = http.is_blocked());
            }
            if !http.is_blocked() {
                break;
            }
            context.set_now(service.now());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_descriptors_is_no_flood_of_the_log() {
        let mut guests = Guests::default();
        let began = Instant::now();
        let tries = (0..1_200).filter(|n| guests.is_to_be_told(began + *n * ACCEPT_RETRY));
        assert_eq!(tries.count(), 2, "in two minutes");
    }
}
