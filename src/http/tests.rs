use super::*;
use crate::lanes;
use crate::metrics::FetchResult;
use crate::shared::ClusterHealth;

fn connection(development: bool) -> (HttpConn, Rc<HttpContext>) {
    connection_to(development, 2)
}

fn connection_to(development: bool, shards: usize) -> (HttpConn, Rc<HttpContext>) {
    let depths = lanes::inboxes(u16::try_from(shards).unwrap()).depths;
    let mut cpus = vec![None; shards];
    cpus[0] = Some(0);
    let config = crate::config::Config {
        echo: true,
        ..Default::default()
    };
    let shared = Arc::new(Shared::new("gw".into(), development, "ring", cpus, depths));
    let settings = Arc::new(Settings::new(&config, 1000).unwrap());
    let context = Rc::new(HttpContext::new(shared, settings, ListenerKind::Public(0), 1));
    pass(&context, 1_000);
    (HttpConn::new(Rc::clone(&context), None), context)
}

/// Time passes.
fn pass(context: &HttpContext, ms: u64) {
    let now = context.now.get();
    context.set_now(Now {
        mono_ns: now.mono_ns + ms * 1_000_000,
        wall_ms: now.wall_ms + ms,
    });
}

const SHOWN: &str = "Authorization: Bearer 0123456789abcdef";

/// A connection to a gateway whose administrators have the token of [`SHOWN`].
fn administrable() -> (HttpConn, Rc<HttpContext>) {
    let (conn, context) = connection(true);
    let mut settings = Settings::clone(&context.settings.borrow());
    settings.admin_token = Some("0123456789abcdef".to_owned().into());
    context.settings.replace(Arc::new(settings));
    (conn, context)
}

fn ask(conn: &mut HttpConn, request: &str) -> (String, HttpProgress) {
    let mut out = Vec::new();
    conn.push(request.as_bytes());
    let mut progress = conn.go_on(&mut out);
    while matches!(progress, HttpProgress::Continue) && conn.is_blocked() {
        progress = conn.go_on(&mut out);
    }
    (String::from_utf8(out).unwrap(), progress)
}

/// Short requests with large answers are answered in parts, and no part is lost.
#[test]
fn a_pipeline_is_answered_in_parts() {
    const REQUESTS: usize = 100;
    for path in ["/livez", "/stats", "/dashboard"] {
        let (mut conn, _) = connection(true);
        conn.push(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .repeat(REQUESTS)
                .as_bytes(),
        );
        let mut answers = 0;
        loop {
            let mut out = Vec::new();
            assert!(matches!(conn.go_on(&mut out), HttpProgress::Continue));
            assert!(out.len() <= 32 * 1024, "{}", out.len());
            let more = String::from_utf8(out).unwrap().matches("HTTP/1.1 200 OK").count();
            assert!(more <= 1, "{path}: {more} at once");
            answers += more;
            if !conn.is_blocked() {
                break;
            }
        }
        assert_eq!(answers, REQUESTS, "{path}");
    }
}

#[test]
fn keep_alive_pipelining_and_head() {
    let (mut conn, _) = connection(true);
    let (answers, progress) = ask(
        &mut conn,
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /stats HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert!(matches!(progress, HttpProgress::Continue));
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 1, "{answers}");
    assert!(!answers.contains("gatewayId"), "HEAD has no body: {answers}");
    let (answer, progress) = ask(
        &mut conn,
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.ends_with("\r\n\r\nOK\n"), "{answer}");
    assert!(matches!(progress, HttpProgress::Close));
}

/// The rest of an unread body is no request. The client learns that its connection ends.
#[test]
fn half_a_body_ends_the_connection() {
    let page = format!("POST /admin/ HTTP/1.1\r\nHost: localhost\r\n{SHOWN}\r\nContent-Length: 10\r\n\r\nabc");
    for request in [
        &page,
        "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
        "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let (mut conn, _) = administrable();
        let (answer, progress) = ask(&mut conn, request);
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("connection: close\r\n"),
            "{answer}"
        );
        assert!(matches!(progress, HttpProgress::Close));
    }
}

