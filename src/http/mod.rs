//! Plain HTTP: health, statistics, metrics, the pages (dashboard, try-it, admin), and the way in
//! for administrators.
//!
//! A connection that is not a WebSocket upgrade becomes an [`HttpConn`]: hyper's HTTP/1.1 server
//! over a pipe in memory. The shard pushes received bytes in and sends the bytes that come out.
//! Sockets, time limits and backpressure thus stay with the engine and the shard; keep-alive,
//! pipelining, bodies and HEAD are hyper's. One thread owns an [`HttpConn`]; it is never shared.
//!
//! An administrator's request is not answered here. The owner of the connection takes it out
//! ([`HttpConn::take_request`]), passes it on, and brings the answer later ([`HttpConn::answer`]).
//! Until then nothing more is read.

mod inquiry;
mod pipe;
mod rendered;
mod routes;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use http_body_util::{BodyExt, Collected, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};

use crate::admin::{self, AdminError};
use crate::metrics::{HttpMetrics, RefusalReason};
use crate::settings::Settings;
use crate::shared::{NotAdmitted, Now, Shared};
use crate::wire::ws::head::Upgrade;
use inquiry::Inquiry;
use pipe::Pipe;
use rendered::{Content, Workshop};

/// The listener that a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// The public listener of this shard.
    Public(usize),
    /// `admin.listen`, on the control thread.
    Admin,
}

/// The context of the routes. One per shard, and one on the control thread.
#[derive(Debug)]
pub struct HttpContext {
    /// The state that all threads may read.
    pub shared: Arc<Shared>,
    /// The settings now; replaced when they are read again.
    pub settings: RefCell<Arc<Settings>>,
    /// The time of this turn. A rendering that takes several turns sees it go on.
    now: Rc<Cell<Now>>,
    /// The thread that answers.
    pub listener_kind: ListenerKind,
    /// Jitter for `Retry-After`.
    jitter: RefCell<fastrand::Rng>,
    metrics_workshop: Workshop,
    stats_workshop: Workshop,
    /// Why the last handshake was refused. The connection's owner knows the client and logs it.
    pub refused: Cell<Option<RefusalReason>>,
}

impl HttpContext {
    /// The context of one thread.
    pub fn new(shared: Arc<Shared>, settings: Arc<Settings>, listener_kind: ListenerKind, seed: u64) -> Self {
        HttpContext {
            shared,
            settings: RefCell::new(settings),
            now: Rc::default(),
            listener_kind,
            jitter: RefCell::new(fastrand::Rng::with_seed(seed)),
            metrics_workshop: Workshop::default(),
            stats_workshop: Workshop::default(),
            refused: Cell::new(None),
        }
    }

    /// Counts a handshake that this shard refuses, and keeps why.
    fn refuse(&self, shard: usize, reason: RefusalReason) {
        self.shared.shards[shard].refused(reason);
        self.refused.set(Some(reason));
    }

    /// What happens from now on happens at this time.
    pub fn set_now(&self, now: Now) {
        self.now.set(now);
    }

    fn metrics(&self) -> &HttpMetrics {
        match self.listener_kind {
            ListenerKind::Public(shard) => &self.shared.shards[shard].http,
            ListenerKind::Admin => &self.shared.admin,
        }
    }
}

/// The next step of a connection after input.
#[derive(Debug)]
pub enum HttpProgress {
    /// More requests.
    Continue,
    /// To be closed once everything is sent.
    Close,
    /// To become a WebSocket; these bytes came behind the request head.
    Upgrade(Upgrade, Vec<u8>),
}

/// Remembers that it was woken.
#[derive(Default)]
struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Connection = http1::Connection<Pipe, Routes>;

/// One HTTP connection.
pub struct HttpConn {
    /// `None` once it has ended.
    connection: Option<Connection>,
    pipe: Pipe,
    upgrade: Rc<RefCell<Option<Upgrade>>>,
    inquiry: Inquiry,
    /// Its owner's note: it has something to do, and waits for its turn.
    pub put_off: bool,
}

impl std::fmt::Debug for HttpConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpConn").finish_non_exhaustive()
    }
}

impl HttpConn {
    /// Starts a connection. `refused` is set if its first request is a handshake that was not
    /// admitted.
    pub fn new(context: Rc<HttpContext>, refused: Option<NotAdmitted>) -> Self {
        let pipe = Pipe::default();
        let upgrade = Rc::new(RefCell::new(None));
        let header_bytes = context.settings.borrow().limits.header_bytes;
        let inquiry = Inquiry::default();
        let routes = Routes {
            context,
            pipe: pipe.clone(),
            inquiry: inquiry.clone(),
            refused: Cell::new(refused),
            upgrade: Rc::clone(&upgrade),
        };
        let connection = http1::Builder::new()
            .half_close(true)
            // hyper insists on 8 KiB of buffer at least; later heads are held to the limit as the
            // first one is.
            .max_buf_size(header_bytes.max(8192))
            .max_header_size(header_bytes)
            // Not `pipeline_flush`: it would keep answers back while a request waits, and they
            // would be lost when that request is an upgrade or malformed. The pipe gathers them
            // anyway.
            .serve_connection(pipe.clone(), routes);
        HttpConn {
            connection: Some(connection),
            pipe,
            upgrade,
            inquiry,
            put_off: false,
        }
    }

