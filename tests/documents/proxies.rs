//! nginx and HAProxy as `docs/tuning.md` shows them: a rolling deploy of both gateways while
//! clients connect. No handshake fails, and each gateway knows the addresses of its clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use shardgate::jws::Algorithm;

use crate::common::admin::TOKEN;
use crate::common::{Admin, Client, Gateway, eventually, namespace};
use crate::examples::Host;
use crate::{blocks, markdown, provider, read};

const PUBLIC: &str = "127.0.0.1:443";
const OPERATORS: [&str; 2] = ["127.0.0.1:9090", "127.0.0.1:9091"];

/// The one block of this language.
fn documented(language: &str) -> String {
    let document = Path::new("docs/tuning.md");
    let mut blocks = markdown::blocks(document, &read(document));
    blocks.retain(|block| block.language == language);
    assert_eq!(blocks.len(), 1, "{language}");
    blocks.remove(0).text
}

/// Replaces a word that must occur in the text.
#[track_caller]
fn instead(text: &str, shown: &str, here: &str) -> String {
    assert!(text.contains(shown), "{shown:?} is not in {text}");
    text.replace(shown, here)
}

/// A proxy that ends with the test.
struct Proxy(Child);

impl Proxy {
    fn start(command: &mut Command) -> Proxy {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        eventually("the proxy listens", || TcpStream::connect(PUBLIC).is_ok());
        Proxy(child)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two gateways, and the clients that connect through the proxy.
struct Deploy<'a> {
    host: &'a Host,
    example: &'static str,
    token: String,
    served: u32,
}

impl Deploy<'_> {
    fn gateway(&self, which: usize) -> Gateway {
        let listen = ["10.0.0.11:8080", "10.0.0.12:8080"][which];
        let admin = OPERATORS[which];
        // All clients of this test are one address, and come faster than an office.
        let free = [
            "--limits-connects-per-address",
            "0",
            "--limits-handshakes-per-address",
            "0",
        ];
        let flags = [
            "--listen",
            listen,
            "--admin-listen",
            admin,
            "--admin-token",
            TOKEN,
            "--drain-timeout",
            "3s",
        ];
        self.host.start(self.example, &[&flags[..], &free].concat())
    }

    /// Connects one more client. Returns the gateway that took it. A rolling deploy shows only
    /// `101`.
    #[track_caller]
    fn enter(&mut self) -> (Client, String) {
        let mut client = Client::connect(PUBLIC.parse().unwrap()).over_tls(self.host.provider.authority.client());
        client.send_upgrade(&format!("/ws?token={}", self.token), "");
        let answer = client.read_head();
        assert_eq!(answer.status, 101, "after {} good ones: {answer:?}", self.served);
        self.served += 1;
        let welcome = client.recv_json();
        (client, welcome["gatewayId"].as_str().unwrap().to_owned())
    }
}

/// How many handshakes a gateway refused because it drains; `None` when it is gone.
fn refused_by(which: usize) -> Option<f64> {
    let mut stream = TcpStream::connect(OPERATORS[which]).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).ok()?;
    let refused =
        |line: &&str| line.starts_with("shardgate_handshakes_refused_total{") && line.contains("reason=\"draining\"");
    let counts = metrics
        .lines()
        .filter(refused)
        .map(|line| line.rsplit_once(' ').unwrap().1);
    Some(counts.map(|count| count.parse::<f64>().unwrap()).sum())
}

