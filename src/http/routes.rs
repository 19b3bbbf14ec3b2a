//! Which path answers what.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::{Body as _, Bytes};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde::Serialize;

use super::pipe::Pipe;
use super::rendered::{Content, Document, Workshop};
use super::{Answer, HttpContext, ListenerKind};
use crate::admin;
use crate::metrics::{self, Exposition, RefusalReason, ShardMetrics};
use crate::settings::Settings;
use crate::shared::{NotAdmitted, SharedAt};
use crate::wire::ws::head::{self, Decision, Refusal, Upgrade};
use crate::wire::ws::request::{Request as Head, names_host};

/// The try-it page: one file, nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The numbers of `/metrics` and `/stats` as pictures; one file as well.
const DASHBOARD: &str = include_str!("dashboard.html");

/// The page for the admin API. It holds no secret and no data: it gets all data from the API, with
/// the token that the person enters.
const ADMIN: &str = include_str!("admin.html");

/// The challenge of a 401.
const CHALLENGE: &str = "Bearer realm=\"shardgate\"";

/// The next step for a request.
pub(super) enum Outcome {
    /// Answer it.
    Answer(Answer),
    /// Answer it with the document that is rendered for all.
    Render(&'static Numbers),
    /// A handshake that is in order and admitted.
    Upgrade(Upgrade),
    /// An authorized client asks the admin API.
    Admin,
}

/// Answers one request. `refused`: the shard has already looked at it, and found a handshake that
/// it may not take now.
pub(super) fn answer(context: &HttpContext, refused: Option<NotAdmitted>, request: &Parts) -> Outcome {
    context.metrics().requests.inc();
    let settings = context.settings.borrow().clone();
    let hosts = request.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let minor_version = u8::from(request.version >= hyper::Version::HTTP_11);
    if !names_host(hosts, minor_version) {
        if let ListenerKind::Public(shard) = context.listener_kind {
            context.refuse(shard, RefusalReason::Malformed);
        }
        return Outcome::Answer(text(400, "HTTP/1.1 wants one Host field with a host in it"));
    }
    let headers: Vec<(&str, &[u8])> = request
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let target = request.uri.to_string();
    let head = Head {
        method: request.method.as_str(),
        target: &target,
        minor_version,
        headers: &headers,
    };
    let local_only = match context.listener_kind {
        ListenerKind::Public(_) => settings.local_only,
        ListenerKind::Admin => settings.admin_local_only,
    };
    if local_only && !head.is_for_this_machine() {
        return Outcome::Answer(refuse(context, &head, Refusal::Host));
    }
    if admin::is_admin_path(request.uri.path()) {
        return authorize(context, &settings, request);
    }
    let ListenerKind::Public(shard) = context.listener_kind else {
        return plain(context, &settings, request);
    };
    match head::decide(&head, &*settings) {
        Decision::Upgrade(upgrade) => {
            match refused.map_or_else(|| context.shared.admit(&settings, context.now.get()), Err) {
                Ok(()) => Outcome::Upgrade(upgrade),
                Err(reason) => {
                    context.refuse(shard, reason.into());
                    Outcome::Answer(unavailable(context, reason))
                }
            }
        }
        Decision::Refuse(refusal) => Outcome::Answer(refuse(context, &head, refusal)),
        Decision::Plain => plain(context, &settings, request),
    }
}

/// Refuses a handshake, or a request for another machine.
fn refuse(context: &HttpContext, head: &Head<'_>, refusal: Refusal) -> Answer {
    // One log slot for each cause: a page that repeats a failing request shows in the log and
    // cannot fill it.
    static SAID: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    if let ListenerKind::Public(shard) = context.listener_kind {
        context.refuse(shard, refusal.into());
    }
    let cause = match refusal {
        Refusal::Host => Some((0, "development mode answers to localhost and loopback addresses only")),
        Refusal::Origin => Some((1, "this page is none of those that may connect: see origins")),
        _ => None,
    };
    if let Some((cause, words)) = cause {
        let level = if SAID[cause].swap(true, Ordering::Relaxed) {
            log::Level::Debug
        } else {
            log::Level::Warn
        };
        let said = |field| head.values(field).next().unwrap_or_default().escape_ascii().to_string();
        let (host, origin) = (said("host"), said("origin"));
        log::log!(
            level,
            "a request was refused (Host {host:.200?}, Origin {origin:.200?}): {words}"
        );
    }
    let (status, body) = refusal.response();
    let mut answer = text(status, body);
    match status {
        401 => set(&mut answer, header::WWW_AUTHENTICATE, "Bearer"),
        405 => set(&mut answer, header::ALLOW, "GET"),
        426 => {
            set(&mut answer, header::SEC_WEBSOCKET_VERSION, "13");
            set(&mut answer, header::UPGRADE, "websocket");
            set(&mut answer, header::CONNECTION, "upgrade");
        }
        _ => {}
    }
    answer
}

/// Requires the token, so clients without it cost the control thread nothing. Without an admin API
/// its paths are unknown, like any other.
fn authorize(context: &HttpContext, settings: &Settings, request: &Parts) -> Outcome {
    let is_here = context.listener_kind == ListenerKind::Admin || !settings.admin_elsewhere;
    let Some(token) = settings.admin_token.as_ref().filter(|_| is_here) else {
        return Outcome::Answer(not_found());
    };
    let mut shown = request.headers.get_all(header::AUTHORIZATION).iter();
    let authorization = shown.next().filter(|_| shown.next().is_none());
    let may = admin::token::is_shown(token.expose(), authorization.map(HeaderValue::as_bytes));
    if is_admin_page(request.uri.path()) {
        Outcome::Answer(admin_page(context, request, may))
    } else if may {
        Outcome::Admin
    } else {
        Outcome::Answer(unauthorized(context))
    }
}

/// True for the one path below /admin, in both spellings, that is answered here.
pub(super) fn is_admin_page(path: &str) -> bool {
    matches!(path, "/admin" | "/admin/")
}

/// The page for administrators; `may` is true if the request has the token. A browser that opens an
/// address cannot send one. It gets the refusal that every client gets, with the page as its body;
/// the page asks for the token.
fn admin_page(context: &HttpContext, request: &Parts, may: bool) -> Answer {
    let looks = request.method == Method::GET || request.method == Method::HEAD;
    let status = match (may, looks) {
        (true, true) => 200,
        (true, false) => return administered(context, admin::routes::not_allowed(&["GET"])),
        (false, true) if takes_html(request) => 401,
        (false, _) => return unauthorized(context),
    };
    context.metrics().administered(status);
    let mut answer = page(context, request, status, ADMIN);
    if !may {
        set(&mut answer, header::WWW_AUTHENTICATE, CHALLENGE);
    }
    answer
}

/// True if the request names HTML among what it takes: browsers do, programs mostly take anything.
fn takes_html(request: &Parts) -> bool {
    let fields = request.headers.get_all(header::ACCEPT).iter();
    let mut ranges = fields
        .filter_map(|field| field.to_str().ok())
        .flat_map(|field| field.split(','));
    ranges.any(|range| {
        let media_type = range.split(';').next().unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case("text/html")
    })
}

fn unauthorized(context: &HttpContext) -> Answer {
    let words = "this needs Authorization: Bearer and the token of admin.token";
    let mut answer = administered(
        context,
        admin::AdminReply::refuse(admin::AdminError::Unauthorized, words),
    );
    set(&mut answer, header::WWW_AUTHENTICATE, CHALLENGE);
    answer
}

/// An answer of the admin API as HTTP.
pub(super) fn administered(context: &HttpContext, content: admin::AdminReply) -> Answer {
    context.metrics().administered(content.status);
    let mut answer = body(content.status, "application/json", content.body);
    if answer.body().size_hint().exact() == Some(0) {
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    if content.status == 413 {
        // The rest of the body is not read.
        set(&mut answer, header::CONNECTION, "close");
    }
    if let Some(allow) = content.allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}

fn not_found() -> Answer {
    text(404, "not found")
}

/// Everything but handshakes and the admin API.
fn plain(context: &HttpContext, settings: &Settings, request: &Parts) -> Outcome {
    enum Route {
        Answer(fn(&HttpContext) -> Answer),
        Page(&'static str),
        Numbers(&'static Numbers),
    }
    let is_admin = context.listener_kind == ListenerKind::Admin;
    let shows_numbers = is_admin || !settings.admin_elsewhere;
    let route = match request.uri.path() {
        "/health" | "/readyz" => Route::Answer(|context| {
            let settings = context.settings.borrow().clone();
            verdict(context.shared.readiness(&settings, context.now.get()))
        }),
        "/livez" => Route::Answer(|context| verdict(context.shared.liveness(context.now.get()))),
        "/stats" if shows_numbers => Route::Numbers(&STATS),
        "/metrics" if shows_numbers => Route::Numbers(&METRICS),
        "/dashboard" if shows_numbers => Route::Page(DASHBOARD),
        "/" if context.shared.development && !is_admin => Route::Page(PAGE),
        _ => return Outcome::Answer(not_found()),
    };
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut answer = text(405, "only GET and HEAD are allowed here");
        set(&mut answer, header::ALLOW, "GET, HEAD");
        return Outcome::Answer(answer);
    }
    match route {
        Route::Answer(route) => Outcome::Answer(route(context)),
        Route::Page(html) => Outcome::Answer(page(context, request, 200, html)),
        Route::Numbers(numbers) => Outcome::Render(numbers),
    }
}

/// A document of numbers.
pub(super) struct Numbers {
    content_type: &'static str,
    document: Document,
    workshop: fn(&HttpContext) -> &Workshop,
}

static METRICS: Numbers = Numbers {
    content_type: "text/plain; version=0.0.4; charset=utf-8",
    document: Document {
        renderings: |shared| &shared.metrics,
        render: |at, out| Box::pin(metrics::expose(at, out)),
    },
    workshop: |context| &context.metrics_workshop,
};

static STATS: Numbers = Numbers {
    content_type: "application/json",
    document: Document {
        renderings: |shared| &shared.stats,
        render: |at, out| Box::pin(stats(at, out)),
    },
    workshop: |context| &context.stats_workshop,
};

/// When the numbers of an answer were read, Unix milliseconds.
const RENDERED_AT: header::HeaderName = header::HeaderName::from_static("shardgate-rendered-at");

impl Numbers {
    /// Answers with the numbers as they are, or were a moment ago.
    pub(super) async fn render(&'static self, context: &HttpContext, pipe: &Pipe) -> Answer {
        let workshop = (self.workshop)(context);
        let rendering = self.document.get((&context.shared, &context.now), workshop, pipe).await;
        let mut answer = with_content(200, self.content_type, Content::shared(&rendering));
        let fields = answer.headers_mut();
        fields.insert(RENDERED_AT, HeaderValue::from(rendering.began.wall_ms));
        answer
    }
}

/// The end of the list of links, in every page.
const LINKS_END: &str = "</nav>";

/// Links from the page at `path` to all pages that there are, if there is more than one. They are
/// relative, so that they hold below whatever path a proxy serves the gateway.
fn links(context: &HttpContext, path: &str) -> String {
    let settings = context.settings.borrow();
    let is_admin = context.listener_kind == ListenerKind::Admin;
    let shows_numbers = is_admin || !settings.admin_elsewhere;
    let pages = [
        ("", "Try it", context.shared.development && !is_admin),
        ("dashboard", "Dashboard", shows_numbers),
        (
            "admin/",
            "Administration",
            shows_numbers && settings.admin_token.is_some(),
        ),
    ];
    let there: Vec<_> = pages.into_iter().filter(|(.., is_there)| *is_there).collect();
    if there.len() < 2 {
        return String::new();
    }
    let up = if path.len() > 1 && path.ends_with('/') {
        "../"
    } else {
        "./"
    };
    let link = |(to, name, _): (&str, &str, bool)| {
        let is_this = to.trim_matches('/') == path.trim_matches('/');
        let current = if is_this { " aria-current=\"page\"" } else { "" };
        format!("<a href=\"{up}{to}\"{current}>{name}</a>")
    };
    there.into_iter().map(link).collect()
}

fn set(answer: &mut Answer, name: header::HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

fn body(status: u16, content_type: &'static str, content: impl Into<Bytes>) -> Answer {
    with_content(status, content_type, Content::Own([content.into()].into()))
}

fn with_content(status: u16, content_type: &'static str, content: Content) -> Answer {
    let mut answer = Response::new(content);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(&mut answer, header::CONTENT_TYPE, content_type);
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    answer
}

fn text(status: u16, content: &str) -> Answer {
    body(status, "text/plain; charset=utf-8", format!("{content}\n"))
}

fn verdict(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => text(200, "OK"),
        Err(reason) => text(503, &reason),
    }
}

fn unavailable(context: &HttpContext, reason: NotAdmitted) -> Answer {
    let (least, most) = reason.retry_after_range();
    let seconds = context.jitter.borrow_mut().u64(least..=most);
    let mut answer = text(503, reason.text());
    answer
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

/// A page, with links to the other pages.
fn page(context: &HttpContext, request: &Parts, status: u16, html: &'static str) -> Answer {
    let (before, after) = html.split_once(LINKS_END).unwrap_or((html, ""));
    let links = links(context, request.uri.path()) + LINKS_END;
    let content = Content::Own([before.into(), links.into(), after.into()].into());
    let mut answer = with_content(status, "text/html; charset=utf-8", content);
    set(
        &mut answer,
        header::CONTENT_SECURITY_POLICY,
        // The page's own policy, with hashes, is inside the page; a header can add only this.
        "frame-ancestors 'none'",
    );
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats<'a> {
    gateway_id: &'a str,
    version: &'static str,
    engine: &'static str,
    connections: u64,
    users: u64,
    subscriptions: u64,
    uptime_seconds: u64,
    messages_in: u64,
    messages_out: u64,
    last_health_check: Option<u64>,
    draining: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShardStats {
    shard: usize,
    cpu: Option<usize>,
    connections: u64,
    users: u64,
    channels: u64,
    subscriptions: u64,
    messages_in: u64,
    messages_out: u64,
    bytes_received: u64,
    bytes_sent: u64,
    last_turn_ms_ago: u64,
}

async fn stats(at: &SharedAt, out: &mut Exposition) {
    let (shared, now_ms) = (&at.shared, at.now.mono_ms());
    let sum = |of: fn(&ShardMetrics) -> u64| shared.shards.iter().map(of).sum();
    let stats = Stats {
        gateway_id: &shared.gateway_id,
        version: env!("CARGO_PKG_VERSION"),
        engine: shared.engine,
        connections: shared.connections(),
        users: shared.users(),
        subscriptions: sum(|shard| shard.subscriptions.get()),
        uptime_seconds: now_ms / 1000,
        messages_in: sum(ShardMetrics::messages_in),
        messages_out: sum(ShardMetrics::messages_out),
        last_health_check: shared.last_health_check_ms(),
        draining: shared.is_draining(),
    };
    // The list of shards is the last field, and is written one by one.
    let all = json(&stats);
    out.push(all.strip_suffix('}').unwrap_or(&all));
    out.push(",\"shards\":[");
    for (shard, last_turn_ms_ago) in shared.turn_ages(now_ms) {
        out.pause_after_slice().await;
        let metrics = &shared.shards[shard];
        if shard > 0 {
            out.push(",");
        }
        out.push(&json(&ShardStats {
            shard,
            cpu: shared.cpus[shard],
            connections: metrics.connections.get(),
            users: metrics.users.get(),
            channels: metrics.channels.get(),
            subscriptions: metrics.subscriptions.get(),
            messages_in: metrics.messages_in(),
            messages_out: metrics.messages_out(),
            bytes_received: metrics.bytes_received.get(),
            bytes_sent: metrics.bytes_sent.get(),
            last_turn_ms_ago,
        }));
    }
    out.push("]}");
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| unreachable!("numbers and names are JSON: {error}"))
}
