//! Keys from a URL: fetched, rotated, kept while nothing better comes, and fetched with a limit.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::client::assert_switched;
use common::tokens::{connect, key_file, sign};
use common::{Gateway, eventually, run_to_exit};
use serde_json::json;
use shardgate::jws::Algorithm::{self, EdDsa, Es256};

/// The server's answer.
#[derive(Clone)]
enum Answer {
    Body(u16, String),
    /// Takes the connection and stays silent, for good.
    Nothing,
    /// Closes it.
    Close,
    Redirect(String),
}

/// A small HTTP server, perhaps within TLS. Dropping it ends its thread.
struct Server {
    addr: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(answer: Answer) -> Server {
        Server::start_with(answer, None)
    }

    fn start_with(answer: Answer, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let answer = now.lock().unwrap().clone();
                let Ok(stream) = stream else { continue };
                stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
                if matches!(&answer, Answer::Body(0, _)) {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                match (&answer, &tls) {
                    (Answer::Nothing, _) => silent.push(stream),
                    (_, None) => serve(stream, &answer),
                    (_, Some(config)) => {
                        let tls = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                        serve(rustls::StreamOwned::new(tls, stream), &answer);
                    }
                }
            }
        });
        Server {
            addr,
            answer,
            asked,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("http://{}/jwks.json?api_key=s3cret", self.addr)
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn keys(&self, keys: &[(Algorithm, &str)]) {
        self.answer(jwks(keys));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.answer(Answer::Body(0, String::new()));
        let _ = TcpStream::connect(self.addr);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(mut stream: impl Read + Write, answer: &Answer) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let response = match answer {
        Answer::Body(status, body) => {
            format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Answer::Redirect(to) => {
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Answer::Close | Answer::Nothing => return,
    };
    let _ = stream.write_all(response.as_bytes());
    let _ = stream.flush();
}

fn jwk(algorithm: Algorithm, kid: &str) -> serde_json::Value {
    let pem = std::fs::read_to_string(&key_file(algorithm)[1..]).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).unwrap();
    // The key is what stands last in it.
    let last = |from: usize, to: usize| URL_SAFE_NO_PAD.encode(&der[der.len() - from..der.len() - to]);
    match algorithm {
        Es256 => json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": last(64, 32), "y": last(32, 0)}),
        EdDsa => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": last(32, 0)}),
        other => panic!("{other}"),
    }
}

fn jwks(keys: &[(Algorithm, &str)]) -> Answer {
    let keys: Vec<_> = keys.iter().map(|(algorithm, kid)| jwk(*algorithm, kid)).collect();
    Answer::Body(200, json!({"keys": keys}).to_string())
}

fn args(url: &str) -> [String; 2] {
    [
        format!("--auth-jwks-url={url}"),
        "--auth-algorithm=ES256,EdDSA".to_owned(),
    ]
}

#[track_caller]
fn gateway(server: &Server) -> Gateway {
    let [url, algorithm] = args(&server.url());
    Gateway::start(&[&url, &algorithm])
}

fn token(algorithm: Algorithm, kid: &str) -> String {
    sign(algorithm, &json!({"sub": "alice"}), Some(kid))
}

fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.try_upgrade(&format!("/ws?token={token}"), "").status
}

fn fetches(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("shardgate_jwks_fetches_total", &[&format!("result=\"{result}\"")])
}

#[test]
fn keys_are_fetched_before_anybody_comes() {
    let server = Server::start(jwks(&[(Es256, "a"), (EdDsa, "b")]));
    let gateway = gateway(&server);
    assert_eq!(server.asked(), 1);
    for (algorithm, kid) in [(Es256, "a"), (EdDsa, "b")] {
        assert_eq!(status(&gateway, &token(algorithm, kid)), 101);
    }
    assert_eq!(
        status(&gateway, &sign(Es256, &json!({"sub": "alice"}), None)),
        101,
        "there is only one of its kind"
    );
    assert_eq!(server.asked(), 1);
    assert_eq!(fetches(&gateway, "ok"), 1.0);
    // The URL may hold a key of its own.
    let line = gateway.wait_for_log("keys from");
    assert!(line.contains("a, b") && !gateway.log().contains("s3cret"), "{line}");
}

/// A client with a token of the new key is let in at once, or as soon as the limit allows; the old
/// key goes.
#[test]
fn a_rotation_is_noticed_by_the_first_token_of_the_new_key() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let gateway = gateway(&server);
    let (old, new) = (token(Es256, "a"), token(EdDsa, "b"));
    let (mut connected, welcome) = connect(&gateway, &old);
    server.keys(&[(EdDsa, "b")]);
    assert_eq!(status(&gateway, &new), 101);
    // In-band, on a connection that is open already.
    connected.send_json(&json!({"type": "auth", "token": new}));
    assert_eq!(connected.recv_json(), welcome);
    assert_eq!(status(&gateway, &old), 401);
    // And as the first message.
    server.keys(&[(Es256, "c")]);
    let mut client = gateway.upgrade("/ws");
    client.send_json(&json!({"type": "auth", "token": token(Es256, "c")}));
    assert_eq!(client.recv_json()["userId"], "alice");
    assert!(gateway.metric("shardgate_token_verifications_total", &["result=\"unknown_key\""]) >= 1.0);
}

