//! The examples in `tuning/` as they stand: each starts, lets in the users that it names, and shows
//! the public nothing else.
//!
//! They run on a host of their own that has their addresses, their `/etc/shardgate` and their
//! identity provider. The tests change only CPUs and connections, of which this machine has fewer.

use shardgate::jws::Algorithm;

use crate::common::gateway::{command, run_to_exit};
use crate::common::{Client, Cluster, Gateway, namespace, tokens};
use crate::provider::{self, Provider};
use crate::repository;

const EXAMPLES: [&str; 7] = [
    "16-core.toml",
    "2-core.toml",
    "64-core-2-numa.toml",
    "behind-haproxy.toml",
    "behind-nginx.toml",
    "cluster-redis.toml",
    "laptop.toml",
];

/// The host that the examples are for.
pub(crate) struct Host {
    _folder: tempfile::TempDir,
    pub(crate) provider: Provider,
}

impl Host {
    /// Inside a namespace: addresses, names, `/etc/shardgate` with a secret and a certificate, an
    /// identity provider.
    pub(crate) fn new() -> Host {
        let folder = tempfile::tempdir().unwrap();
        namespace::own_etc(folder.path());
        namespace::addresses(&[
            "10.0.0.5/32",
            "10.0.0.6/32",
            "10.0.0.9/32",
            "10.0.0.10/32",
            "10.0.0.11/32",
            "10.0.0.12/32",
        ]);
        namespace::names(&[(provider::HOST, provider::ADDRESS)]);
        let provider = Provider::start();
        let pair = provider.authority.sign("gateway");
        std::fs::create_dir_all("/etc/shardgate").unwrap();
        std::fs::write("/etc/shardgate/token-secret", tokens::SECRET).unwrap();
        std::fs::copy(&pair.cert, "/etc/shardgate/cert.pem").unwrap();
        std::fs::copy(&pair.key, "/etc/shardgate/key.pem").unwrap();
        Host {
            _folder: folder,
            provider,
        }
    }

    /// Starts the example. Flags go before the file.
    #[track_caller]
    pub(crate) fn start(&self, example: &str, flags: &[&str]) -> Gateway {
        let (trust, ca) = self.provider.trust();
        let mut program = command(env!("CARGO_BIN_EXE_shardgate"));
        program
            .arg("--config")
            .arg(repository().join("tuning").join(example))
            .env(trust, ca);
        program.args([
            "--shards",
            "2",
            "--cpus",
            "none",
            "--limits-connections",
            "1000",
            "--limits-handshakes",
            "1000",
        ]);
        if text(example).contains("\ncontrol_cpu") {
            program.args(["--control-cpu", "0"]);
        }
        program.args(flags);
        Gateway::try_spawn(program).unwrap_or_else(|ended| panic!("{example}: {ended:#?}"))
    }
}

pub(crate) fn text(example: &str) -> String {
    std::fs::read_to_string(repository().join("tuning").join(example)).unwrap()
}

/// Which algorithm an example's tokens have.
fn algorithm(example: &str) -> Algorithm {
    let text = text(example);
    [Algorithm::Es256, Algorithm::Rs256, Algorithm::Hs256]
        .into_iter()
        .find(|algorithm| text.contains(&format!("algorithm = \"{}\"", algorithm.name())))
        .unwrap_or_else(|| panic!("{example} pins no algorithm"))
}

/// Checks the promises of an example with a key. A good token lets its user in and nothing else
/// does; numbers are for the operator.
#[track_caller]
fn is_closed_to_strangers(example: &str, gateway: &Gateway) {
    for path in ["/metrics", "/stats", "/dashboard", "/", "/admin/", "/echo"] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 404, "{example} {path}: {answer:?}");
    }
    let mut operator = Client::connect("127.0.0.1:9090".parse().unwrap());
    operator.send_raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = operator.read_response();
    assert!(answer.body.contains("shardgate_connections"), "{example}: {answer:?}");

    let token = provider::token(algorithm(example), "alice");
    let mut known = gateway.upgrade(&format!("/ws?token={token}"));
    assert_eq!(known.recv_json()["userId"], "alice", "{example}");
    // A name without a token lets no user in, by the handshake or by the first message.
    let mut nameless = gateway.tcp();
    nameless.send_upgrade("/ws?user=mallory", "");
    match nameless.read_head().status {
        401 => {}
        101 => {
            nameless.send_text(r#"{"type":"auth","userId":"mallory"}"#);
            let frame = nameless.recv();
            assert_eq!(frame.close_code(), Some(3500), "{example}: {frame:?}");
        }
        other => panic!("{example}: {other}"),
    }
}

