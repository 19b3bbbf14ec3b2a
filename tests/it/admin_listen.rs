//! With `admin.listen` the administrators' paths are served there and nowhere else. A Unix socket
//! leaves nothing behind and takes nothing away. A token changes on SIGHUP.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::admin::{Admin, TOKEN};
use common::client::Client;
use common::{Gateway, eventually, run_to_exit};
use serde_json::{Value, json};

/// A gateway with a listener of its own for administrators, and where that is.
fn start(listen: &str, more: &[&str]) -> (Gateway, String) {
    let gateway = Gateway::start(&[&["--admin-listen", listen], more].concat());
    let line = gateway.wait_for_log("administration on ");
    let place = line.rsplit_once("administration on ").unwrap().1.to_owned();
    (gateway, place)
}

/// The paths that both kinds of listener serve, and that the public port then does not.
fn serves_everything(gateway: &Gateway, admin: &Admin, from: &Value) {
    let mut alice = gateway.connect("alice");
    for path in ["/metrics", "/stats", "/dashboard", "/health", "/readyz", "/livez"] {
        assert_eq!(admin.raw("GET", path, "", "").status, 200, "{path}");
        let public = gateway.get(path).status;
        let is_private = ["/metrics", "/stats", "/dashboard"].contains(&path);
        assert_eq!(public, if is_private { 404 } else { 200 }, "{path}");
    }
    for path in ["/", "/ws", "/echo", "/nothing", "/debug/x"] {
        assert_eq!(admin.raw("GET", path, "", "").status, 404, "{path}");
    }
    assert_eq!(gateway.get("/debug/x").status, 404);
    let public = Admin::of(gateway);
    let refused = public.raw("GET", "/admin/connections", &public.authorization(), "");
    assert_eq!((refused.status, &*refused.body), (404, "not found\n"));

    let page = public.raw("GET", "/admin/", "Accept: text/html\r\n", "");
    assert_eq!((page.status, &*page.body), (404, "not found\n"));

    assert_eq!(admin.raw("GET", "/admin/connections", "", "").status, 401);
    for (fields, status) in [("Accept: text/html\r\n", 401), (&admin.authorization(), 200)] {
        let page = admin.raw("GET", "/admin/", fields, "");
        assert_eq!(page.status, status);
        assert!(page.body.ends_with("</html>\n"), "cut short");
    }
    assert_eq!(admin.list("").len(), 1);
    let (status, sent) = admin.ask("POST", "/admin/messages", r#"{"to":"alice","content":"hi"}"#);
    assert_eq!((status, &sent["status"]), (200, &json!("delivered")));
    assert_eq!(alice.recv_json()["from"], "");
    let large = format!(r#"{{"content":"{}"}}"#, "x".repeat(100_000));
    assert_eq!(admin.ask("POST", "/admin/broadcast", &large).0, 413);
    assert_eq!(
        admin.ask("DELETE", "/admin/users/alice/connections", "").1,
        json!({"closed": 1})
    );
    assert_eq!(alice.recv_frame().close_code(), Some(3503));
    let line = gateway.wait_for_log("admin: close all connections of \"alice\"");
    assert!(line.contains(from.as_str().unwrap()), "{line}");
    let metrics = common::numbers_from_now_on(|| admin.raw("GET", "/metrics", "", "")).body;
    assert!(
        metrics.contains("shardgate_admin_requests_total{shard=\"control\",status=\"401\"} 2"),
        "{metrics}"
    );
}

#[test]
fn on_an_address() {
    let (mut gateway, place) = start("127.0.0.1:0", &["--admin-token", TOKEN, "--echo"]);
    let addr: SocketAddr = place.parse().unwrap();
    serves_everything(&gateway, &Admin::at(addr), &json!("127.0.0.1:"));
    // One connection, many requests, some in pieces.
    let mut client = common::Client::connect(addr);
    let request =
        format!("GET /admin/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    client.send_raw(request.repeat(20).as_bytes());
    client.send_in_pieces(request.as_bytes(), &[1, 30, 31, 100]);
    for _ in 0..21 {
        assert_eq!(client.read_response().status, 200);
    }
    client.half_close();
    assert!(client.next_frame().is_none());
    // No other process can have it meanwhile.
    let ended = run_to_exit(&["--listen", "127.0.0.1:0", "--admin-listen", &place]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("admin.listen") && ended.stderr.contains("in use"),
        "{ended:?}"
    );
    assert_eq!(Admin::at(addr).ask("POST", "/admin/drain", "").0, 202);
    assert_eq!(gateway.wait_for_exit(), 0);
}

#[test]
fn on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let listen = format!("unix:{}", path.display());
    let (mut gateway, place) = start(&listen, &["--admin-token", TOKEN]);
    assert_eq!(place, listen);
    serves_everything(&gateway, &Admin::at_unix(&path), &json!("somebody on this host"));
    // A gateway listens: another one does not take it away.
    refuses(&listen, "in use");
    assert_eq!(Admin::at_unix(&path).get("/admin/connections").0, 200);
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
    assert!(!path.exists());

    // A killed gateway leaves a file, which is replaced.
    let (mut gateway, _) = start(&listen, &["--admin-token", TOKEN]);
    gateway.kill();
    assert!(path.exists());
    let (gateway, _) = start(&listen, &["--admin-token", TOKEN]);
    assert_eq!(Admin::at_unix(&path).get("/admin/connections").0, 200);
    // A file that has replaced it meanwhile is not its to remove.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let mut gateway = gateway;
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
    assert!(UnixStream::connect(&path).is_ok());
    // Another program listens.
    refuses(&listen, "in use");
    drop(other);

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    refuses(&listen, "not a socket");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let nowhere = format!("unix:{}", Path::new("/nonexistent/admin.sock").display());
    refuses(&nowhere, "cannot listen on admin.listen");
}

#[track_caller]
fn refuses(listen: &str, why: &str) {
    let ended = run_to_exit(&[
        "--listen",
        "127.0.0.1:0",
        "--shards",
        "1",
        "--cpus",
        "none",
        "--admin-listen",
        listen,
    ]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(why), "{ended:?}");
}

#[test]
fn without_a_token_only_numbers_are_served() {
    let (gateway, place) = start("127.0.0.1:0", &[]);
    let admin = Admin::at(place.parse().unwrap());
    assert_eq!(admin.raw("GET", "/metrics", "", "").status, 200);
    assert_eq!(
        admin
            .raw("GET", "/admin/connections", &admin.authorization(), "")
            .status,
        404
    );
    assert_eq!(admin.raw("GET", "/admin/", "Accept: text/html\r\n", "").status, 404);
    assert_eq!(gateway.get("/metrics").status, 404);
}

#[test]
fn the_token_changes_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let (token, config) = (directory.path().join("token"), directory.path().join("shardgate.toml"));
    let write = |text: &str| std::fs::write(&token, format!("{text}\n")).unwrap();
    write(TOKEN);
    std::fs::write(&config, format!("admin.token = '@{}'\n", token.display())).unwrap();
    let gateway = Gateway::start(&["--config", config.to_str().unwrap()]);
    let own = ["--config", config.to_str().unwrap()];
    let (second, place) = start("127.0.0.1:0", &own);
    for (gateway, admin) in [
        (&gateway, Admin::of(&gateway)),
        (&second, Admin::at(place.parse().unwrap())),
    ] {
        write(TOKEN);
        gateway.signal(libc::SIGHUP);
        eventually("the first token", || admin.get("/admin/connections").0 == 200);
        write("another-token-of-16-bytes");
        gateway.signal(libc::SIGHUP);
        eventually("the old token is refused", || admin.get("/admin/connections").0 == 401);
        let newer = admin.clone().with_token("another-token-of-16-bytes");
        // Shard by shard.
        eventually("the new one is taken everywhere", || {
            (0..8).all(|_| newer.get("/admin/connections").0 == 200)
        });
        let lines = gateway.log_lines();
        write("short");
        gateway.signal(libc::SIGHUP);
        let line = gateway.wait_for_log_after(lines, "configuration not changed");
        assert!(
            line.contains("admin.token") && line.contains("16 bytes") && !line.contains("short"),
            "{line}"
        );
        assert_eq!(newer.get("/admin/connections").0, 200);
        assert!(!gateway.log().contains(TOKEN));
    }
}

/// More connections than permits: each newcomer is served, and connections that have shown the
/// token stay.
#[test]
fn silent_sockets_keep_nobody_out() {
    let (gateway, place) = start("127.0.0.1:0", &["--admin-token", TOKEN]);
    let addr: SocketAddr = place.parse().unwrap();
    let admin = Admin::at(addr);
    let ask = format!(
        "GET /admin/connections HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        admin.authorization()
    );
    let mut known = Client::connect(addr);
    known.send_raw(ask.as_bytes());
    assert_eq!(known.read_response().status, 200);
    let mut silent: Vec<Client> = (0..300).map(|_| Client::connect(addr)).collect();
    for path in ["/livez", "/metrics", "/admin/connections"] {
        assert_eq!(admin.raw("GET", path, &admin.authorization(), "").status, 200, "{path}");
    }
    // The oldest went, the youngest are there. The age of a served connection without a token
    // counts from its last answer.
    silent[0].expect_end();
    let last = silent.last_mut().unwrap();
    for _ in 0..2 {
        last.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(last.read_response().status, 200);
    }
    known.send_raw(ask.as_bytes());
    assert_eq!(known.read_response().status, 200);
    let metrics = admin.raw("GET", "/metrics", "", "").body;
    let crowded = metrics
        .lines()
        .find_map(|line| line.strip_prefix("shardgate_admin_crowded_total "));
    assert!(crowded.unwrap().parse::<u64>().unwrap() >= 300 - 224, "{crowded:?}");
    drop(gateway);
}