fn rolling_deploy(host: &Host, example: &'static str, start_proxy: impl FnOnce() -> Proxy) {
    let _redis = blocks::Redis::start();
    let token = provider::token(Algorithm::Rs256, "alice");
    let mut deploy = Deploy {
        host,
        example,
        token,
        served: 0,
    };
    let mut gateways = [deploy.gateway(0), deploy.gateway(1)];
    let _proxy = start_proxy();
    let mut held: Vec<(Client, String)> = (0..12).map(|_| deploy.enter()).collect();
    for (which, gateway) in gateways.iter().enumerate() {
        let here = held.iter().filter(|(_, id)| *id == gateway.id).count();
        assert!(here > 0, "nobody came to {}", gateway.id);
        let (_, listed) = Admin::at(OPERATORS[which].parse().unwrap()).get("/admin/connections");
        for connection in listed["connections"].as_array().unwrap() {
            let address = connection["remoteAddr"].as_str().unwrap();
            assert!(address.starts_with("127.0.0.1"), "the client is not at {address}");
        }
    }
    for which in [0, 1] {
        let old = gateways[which].id.clone();
        // The proxy prefers the gateway with fewer clients. Both have as many, so that it goes on
        // preferring the one that drains.
        held.extend((0..12).map(|_| deploy.enter()));
        let mut refused = 0.0;
        gateways[which].signal(libc::SIGTERM);
        while gateways[which].is_running() {
            drop(deploy.enter());
            refused = refused_by(which).unwrap_or(refused);
        }
        assert!(refused > 0.0, "nobody asked {old} while it drained: nothing is proven");
        // Its port is closed now.
        for _ in 0..10 {
            assert_ne!(deploy.enter().1, old);
        }
        gateways[which] = deploy.gateway(which);
        let new = gateways[which].id.clone();
        eventually("the new gateway is found", || deploy.enter().1 == new);
    }
    println!("{} handshakes, none failed", deploy.served);
}

#[test]
fn nginx_deploys_two_gateways_one_after_the_other() {
    namespace::inside("proxies::nginx_deploys_two_gateways_one_after_the_other", || {
        let host = Host::new();
        namespace::run(&["mount", "-t", "tmpfs", "tmpfs", "/var/log"]);
        std::fs::create_dir_all("/var/log/nginx").unwrap();
        std::fs::create_dir_all("/etc/nginx").unwrap();
        let pair = host.provider.authority.sign("nginx");
        std::fs::copy(&pair.cert, "/etc/nginx/cert.pem").unwrap();
        std::fs::copy(&pair.key, "/etc/nginx/key.pem").unwrap();
        // The identity provider has this port, too, of another address.
        let shown = instead(&documented("nginx"), "listen 443 ", &format!("listen {PUBLIC} "));
        std::fs::write("/etc/nginx/shown.conf", &shown).unwrap();
        rolling_deploy(&host, "behind-nginx.toml", || {
            let own = "daemon off; user root; pid /etc/nginx/pid;";
            Proxy::start(Command::new("nginx").args(["-c", "/etc/nginx/shown.conf", "-g", own]))
        });
        let read = |name: &str| std::fs::read_to_string(format!("/var/log/nginx/{name}.log")).unwrap();
        let log = read("access") + &read("error");
        assert!(log.contains("\"GET /ws\" 101") && !log.contains("token="), "{log}");
    });
}

#[test]
fn haproxy_deploys_two_gateways_one_after_the_other() {
    namespace::inside("proxies::haproxy_deploys_two_gateways_one_after_the_other", || {
        let host = Host::new();
        std::fs::create_dir_all("/etc/haproxy").unwrap();
        let pair = host.provider.authority.sign("haproxy");
        let both = [&pair.cert, &pair.key]
            .map(|path| std::fs::read_to_string(path).unwrap())
            .concat();
        std::fs::write("/etc/haproxy/example.pem", both).unwrap();
        let shown = instead(&documented("haproxy"), "bind :443 ", &format!("bind {PUBLIC} "));
        // A test may open files for 2,000 connections.
        let shown = instead(&shown, "maxconn 100000", "maxconn 2000");
        // On a host of its own it has this address without being told.
        let shown = instead(&shown, "send-proxy-v2\n", "send-proxy-v2 source 10.0.0.5\n");
        std::fs::write("/etc/haproxy/shown.cfg", &shown).unwrap();
        rolling_deploy(&host, "behind-haproxy.toml", || {
            Proxy::start(Command::new("haproxy").args(["-db", "-f", "/etc/haproxy/shown.cfg"]))
        });
    });
}