#[test]
fn examples_for_the_public_know_their_users() {
    namespace::inside("examples::examples_for_the_public_know_their_users", || {
        let host = Host::new();
        for example in [
            "2-core.toml",
            "64-core-2-numa.toml",
            "behind-nginx.toml",
            "behind-haproxy.toml",
        ] {
            let redis = text(example).contains("[redis]").then(crate::blocks::Redis::start);
            let gateway = host.start(example, &[]);
            assert!(
                !gateway.addr.ip().is_unspecified(),
                "{example} listens everywhere in plain text"
            );
            is_closed_to_strangers(example, &gateway);
            drop(gateway);
            drop(redis);
        }
    });
}

/// Plain text is for private networks. Clients that connect directly use TLS.
#[test]
fn the_example_without_a_proxy_speaks_tls() {
    namespace::inside("examples::the_example_without_a_proxy_speaks_tls", || {
        let host = Host::new();
        // The identity provider has port 443 of another address.
        let mut gateway = host.start("16-core.toml", &["--listen", "127.0.0.1:443"]);
        gateway.tls = Some(host.provider.authority.client());
        is_closed_to_strangers("16-core.toml", &gateway);
    });
}

#[test]
fn gateways_of_the_cluster_example_are_one_system() {
    namespace::inside("examples::gateways_of_the_cluster_example_are_one_system", || {
        let host = Host::new();
        let cluster = Cluster::start();
        let url = cluster.url();
        let first = host.start("cluster-redis.toml", &["--redis-url", &url]);
        is_closed_to_strangers("cluster-redis.toml", &first);
        let flags = [
            "--redis-url",
            &url,
            "--gateway-id",
            "gateway-2",
            "--listen",
            "10.0.0.12:8080",
        ];
        let second = host.start(
            "cluster-redis.toml",
            &[&flags[..], &["--admin-listen", "127.0.0.1:9091"]].concat(),
        );
        let enter = |gateway: &Gateway, user: &str| {
            let token = provider::token(Algorithm::Es256, user);
            let mut client = gateway.upgrade(&format!("/ws?token={token}"));
            assert_eq!(client.recv_json()["userId"], user);
            client
        };
        let (mut alice, mut bob) = (enter(&first, "alice"), enter(&second, "bob"));
        for (channel, answer) in [
            ("room:1", "subscribed"),
            ("inbox:bob", "subscribed"),
            ("inbox:alice", "error"),
        ] {
            bob.send_json(&serde_json::json!({"type": "subscribe", "channel": channel}));
            assert_eq!(bob.recv_json()["type"], answer, "{channel}");
        }
        alice.send_text(r#"{"type":"publish","channel":"room:1","content":1}"#);
        assert_eq!(bob.recv_json()["type"], "publication");
        alice.send_text(r#"{"type":"message","to":"bob","content":2,"id":"m"}"#);
        assert_eq!(bob.recv_json()["content"], 2);
        assert_eq!(alice.recv_json()["status"], "routed");
    });
}

#[test]
fn the_laptop_is_for_one_machine() {
    namespace::inside("examples::the_laptop_is_for_one_machine", || {
        let host = Host::new();
        let mut gateway = host.start("laptop.toml", &[]);
        assert!(gateway.addr.ip().is_loopback(), "{}", gateway.addr);
        let alice = gateway.connect("alice");
        drop(gateway.upgrade("/echo"));
        let begun = std::time::Instant::now();
        gateway.signal(libc::SIGINT);
        assert_eq!(gateway.wait_for_exit(), 0);
        // "Ctrl-C should not make anyone wait": drain.timeout, and five seconds for the answer to a
        // close frame.
        assert!(begun.elapsed().as_secs() < 8, "{:?}", begun.elapsed());
        drop(alice);
    });
}

/// Checks every line as it stands. The tests above replace CPUs and connections.
#[test]
fn every_example_is_a_configuration() {
    namespace::inside("examples::every_example_is_a_configuration", || {
        let _host = Host::new();
        for example in EXAMPLES {
            let file = repository().join("tuning").join(example);
            let ended = run_to_exit(&["--config", file.to_str().unwrap(), "--check-config"]);
            assert_eq!(ended.code, Some(0), "{example}: {ended:#?}");
        }
    });
}

/// Every example is started by a test above.
#[test]
fn every_example_is_started() {
    let entries = std::fs::read_dir(repository().join("tuning")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
    names.sort();
    assert_eq!(names, EXAMPLES);
    let ours = std::fs::read_to_string(repository().join("tests/documents/examples.rs")).unwrap();
    for name in EXAMPLES {
        let named = ours.matches(&format!("\"{name}\"")).count();
        assert!(named > 1, "no test starts tuning/{name}");
    }
}