fn without_kid(algorithm: Algorithm) -> serde_json::Value {
    let mut jwk = jwk(algorithm, "");
    jwk.as_object_mut().unwrap().remove("kid");
    jwk
}

/// A key of P-256 that signed none of our tokens.
fn stranger(kid: &str) -> serde_json::Value {
    let x = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    let y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y})
}

/// A second published key keeps no client out.
#[test]
fn each_key_that_fits_is_tried() {
    let server = Server::start(jwks(&[]));
    let ours = |name: &str| jwk(Es256, name);
    let mut unnamed_stranger = stranger("");
    unnamed_stranger.as_object_mut().unwrap().remove("kid");
    let unnamed = sign(Es256, &json!({"sub": "alice"}), None);
    let named = token(Es256, "a");
    for (keys, shown) in [
        (json!([stranger("b"), ours("a")]), &unnamed),
        (json!([unnamed_stranger, without_kid(Es256)]), &unnamed),
        (json!([unnamed_stranger, without_kid(Es256)]), &named),
        (json!([stranger("a"), ours("a")]), &named),
    ] {
        let bom = format!("\u{feff}{}", json!({"keys": keys}));
        server.answer(Answer::Body(200, bom));
        let gateway = gateway(&server);
        assert_eq!(status(&gateway, shown), 101, "{keys}");
        let forged = sign(EdDsa, &json!({"sub": "alice"}), None);
        assert_eq!(status(&gateway, &forged), 401, "{keys}");
    }
}

/// Keys without names rotate, too.
#[test]
fn a_rotation_without_names_is_noticed() {
    let unnamed = |keys: serde_json::Value| Answer::Body(200, json!({"keys": keys}).to_string());
    let mut old = stranger("");
    old.as_object_mut().unwrap().remove("kid");
    let server = Server::start(unnamed(json!([old])));
    let gateway = gateway(&server);
    server.answer(unnamed(json!([without_kid(Es256)])));
    assert_eq!(status(&gateway, &sign(Es256, &json!({"sub": "alice"}), None)), 101);
}

#[test]
fn made_up_keys_cause_few_fetches() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let gateway = gateway(&server);
    let began = Instant::now();
    for round in 0..3 {
        let mut clients: Vec<_> = (0..50)
            .map(|n| {
                let mut client = gateway.tcp();
                client.send_upgrade(&format!("/ws?token={}", token(Es256, &format!("{round}/{n}"))), "");
                client
            })
            .collect();
        // Others are not kept waiting meanwhile.
        connect(&gateway, &token(Es256, "a"));
        for client in &mut clients {
            assert_eq!(client.read_response().status, 401);
        }
    }
    let most = began.elapsed().as_secs() / 2 + 2;
    assert!(
        server.asked() as u64 <= most,
        "{} fetches, at most {most}",
        server.asked()
    );
    gateway.wait_until_empty();
}