    /// Takes received bytes; [`HttpConn::go_on`] does something about them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pipe.push(bytes);
    }

    /// The peer sends no more; [`HttpConn::go_on`] does something about that.
    pub fn end(&mut self) {
        self.pipe.end();
    }

    /// True if there is more to do than was done at once: [`HttpConn::go_on`] when the socket has
    /// taken what it got.
    pub fn is_blocked(&self) -> bool {
        self.pipe.is_blocked()
    }

    /// Goes on with received input and with output that found no room. Appends the bytes to send to
    /// `out`: at most one answer and 64 KiB.
    pub fn go_on(&mut self, out: &mut Vec<u8>) -> HttpProgress {
        self.pipe.unblock();
        self.drive(out)
    }

    /// An administrator's request that was read whole. It is to be answered.
    pub fn take_request(&mut self) -> Option<admin::Request> {
        self.inquiry.take()
    }

    /// True from the time when a request was read until it is answered.
    pub fn is_waiting(&self) -> bool {
        self.inquiry.is_waiting()
    }

    /// True once the peer sends no more.
    pub fn has_ended(&self) -> bool {
        self.pipe.has_ended()
    }

    /// Answers what [`HttpConn::take_request`] gave, appends the bytes to send to `out`.
    pub fn answer(&mut self, answer: admin::AdminReply, out: &mut Vec<u8>) -> HttpProgress {
        self.inquiry.answer(answer);
        self.drive(out)
    }

    fn drive(&mut self, out: &mut Vec<u8>) -> HttpProgress {
        let Some(connection) = self.connection.as_mut() else {
            return HttpProgress::Close;
        };
        // Every await inside waits for the pipe or for an answer, and both arrive only through this
        // function. After much work hyper yields by waking itself; the shard then serves other
        // connections first.
        let again = Arc::new(Again::default());
        let waker = Waker::from(Arc::clone(&again));
        let mut context = Context::from_waker(&waker);
        let ended = Pin::new(&mut *connection)
            .poll_without_shutdown(&mut context)
            .is_ready();
        if again.0.load(Ordering::Relaxed) {
            self.pipe.block();
        }
        self.pipe.take_output(out);
        if let Some(upgrade) = self.upgrade.borrow_mut().take() {
            let rest = self.connection.take().map(|connection| {
                let mut rest = connection.into_parts().read_buf.to_vec();
                self.pipe.take_input(&mut rest);
                rest
            });
            return HttpProgress::Upgrade(upgrade, rest.unwrap_or_default());
        }
        if ended {
            self.connection = None;
            return HttpProgress::Close;
        }
        HttpProgress::Continue
    }
}

/// hyper's service: one per connection.
struct Routes {
    context: Rc<HttpContext>,
    pipe: Pipe,
    inquiry: Inquiry,
    refused: Cell<Option<NotAdmitted>>,
    upgrade: Rc<RefCell<Option<Upgrade>>>,
}

type Answer = Response<Content>;

impl Service<Request<Incoming>> for Routes {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (context, pipe, inquiry) = (Rc::clone(&self.context), self.pipe.clone(), self.inquiry.clone());
        let (refused, upgrade) = (self.refused.take(), Rc::clone(&self.upgrade));
        let (head, body) = request.into_parts();
        // A dropped body shows hyper, before it answers, that no further request can follow.
        let path = head.uri.path();
        let body = (admin::is_admin_path(path) && !routes::is_admin_page(path)).then_some(body);
        Box::pin(async move {
            pipe.room().await;
            match routes::answer(&context, refused, &head) {
                routes::Outcome::Answer(answer) => Ok(answer),
                routes::Outcome::Render(route) => Ok(route.render(&context, &pipe).await),
                routes::Outcome::Upgrade(accepted) => {
                    // The shard takes the connection out of hyper's hands and writes the 101
                    // itself.
                    *upgrade.borrow_mut() = Some(accepted);
                    pending().await
                }
                routes::Outcome::Admin => Ok(administer(&context, &inquiry, head, body).await),
            }
        })
    }
}

/// An authorized request: read whole, passed on, and answered when the answer comes.
async fn administer(context: &HttpContext, inquiry: &Inquiry, head: Parts, body: Option<Incoming>) -> Answer {
    let bytes_max = context.settings.borrow().limits.message_bytes;
    let (method, path) = (head.method.as_str().into(), head.uri.path().into());
    let query = head.uri.query().unwrap_or_default().into();
    let body = match body {
        Some(body) => Limited::new(body, bytes_max).collect().await.map(Collected::to_bytes),
        None => Ok(Bytes::new()),
    };
    let answer = match body {
        Ok(body) => {
            let request = admin::Request {
                method,
                path,
                query,
                body,
            };
            inquiry.ask(request).await
        }
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let words = format!("the body is over limits.message_bytes, {bytes_max}");
            admin::AdminReply::refuse(AdminError::PayloadTooLarge, &words)
        }
        Err(error) => admin::AdminReply::refuse(AdminError::BadRequest, &error.to_string()),
    };
    routes::administered(context, answer)
}

#[cfg(test)]
mod tests;