#[test]
fn a_request_in_single_bytes() {
    let (mut conn, _) = connection(true);
    let mut answer = String::new();
    for byte in "GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n".chars() {
        answer.push_str(&ask(&mut conn, &byte.to_string()).0);
    }
    let json: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(json["gatewayId"], "gw");
    assert_eq!(json["lastHealthCheck"], serde_json::Value::Null);
    assert_eq!(json["shards"][0]["cpu"], 0);
    assert_eq!(json["shards"][1]["cpu"], serde_json::Value::Null);
    assert_eq!(json["draining"], false);
}

#[test]
fn other_methods_get_405_with_allow() {
    let (mut conn, _) = connection(true);
    let (answer, _) = ask(&mut conn, "DELETE /stats HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(answer.contains("allow: GET, HEAD"), "{answer}");
    let (answer, _) = ask(
        &mut conn,
        "POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    );
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[test]
fn the_page_only_in_development_mode() {
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (mut conn, _) = connection(true);
    assert!(ask(&mut conn, request).0.contains("text/html"));
    let (mut conn, _) = connection(false);
    assert!(ask(&mut conn, request).0.starts_with("HTTP/1.1 404"));
}

/// For operators, so not only in development mode.
#[test]
fn the_dashboard_always() {
    for development in [true, false] {
        let (mut conn, _) = connection(development);
        let (answer, _) = ask(&mut conn, "GET /dashboard HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("</html>\n"), "cut short");
        let (head, _) = ask(&mut conn, "HEAD /dashboard HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n"), "HEAD has no body: {head}");
        for header in [
            "content-type: text/html; charset=utf-8\r\n",
            "content-security-policy: frame-ancestors 'none'\r\n",
            "x-content-type-options: nosniff\r\n",
            "cache-control: no-store\r\n",
        ] {
            assert!(
                answer.contains(header) && head.contains(header),
                "{header} not in\n{head}"
            );
        }
        let (answer, _) = ask(&mut conn, "DELETE /dashboard HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
}

/// Where the API is, and for whom. The page is answered at once, without the control thread.
#[test]
fn the_admin_page_where_the_admin_api_is() {
    let looks = |conn: &mut HttpConn, fields: &str| {
        let request = format!("GET /admin/ HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n");
        let (answer, _) = ask(conn, &request);
        assert!(!conn.is_waiting());
        answer
    };
    let (mut conn, context) = administrable();
    for (fields, status) in [
        (SHOWN, "200"),
        ("Accept: text/html", "401"),
        ("Accept: a/b, text/html;q=1", "401"),
    ] {
        let answer = looks(&mut conn, fields);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with("</html>\n"), "cut short");
        assert!(
            answer.contains("content-security-policy: frame-ancestors 'none'\r\n"),
            "{answer}"
        );
        assert_eq!(answer.contains("www-authenticate: Bearer"), status == "401");
    }
    let answer = looks(&mut conn, "Accept: */*");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with('}'), "{answer}");
    // On an address of its own it is not here.
    let mut settings = Settings::clone(&context.settings.borrow());
    settings.admin_elsewhere = true;
    context.settings.replace(Arc::new(settings));
    for fields in [SHOWN, "Accept: text/html"] {
        assert!(looks(&mut conn, fields).starts_with("HTTP/1.1 404 "));
    }
    let (mut conn, _) = connection(true);
    for fields in [SHOWN, "Accept: text/html"] {
        assert!(
            looks(&mut conn, fields).starts_with("HTTP/1.1 404 "),
            "no token is configured"
        );
    }
}

#[test]
fn readiness_follows_the_drain_and_health_checks_are_remembered() {
    let (mut conn, context) = connection(true);
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(ask(&mut conn, request).0.starts_with("HTTP/1.1 200"));
    assert!(context.shared.last_health_check_ms().is_some());
    assert!(context.shared.begin_draining());
    let (answer, _) = ask(&mut conn, request);
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"),
        "{answer}"
    );
}

/// While an administrator waits, nothing else is answered, and then everything in order.
#[test]
fn an_administrator_waits_for_an_answer() {
    let (mut conn, _) = administrable();
    let head = format!("POST /admin/x?y=%20 HTTP/1.1\r\nHost: localhost\r\n{SHOWN}\r\nContent-Length: 4\r\n\r\n");
    assert!(ask(&mut conn, &head).0.is_empty() && conn.take_request().is_none() && !conn.is_waiting());
    let (answers, _) = ask(&mut conn, "bodyGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answers.is_empty() && conn.is_waiting(), "{answers}");
    let request = conn.take_request().unwrap();
    assert_eq!(
        (&*request.method, &*request.path, &*request.query),
        ("POST", "/admin/x", "y=%20")
    );
    assert_eq!(request.body, "body");
    assert!(conn.take_request().is_none() && conn.is_waiting());
    // The token counts that was valid when the request was made.
    let mut out = Vec::new();
    conn.answer(crate::admin::AdminReply::empty(202), &mut out);
    while conn.is_blocked() {
        conn.go_on(&mut out);
    }
    let answers = String::from_utf8(out).unwrap();
    assert!(
        answers.starts_with("HTTP/1.1 202") && answers.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answers}"
    );
    assert!(!conn.is_waiting());
    assert!(
        ask(&mut conn, "GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .0
            .starts_with("HTTP/1.1 401")
    );
}

const UPGRADE: &str = "GET /ws?user=alice HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A proxy may send an upgrade over a connection that it kept alive.
#[test]
fn an_upgrade_after_a_request_keeps_the_bytes_behind_it() {
    let (mut conn, _) = connection(true);
    ask(&mut conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut out = Vec::new();
    conn.push(format!("{UPGRADE}frames").as_bytes());
    match conn.go_on(&mut out) {
        HttpProgress::Upgrade(upgrade, rest) => {
            assert_eq!(upgrade.user.as_deref(), Some("alice"));
            assert_eq!(rest, b"frames");
            assert!(out.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

/// The caller that knows the request's origin logs it.
#[test]
fn a_request_without_a_host_is_told_as_refused() {
    let (mut conn, context) = connection(true);
    let (answer, _) = ask(&mut conn, "GET /livez HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(context.refused.take(), Some(RefusalReason::Malformed));
}

#[test]
fn a_handshake_that_may_not_come_in_gets_503_with_retry_after() {
    let (mut conn, context) = connection(true);
    context.shared.begin_draining();
    let (answer, _) = ask(&mut conn, UPGRADE);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: "), "{answer}");
}

#[test]
fn metrics_have_what_the_contract_names() {
    let (mut conn, _) = connection(true);
    let (answer, _) = ask(&mut conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for name in [
        "shardgate_connections{",
        "shardgate_users{",
        "shardgate_connections_accepted_total{",
        "shardgate_connections_closed_total{shard=\"0\",code=\"1000\"}",
        "shardgate_handshakes_refused_total{shard=\"0\",reason=",
        "shardgate_messages_received_total{shard=\"0\",type=\"message\"}",
        "shardgate_messages_sent_total{shard=\"0\",type=\"message\"}",
        "shardgate_bytes_received_total{",
        "shardgate_bytes_sent_total{",
        "shardgate_acks_total{shard=\"0\",status=\"delivered\"}",
        "shardgate_dropped_total{shard=\"0\",kind=",
        "shardgate_lane_depth{from=\"0\",to=\"1\"}",
        "shardgate_loop_turn_seconds_bucket{",
        "shardgate_delivery_seconds_bucket{shard=\"0\",path=\"local\"",
        "shardgate_draining 0",
    ] {
        assert!(answer.contains(name), "{name}");
    }
}

/// A gauge shows a state. Without Redis, or without keys from a URL, it is absent.
#[test]
fn what_is_not_there_is_not_down() {
    const OF_REDIS: [&str; 2] = ["shardgate_redis_up", "shardgate_pubsub_probe_seconds"];
    let shows = |answer: &str, name: &str| answer.lines().any(|line| line.starts_with(&format!("{name} ")));
    let ask_metrics = |context: &Rc<HttpContext>| {
        let mut conn = HttpConn::new(Rc::clone(context), None);
        ask(&mut conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").0
    };
    let (_, context) = connection(true);
    let alone = ask_metrics(&context);
    for name in OF_REDIS.iter().chain(&["shardgate_jwks_age_seconds"]) {
        assert!(!shows(&alone, name), "{name}");
    }
    context.shared.cluster.set_health(ClusterHealth::Unreachable, None);
    context.shared.jwks.fetched(FetchResult::Ok);
    wait_for_the_next_rendering(&context);
    let away = ask_metrics(&context);
    assert!(away.lines().any(|line| line == "shardgate_redis_up 0"));
    for name in OF_REDIS.iter().chain(&["shardgate_jwks_age_seconds"]) {
        assert!(shows(&away, name), "{name}");
    }
}

/// The table in the documentation and the program name the same metrics.
#[test]
fn metrics_are_documented() {
    let (mut conn, context) = connection(true);
    // All that may be there.
    context.shared.cluster.set_health(ClusterHealth::Unreachable, None);
    context.shared.jwks.fetched(FetchResult::Ok);
    let (answer, _) = ask(&mut conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let shown: Vec<(&str, &str)> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
        .collect();
    let documented: Vec<(&str, &str)> = include_str!("../../docs/metrics.md")
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            (cells.len() == 6).then(|| (name, cells[4]))
        })
        // Which of these are present depends on the kernel.
        .filter(|(name, _)| !name.starts_with("process_") || answer.contains(&format!("# HELP {name} ")))
        .collect();
    assert_eq!(shown, documented);
}

/// Names, help, kinds, labels and their order are a promise to dashboards. This is the whole text
/// of two shards without its values. `UPDATE_DOCS=1 cargo test --lib the_text_of_metrics` writes it
/// anew.
#[test]
fn the_text_of_metrics_is_what_it_was() {
    let (mut conn, context) = connection(true);
    // All that may be there.
    context.shared.cluster.set_health(ClusterHealth::Unreachable, None);
    context.shared.jwks.fetched(FetchResult::Ok);
    let (answer, _) = ask(&mut conn, METRICS);
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let mut shown = String::new();
    // The numbers about the process depend on the kernel.
    for line in text.lines().filter(|line| !line.contains("process_")) {
        let without_value = match line.rsplit_once(' ') {
            Some((sample, _)) if !line.starts_with('#') => sample,
            _ => line,
        };
        shown += &without_value.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        shown.push('\n');
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/exposition.txt");
        std::fs::write(file, &shown).unwrap();
    }
    let expected = include_str!("../metrics/exposition.txt");
    let differs = shown
        .lines()
        .zip(expected.lines())
        .find(|(shown, expected)| shown != expected);
    assert!(shown == expected, "the first line that differs: {differs:?}");
}

/// The table in the documentation has our close codes and no others. The dashboard has words for
/// every code that it may show.
#[test]
fn codes_and_reasons_are_explained() {
    use std::collections::BTreeSet;

    use crate::metrics::CLOSE_LABELS;
    use crate::wire::ws::close::CloseReason;

    let ours = CloseReason::ALL
        .iter()
        .map(|reason| (reason.code().to_string(), reason.text()))
        .filter(|(code, _)| code.starts_with('3'));
    let ours: BTreeSet<(String, &str)> = ours.collect();
    let mut documented = BTreeSet::new();
    for line in include_str!("../../docs/protocol.md").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        for pair in cells.windows(2) {
            if pair[0].len() == 4 && pair[0].starts_with('3') && pair[0].parse::<u16>().is_ok() {
                documented.insert((pair[0].to_owned(), pair[1]));
            }
        }
    }
    assert_eq!(documented, ours);
    let dashboard = include_str!("dashboard.html");
    for (code, text) in ours {
        assert!(dashboard.contains(&format!(" {code}: \"{text}\"")), "{code} {text}");
    }
    for label in CLOSE_LABELS.iter().chain(&RefusalReason::LABELS) {
        assert!(dashboard.contains(&format!(" {label}: \"")), "{label}");
    }
}

#[test]
fn end_of_input_ends_the_connection() {
    let (mut conn, _) = connection(true);
    let mut out = Vec::new();
    conn.end();
    assert!(matches!(conn.go_on(&mut out), HttpProgress::Close));
    assert!(out.is_empty());
}

/// A request made after a rendering does not get that rendering.
fn wait_for_the_next_rendering(context: &HttpContext) {
    pass(context, crate::shared::RENDER_INTERVAL_MS);
}

const METRICS: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Drives a connection until it has output, and no further. Returns how many calls that took.
fn drive_to_output(conn: &mut HttpConn) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    for turn in 1..10_000 {
        assert!(matches!(conn.go_on(&mut out), HttpProgress::Continue));
        if !out.is_empty() {
            return (out, turn);
        }
        assert!(conn.is_blocked(), "nobody would drive it again");
    }
    panic!("no answer");
}

/// The text of all shards takes milliseconds to make, and a turn makes a slice of it.
#[test]
fn numbers_are_rendered_slice_by_slice() {
    for (shards, path) in [(64, "/metrics"), (256, "/stats")] {
        let (mut conn, _) = connection_to(true, shards);
        conn.push(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let (first, turns) = drive_to_output(&mut conn);
        let mut answer = String::from_utf8(first).unwrap();
        while conn.is_blocked() {
            let (more, _) = drive_to_output(&mut conn);
            assert!(more.len() <= 32 * 1024);
            answer.push_str(&String::from_utf8(more).unwrap());
        }
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(
            turns >= body.len() / (16 * 1024),
            "{path}: {} bytes in {turns} turns",
            body.len()
        );
        if path == "/stats" {
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["shards"].as_array().unwrap().len(), shards);
            assert_eq!(json["shards"][255]["shard"], 255);
        }
    }
}

/// Clients that ask and do not read share one rendering. Each holds at most a few pieces of it.
#[test]
fn unread_answers_share_one_rendering() {
    let (_, context) = connection_to(true, 64);
    let mut unread: Vec<HttpConn> = (0..50).map(|_| HttpConn::new(Rc::clone(&context), None)).collect();
    for conn in &mut unread {
        conn.push(METRICS.as_bytes());
        let (out, _) = drive_to_output(conn);
        assert!(out.len() <= 32 * 1024);
    }
    let now_ms = context.now.get().mono_ms();
    let rendering = context.shared.metrics.for_request(now_ms);
    if let Some(rendering) = rendering {
        assert!(rendering.bytes() > 500_000);
        // The list of renderings, and this test. A client that has not read its answer keeps it
        // from nothing.
        assert!(
            Arc::strong_count(&rendering) <= 2 + 1,
            "{}",
            Arc::strong_count(&rendering)
        );
    }
}

/// A second request within the interval gets the same numbers, and their age.
#[test]
fn numbers_are_rendered_at_most_every_interval() {
    let (mut conn, context) = connection(true);
    let rendered_at = |answer: &str| {
        let field = answer
            .lines()
            .find_map(|line| line.strip_prefix("shardgate-rendered-at: "));
        field.unwrap().parse::<u64>().unwrap()
    };
    let (first, _) = ask(&mut conn, METRICS);
    pass(&context, crate::shared::RENDER_INTERVAL_MS - 1);
    let (second, _) = ask(&mut conn, METRICS);
    assert_eq!(rendered_at(&first), rendered_at(&second));
    wait_for_the_next_rendering(&context);
    assert!(rendered_at(&ask(&mut conn, METRICS).0) > rendered_at(&first));
}

/// Connections that wait render together, so none waits for another that goes.
#[test]
fn who_waits_is_served_when_who_began_is_gone() {
    let (mut first, context) = connection_to(true, 64);
    let mut second = HttpConn::new(Rc::clone(&context), None);
    let mut out = Vec::new();
    for conn in [&mut first, &mut second] {
        conn.push(METRICS.as_bytes());
        conn.go_on(&mut out);
    }
    drop(first);
    assert!(out.is_empty());
    let (out, _) = drive_to_output(&mut second);
    assert!(out.starts_with(b"HTTP/1.1 200 OK"));
    // A connection that went before the end keeps no other from rendering.
    let mut gone = HttpConn::new(Rc::clone(&context), None);
    gone.push(METRICS.as_bytes());
    wait_for_the_next_rendering(&context);
    gone.go_on(&mut Vec::new());
    drop(gone);
    assert!(context.shared.metrics.claim(context.now.get()).is_some());
}

/// An answer whose rendering is kept no more ends before its end, and so does its connection.
#[test]
fn who_reads_too_slowly_is_cut_off() {
    let (mut conn, context) = connection_to(true, 64);
    conn.push(METRICS.as_bytes());
    drive_to_output(&mut conn);
    let now_ms = context.now.get().mono_ms();
    for n in 1..=8 {
        let wall_ms = 0;
        let now = crate::shared::Now {
            mono_ns: (now_ms + n * 1000) * 1_000_000,
            wall_ms,
        };
        let claim = context.shared.metrics.claim(now).unwrap();
        claim.publish(vec![Bytes::from_static(b"newer\n")]);
        // Each of them is being read, too.
        let rendering = context.shared.metrics.for_request(now.mono_ms()).unwrap();
        std::mem::forget(Arc::downgrade(&rendering));
    }
    let mut out = Vec::new();
    let mut turns = 0;
    while !matches!(conn.go_on(&mut out), HttpProgress::Close) {
        turns += 1;
        assert!(turns < 10, "still served");
    }
    assert!(out.len() < 200_000, "{}", out.len());
}

/// By relative addresses, which hold below whatever path a proxy serves the gateway.
#[test]
fn pages_link_to_those_that_there_are() {
    let links = |conn: &mut HttpConn, path: &str| {
        let (answer, _) = ask(
            conn,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{SHOWN}\r\n\r\n"),
        );
        let (head, html) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", html.len())), "{head}");
        let nav = html.split_once("<nav ").unwrap().1.split_once("</nav>").unwrap().0;
        nav.split_once('>').unwrap().1.to_owned()
    };
    let (mut conn, _) = administrable();
    let (try_it, dashboard) = ("<a href=\"./\">Try it</a>", "<a href=\"./dashboard\">Dashboard</a>");
    let admin = "<a href=\"./admin/\">Administration</a>";
    let current = |link: &str| link.replace("\">", "\" aria-current=\"page\">");
    assert_eq!(links(&mut conn, "/"), format!("{}{dashboard}{admin}", current(try_it)));
    assert_eq!(
        links(&mut conn, "/dashboard"),
        format!("{try_it}{}{admin}", current(dashboard))
    );
    assert_eq!(
        links(&mut conn, "/admin"),
        format!("{try_it}{dashboard}{}", current(admin))
    );
    let from_below = format!("{try_it}{dashboard}{}", current(admin)).replace("./", "../");
    assert_eq!(links(&mut conn, "/admin/"), from_below);
    let (mut conn, _) = connection(true);
    assert_eq!(links(&mut conn, "/"), format!("{}{dashboard}", current(try_it)));
    let (mut conn, _) = connection(false);
    assert_eq!(links(&mut conn, "/dashboard"), "", "there is no other");
    let (mut conn, context) = administrable();
    let mut settings = Settings::clone(&context.settings.borrow());
    settings.admin_elsewhere = true;
    context.settings.replace(Arc::new(settings));
    assert_eq!(links(&mut conn, "/"), "", "the others are not here");
}