#[test]
fn old_keys_stay_while_nothing_better_comes() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let gateway = gateway(&server);
    let (old, new) = (token(Es256, "a"), token(EdDsa, "b"));
    let too_long = format!("{{\"keys\":[{}],\"x\":\"{}\"}}", jwk(EdDsa, "b"), "x".repeat(300_000));
    let symmetric = r#"{"keys":[{"kty":"oct","kid":"b","k":"c2VjcmV0","alg":"HS256"}]}"#;
    let bad = [
        Answer::Body(500, "{}".into()),
        Answer::Body(404, json!({"keys": [jwk(EdDsa, "b")]}).to_string()),
        Answer::Body(200, "<html>".into()),
        Answer::Body(200, "{\"keys\":[]}".into()),
        Answer::Body(200, symmetric.into()),
        Answer::Body(200, too_long),
        Answer::Close,
        Answer::Redirect("/again".into()),
    ];
    let failed = bad.len();
    for (n, answer) in bad.into_iter().enumerate() {
        server.answer(answer);
        assert_eq!(status(&gateway, &new), 401, "{n}");
        assert_eq!(status(&gateway, &old), 101, "{n}");
        assert!(fetches(&gateway, "failed") >= n as f64 + 1.0, "{n}");
    }
    assert!(fetches(&gateway, "failed") >= failed as f64);
    let log = gateway.log();
    assert_eq!(
        log.matches("going on with those there are").count(),
        1,
        "said once: {log}"
    );
    assert!(!log.contains("s3cret"), "{log}");
    server.keys(&[(Es256, "a"), (EdDsa, "b")]);
    assert_eq!((status(&gateway, &new), status(&gateway, &old)), (101, 101));
    gateway.wait_for_log("again");
}

/// A client that waits for a silent server gets its refusal in time, and may come again.
#[test]
fn a_silent_server_does_not_keep_anybody_waiting_for_ever() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let [url, algorithm] = args(&server.url());
    let gateway = Gateway::start(&[&url, &algorithm, "--auth-timeout=500ms"]);
    server.answer(Answer::Nothing);
    let answer = gateway.try_upgrade(&format!("/ws?token={}", token(EdDsa, "b")), "");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.retry_after() > 0);
    let mut client = gateway.upgrade("/ws");
    client.send_json(&json!({"type": "auth", "token": token(EdDsa, "c")}));
    client.expect_close(3013);
    assert_eq!(status(&gateway, &token(Es256, "a")), 101);
    gateway.wait_until_empty();
}

#[test]
fn a_drain_does_not_wait_for_keys() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let mut gateway = gateway(&server);
    server.answer(Answer::Nothing);
    let mut waiting = gateway.tcp();
    waiting.send_upgrade(&format!("/ws?token={}", token(EdDsa, "b")), "");
    eventually("it waits", || server.asked() >= 2);
    gateway.signal(libc::SIGTERM);
    assert_eq!(waiting.read_response().status, 503);
    assert_eq!(gateway.wait_for_exit(), 0);
}

#[test]
fn without_keys_a_gateway_does_not_start() {
    let server = Server::start(Answer::Body(500, String::new()));
    let [url, algorithm] = args(&server.url());
    let ended = run_to_exit(&["--listen=127.0.0.1:0", "--shards=1", "--cpus=none", &url, &algorithm]);
    assert_eq!(ended.code, Some(1));
    for part in ["no keys from", "500", "auth.jwks_url"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("s3cret"), "{}", ended.stderr);
    assert!(server.asked() > 1, "it tries again and again");
}

#[test]
fn a_gateway_waits_for_its_first_keys() {
    let server = Server::start(Answer::Close);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it was refused once", || server.asked() >= 1);
            server.keys(&[(Es256, "a")]);
        });
        assert_eq!(status(&gateway(&server), &token(Es256, "a")), 101);
    });
}

#[test]
fn https_with_an_authority_of_its_own() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let server = Server::start_with(jwks(&[(Es256, "a")]), Some(Arc::new(config)));
    let [url, algorithm] = args(&format!("https://localhost:{}/jwks", server.addr.port()));
    let env = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let gateway = Gateway::start_with_env(&[&url, &algorithm], &env);
    let mut client = gateway.tcp();
    client.send_upgrade(&format!("/ws?token={}", token(Es256, "a")), "");
    assert_switched(&client.read_head());
    // No other server may answer.
    let args = [
        "--listen=127.0.0.1:0",
        "--shards=1",
        "--cpus=none",
        url.as_str(),
        algorithm.as_str(),
    ];
    let ended = run_to_exit(&args);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.to_lowercase().contains("certificate"), "{}", ended.stderr);
}

#[test]
fn the_age_of_keys_is_shown() {
    let server = Server::start(jwks(&[(Es256, "a")]));
    let gateway = gateway(&server);
    eventually("it grows", || gateway.metric("shardgate_jwks_age_seconds", &[]) > 0.0);
}
