//! Values, contradictions, the keys of this release, and the keys that a reload may change.

use log::LevelFilter;

use super::*;
use crate::config::checks::OF_TOKENS;
use crate::config::keys::KEYS;
use crate::jws::Algorithm;

#[test]
fn without_anything_the_defaults_of_the_contract_hold() {
    let config = run(&[], &[]);
    assert_eq!(config.listen, Listen::Tcp("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(config.engine, EngineChoice::Auto);
    assert!(!config.echo && !config.insecure);
    assert_eq!(
        (config.shards, config.cpus, config.control_cpu),
        (None, Placement::FirstAllowed, None)
    );
    assert_eq!((config.listen_backlog, config.log_level), (4096, LevelFilter::Info));
    assert!(config.origins.is_empty() && config.proxies.is_empty());
    let limits = Limits {
        connections: None,
        message_bytes: 65_536,
        outbox_bytes: 1_048_576,
        channels_per_connection: 128,
        channel_name_bytes: 32_768,
        messages_per_second: 100,
        burst: 200,
        connections_per_user: 16,
        handshakes_per_second: 0,
        handshakes: None,
        handshakes_per_address: 0,
        connects_per_address: 0,
        handshake_timeout: Duration::from_secs(10),
        header_bytes: 16_384,
    };
    assert_eq!(config.limits, limits);
    let channels = ChannelsConfig {
        subscribe: None,
        publish: None,
        partitions: 64,
    };
    assert_eq!(config.channels, channels);
    let heartbeat = Heartbeat {
        interval: Duration::from_secs(25),
        timeout: Duration::from_secs(90),
    };
    assert_eq!(config.heartbeat, heartbeat);
    assert_eq!(
        (config.auth_timeout, config.drain.timeout),
        (Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!(
        Config {
            gateway_id: config.gateway_id,
            ..Config::default()
        }
        .limits,
        limits
    );
}

#[test]
fn the_default_gateway_id_is_the_host_and_six_random_characters() {
    let (one, two) = (run(&[], &[]).gateway_id, run(&[], &[]).gateway_id);
    assert_ne!(one, two);
    let (host, suffix) = one.rsplit_once('-').unwrap();
    assert!(!host.is_empty());
    assert!(
        suffix.len() == 6 && suffix.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
        "{one}"
    );
    assert!(one.len() <= 128);
}

#[test]
fn cpus_and_shards() {
    let config = run(&["--cpus", "0-1,4"], &[]);
    assert_eq!((config.cpus, config.shards), (Placement::Cpus(vec![0, 1, 4]), Some(3)));
    assert_eq!(run(&["--cpus", "0-3", "--shards=2"], &[]).shards, Some(2));
    assert_eq!(run(&["--cpus=none", "--shards=9"], &[]).cpus, Placement::Unpinned);
    assert_eq!(run_toml("cpus = [0, 2]").cpus, Placement::Cpus(vec![0, 2]));
    assert_says(
        &refused(&["--cpus=0-1", "--shards=3"], &[]),
        &["shards = 3", "contradicts", "cpus = \"0-1\"", "--cpus"],
    );
    assert_says(&refused(&["--cpus=0,0"], &[]), &["cpus", "CPU 0 is listed twice"]);
    assert_says(&refused(&["--shards=0"], &[]), &["shards", "from 1 to 256"]);
}

#[test]
fn log_levels_are_words_in_any_case() {
    assert_eq!(run(&["--log-level", "DEBUG"], &[]).log_level, LevelFilter::Debug);
    assert_eq!(run(&[], &[("SHARDGATE_LOG_LEVEL", "off")]).log_level, LevelFilter::Off);
    assert_says(
        &refused(&["--log-level=loud"], &[]),
        &["log_level", "\"loud\"", "off, error, warn, info, debug, trace"],
    );
}

#[test]
fn a_bare_number_is_no_duration() {
    let said = refused(&["--heartbeat-interval", "25"], &[]);
    assert_says(
        &said,
        &[
            "heartbeat.interval",
            "\"25\"",
            "flag --heartbeat-interval",
            "bare number",
            "25s",
        ],
    );
    assert_says(
        &refused_toml("[heartbeat]\ninterval = 25"),
        &["heartbeat.interval", "line 2", "bare number"],
    );
    for key in [
        "--heartbeat-interval",
        "--heartbeat-timeout",
        "--auth-timeout",
        "--limits-handshake-timeout",
    ] {
        assert_says(&refused(&[key, "0s"], &[]), &["from 1ms to 24h"]);
    }
    assert_eq!(run(&["--drain-timeout=0s"], &[]).drain.timeout, Duration::ZERO);
    assert_eq!(run(&["--drain-timeout=10m"], &[]).drain.per_second, 0);
    let slow = run(&["--drain-timeout=24h", "--drain-per-second=5"], &[]).drain;
    assert_eq!((slow.timeout.as_secs(), slow.per_second), (24 * 3600, 5));
    assert_says(
        &refused(&["--drain-timeout", "601s"], &[]),
        &["drain.timeout = \"601s\"", "drain.per_second", "10m at most"],
    );
}

#[test]
fn numbers_have_ranges() {
    for (flag, bad) in [
        ("--limits-message-bytes", "124"),
        ("--limits-message-bytes", "67108865"),
        ("--limits-outbox-bytes", "4095"),
        ("--limits-header-bytes", "511"),
        ("--limits-header-bytes", "1048577"),
        ("--limits-burst", "0"),
        ("--limits-connections", "0"),
        ("--shards", "257"),
        ("--listen-backlog", "0"),
        ("--listen-backlog", "65536"),
        ("--control-cpu", "-1"),
        ("--limits-messages-per-second", "64k"),
    ] {
        assert_says(
            &refused(&[flag, bad], &[]),
            &[flag, &format!("{bad:?}"), "a whole number"],
        );
    }
    assert_says(&refused_toml("shards = \"2\""), &["shards", "\"2\"", "without quotes"]);
    assert_says(&refused_toml("shards = 2.0"), &["shards", "\"2.0\""]);
    assert_says(&refused_toml("shards = -2"), &["shards", "\"-2\""]);
}

#[test]
fn addresses() {
    let listen = |text: &str| run(&["--listen", text], &[]).listen;
    assert_eq!(listen("[::1]:0"), Listen::Tcp("[::1]:0".parse().unwrap()));
    assert_eq!(listen("localhost:8080"), Listen::Name("localhost".into(), 8080));
    assert_eq!(listen("a.LocalHost.:80"), Listen::Name("a.LocalHost.".into(), 80));
    assert_eq!(listen("unix:/run/a b.sock"), Listen::Unix("/run/a b.sock".into()));
    for wrong in [
        "8080",
        ":8080",
        "*:8080",
        "127.0.0.1",
        "127.0.0.1:65536",
        "127.0.0:80",
        "::1:80",
        "localhost",
        "localhost:",
        "localhost:http",
        "local host:80",
        "http://localhost:80",
        "unix:",
        "/run/a.sock",
    ] {
        assert_says(
            &refused(&["--listen", wrong], &[]),
            &["listen", wrong, "IP address and port", "localhost:8080", "unix:/run"],
        );
    }
    // The address of a name is not known yet: only names that are always loopback are at home.
    for away in ["gateway.example:80", "notlocalhost:80", "localhost.example:80"] {
        assert_says(
            &refused(&["--listen", away], &[]),
            &[away, "development mode", "--insecure"],
        );
        assert!(run(&["--listen", away, "--insecure"], &[]).insecure);
    }
}

#[test]
fn gateway_ids_are_short_and_printable() {
    assert_eq!(run(&["--gateway-id", "gw-ü 1"], &[]).gateway_id, "gw-ü 1");
    assert_eq!(run(&["--gateway-id", &"x".repeat(128)], &[]).gateway_id.len(), 128);
    for wrong in ["x".repeat(129), "a\nb".into(), "a\u{7f}".into(), "ü".repeat(65)] {
        assert_says(
            &refused(&["--gateway-id", &wrong], &[]),
            &["gateway_id", "1 to 128 bytes"],
        );
    }
    assert_says(
        &refused_toml("gateway_id = \"\""),
        &["gateway_id = \"\"", "1 to 128 bytes"],
    );
}

#[test]
fn contradictions_name_both_keys_and_say_why() {
    let said = refused(&["--heartbeat-interval=90s"], &[]);
    assert_says(
        &said,
        &[
            "heartbeat.timeout = \"90s\" (default)",
            "heartbeat.interval = \"90s\" (flag",
            "longer",
        ],
    );
}

#[test]
fn development_mode_stays_on_loopback() {
    for listen in ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let said = refused(&["--listen", listen], &[]);
        assert_says(
            &said,
            &[
                listen,
                "flag --listen",
                "development mode",
                "auth.key",
                "auth.jwks_url",
                "--insecure",
            ],
        );
        assert!(run(&["--listen", listen, "--insecure"], &[]).insecure);
    }
    for listen in ["127.0.0.1:80", "127.1.2.3:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        run(&["--listen", listen], &[]);
    }
}

#[test]
fn administrators_have_a_token_worth_the_name_and_an_address_of_their_own() {
    let token = "0123456789abcdef";
    let config = run(&["--admin-token", token, "--admin-listen=unix:/run/a b.sock"], &[]);
    assert_eq!(
        config.admin.token.map(|token| token.expose().to_owned()).as_deref(),
        Some(token)
    );
    assert_eq!(config.admin.listen, Some(Listen::Unix("/run/a b.sock".into())));
    for bad in [
        "0123456789abcde",
        "0123456789abcde ",
        "01234567 89abcdef",
        "0123456789abcdeä",
    ] {
        let said = refused(&["--admin-token", bad], &[]);
        assert_says(&said, &["admin.token", "***", "16 bytes", "visible ASCII"]);
        assert!(!said.contains(bad), "{said}");
    }
    for bad in ["unix:", "/run/admin.sock", "127.0.0.1", ":9090", "localhost"] {
        assert_says(&refused(&["--admin-listen", bad], &[]), &["admin.listen", "unix:/run"]);
    }
    let same = refused(&["--listen=127.0.0.1:9000", "--admin-listen=127.0.0.1:9000"], &[]);
    assert_says(&same, &["admin.listen", "listen", "contradicts"]);
    for same in ["unix:/run/a.sock", "localhost:9000"] {
        let said = refused(&["--listen", same, "--admin-listen", same], &[]);
        assert_says(&said, &["admin.listen", "contradicts"]);
    }
    run(&["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], &[]);
}

#[test]
fn proxies_on_a_unix_socket_need_one() {
    let config = run(&["--listen=unix:/run/a.sock", "--proxies=unix:", "--insecure"], &[]);
    assert_eq!(config.proxies, ["unix:"]);
    run(
        &["--listen=unix:/run/a.sock", "--proxies=unix:,10.0.0.0/8", "--insecure"],
        &[],
    );
    assert_says(
        &refused(&["--proxies=unix:"], &[]),
        &["proxies", "contradicts listen", "Unix socket"],
    );
    assert_says(&refused(&["--proxies=unix:/a"], &[]), &["proxies", "is no IP address"]);
}

#[test]
fn a_bad_value_is_told_by_its_kind() {
    assert_says(
        &refused(&["--auth-algorithm=none"], &[]),
        &["auth.algorithm", "\"none\"", "HS256"],
    );
    assert_says(&refused(&["--presence-ttl=90"], &[]), &["presence.ttl", "bare number"]);
}

#[test]
fn patterns_of_channels_are_lists_and_checked_when_read() {
    let list = |patterns: &[&str]| Some(patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>());
    let config = run(
        &["--channels-subscribe", "news, room:*"],
        &[("SHARDGATE_CHANNELS_PUBLISH", "inbox:{user}")],
    );
    assert_eq!(config.channels.subscribe, list(&["news", "room:*"]));
    assert_eq!(config.channels.publish, list(&["inbox:{user}"]));
    let config = run_toml("[channels]\nsubscribe = [\"a,b\", \"c\"]\npublish = \"*\"");
    assert_eq!(config.channels.subscribe, list(&["a,b", "c"]));
    assert_eq!(config.channels.publish, list(&["*"]));
    // An empty list is not the same as not set, and stays so when it is printed and read.
    let nobody = file("channels.publish = []");
    let printed = checked(&["--config", nobody.path().to_str().unwrap()], &[]);
    assert_says(&printed, &["publish = [] # file", "# subscribe: * in development mode"]);
    assert_eq!(run_toml(&printed).channels.publish, list(&[]));

    for (bad, why) in [
        ("inbox:{usr}", "did you mean {user}?"),
        ("inbox:{user", "{ without its }"),
        ("news,", "is empty"),
    ] {
        let said = refused(&["--channels-publish", bad], &[]);
        assert_says(&said, &["channels.publish", "flag --channels-publish", "room:*", why]);
    }
    let said = refused_toml("[channels]\nsubscribe = [\"news\", \"\"]");
    assert_says(&said, &["channels.subscribe", "line 2", "is empty"]);
    assert_says(&refused(&["--channels-partitions=16385"], &[]), &["from 1 to 16384"]);
}

/// The keys that make another value than [`other_value`] good, where it contradicts a default.
fn company(key: &Key) -> &'static [&'static str] {
    match key.name {
        "heartbeat.interval" => &["--heartbeat-timeout=2m"],
        "proxies" => &["--insecure"],
        "shards" => &["--cpus=none"],
        "redis.start_timeout" | "redis.prefix" | "cluster.key" => &["--redis-url=redis://host"],
        "redis.ca" => &["--redis-url=rediss://host"],
        "redis.cert" => &["--redis-url=rediss://host", "--redis-key=/key.pem"],
        "redis.key" => &["--redis-url=rediss://host", "--redis-cert=/cert.pem"],
        "redis.sentinel_user" => &[
            "--redis-url=redis-sentinel://host/m",
            "--redis-sentinel-password=s3cret",
        ],
        "redis.sentinel_password" => &["--redis-url=redis-sentinel://host/m"],
        "tls.cert" => &["--tls-key=/key.pem"],
        "tls.key" => &["--tls-cert=/cert.pem"],
        "tls.client_ca" => &["--tls-cert=/cert.pem", "--tls-key=/key.pem"],
        "auth.algorithm" => &["--auth-key=s3cret-s3cret-s3cret"],
        "auth.key" => &["--auth-algorithm=HS256"],
        "auth.jwks_url" => &["--auth-algorithm=ES256"],
        name if OF_TOKENS.contains(&name) => &["--auth-algorithm=HS256", "--auth-key=s3cret-s3cret-s3cret"],
        _ => &[],
    }
}

/// The value of the key before, where it cannot be left out.
fn before(key: &Key) -> &'static [&'static str] {
    match key.name {
        "auth.algorithm" => &["--auth-algorithm=HS512"],
        "auth.key" => &["--auth-key=another-another-another"],
        "auth.jwks_url" => &["--auth-jwks-url=https://host/jwks"],
        _ => &[],
    }
}

#[test]
fn sighup_applies_what_the_table_says_and_names_the_rest() {
    for key in KEYS {
        let company = company(key);
        // One of the pair alone is refused: it comes with the other.
        let together = match key.name {
            "tls.cert" | "tls.key" => &[],
            "redis.cert" | "redis.key" => &company[..1],
            _ => company,
        };
        let old = run(&[together, before(key), &["--gateway-id=a"]].concat(), &[]);
        let value = if key.name == "gateway_id" {
            "b"
        } else {
            other_value(key)
        };
        let flag = key.flag();
        let mut args = [company, &[&flag, value]].concat();
        if key.name != "gateway_id" {
            args.push("--gateway-id=a");
        }
        let new = run(&args, &[]);
        assert_ne!(old, new, "{} has no field, or other_value() is its default", key.name);
        let (applied, restart) = old.reloadable_changes(&new);
        if key.reloadable {
            assert_eq!((applied, restart), (new, vec![]), "{}", key.name);
        } else {
            assert_eq!(applied, old, "{}", key.name);
            assert!(restart.contains(&key.name), "{}: {restart:?}", key.name);
        }
    }
}

#[test]
fn a_reload_keeps_the_id_and_refuses_as_a_start_does() {
    let file = file("[limits]\nburst = 1\n");
    let args = ["--config", file.path().to_str().unwrap()];
    let no_env: [(&str, &str); 0] = [];
    let running = run(&args, &[]);
    fs::write(&file, "log_level = \"debug\"\nshards = 2\n[limits]\nburst = 2\n").unwrap();
    let (next, restart) = reload(&running, args, no_env).unwrap();
    assert_eq!(
        (next.limits.burst, next.log_level, next.shards),
        (2, LevelFilter::Debug, None)
    );
    assert_eq!(next.gateway_id, running.gateway_id);
    assert_eq!(restart, ["shards"]);
    fs::write(&file, "[limits]\nburst = 0\n").unwrap();
    assert_says(
        &reload(&running, args, no_env).unwrap_err().to_string(),
        &["limits.burst", "line 2"],
    );
}

#[test]
fn redis_is_one_url_and_what_belongs_to_it() {
    let config = run(&[], &[]);
    assert_eq!((config.redis, config.presence_ttl), (None, Duration::from_secs(90)));
    let args = [
        "--redis-url=rediss://u:s3cret@host/1",
        "--redis-ca=/ca.pem",
        "--redis-prefix=p",
    ];
    let config = run(&args, &[]);
    let redis = config.redis.unwrap();
    assert_eq!(
        (redis.start_timeout, redis.prefix.as_str()),
        (Duration::from_secs(5), "p")
    );
    assert_eq!(redis.target.ca.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(redis.target.password.as_deref(), Some("s3cret"));
    assert!(!format!("{redis:?}").contains("s3cret"));

    for url in [None, Some("--redis-url=redis://u:s3cret@host")] {
        let args: Vec<&str> = url.into_iter().chain(["--redis-ca=/ca.pem"]).collect();
        let said = refused(&args, &[]);
        assert_says(&said, &["redis.ca = \"/ca.pem\"", "contradicts redis.url", "rediss://"]);
        assert!(!said.contains("s3cret"), "{said}");
    }
    let tls = "--redis-url=rediss://host";
    let sentinels = "--redis-url=redis-sentinel://host/m";
    for (args, parts) in [
        (&[tls, "--redis-cert=/c.pem"][..], ["redis.cert", "redis.key"]),
        (&[tls, "--redis-key=/k.pem"], ["redis.key", "redis.cert"]),
        (
            &[sentinels, "--redis-cert=/c.pem", "--redis-key=/k.pem"],
            ["redis.cert", "redis.url"],
        ),
        (
            &[sentinels, "--redis-sentinel-user=u"],
            ["redis.sentinel_user", "redis.sentinel_password"],
        ),
        (
            &[tls, "--redis-sentinel-password=s3cret"],
            ["redis.sentinel_password", "redis-sentinel://"],
        ),
    ] {
        let said = refused(args, &[]);
        assert_says(&said, &parts);
        assert!(!said.contains("s3cret"), "{said}");
    }
    let secret = file("its-own\n");
    let secret = format!("--redis-sentinel-password=@{}", secret.path().to_str().unwrap());
    let config = run(&[sentinels, "--redis-sentinel-user=asker", &secret], &[]);
    let target = config.redis.unwrap().target;
    assert_eq!(target.sentinel_username.as_deref(), Some("asker"));
    assert_eq!(target.sentinel_password.as_deref(), Some("its-own"));
    assert!(!format!("{target:?}").contains("its-own"));
    let socket = run(&["--redis-url=unix:///run/redis.sock?db=2"], &[])
        .redis
        .unwrap()
        .target;
    assert_eq!((socket.servers.to_string().as_str(), socket.db), ("/run/redis.sock", 2));

    let said = refused(&["--redis-url=redis-sentinel://u:s3cret@host"], &[]);
    assert_says(
        &said,
        &[
            "redis.url",
            "***@host",
            "name of the master is missing",
            "redis-cluster://",
        ],
    );
    assert!(!said.contains("s3cret"), "{said}");
    assert_says(
        &refused(&["--presence-ttl=999ms"], &[]),
        &["presence.ttl", "from 1s to 24h"],
    );
}

const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";

#[test]
fn keys_come_with_their_algorithms_from_one_source() {
    let config = run(
        &["--auth-algorithm=HS256,HS512", "--auth-key=s3cret-s3cret-s3cret"],
        &[],
    );
    assert_eq!(config.auth.algorithms, [Algorithm::Hs256, Algorithm::Hs512]);
    assert!(!config.auth.is_development() && !format!("{config:?}").contains("s3cret"));
    assert_eq!(config.auth.cookie, "shardgate_token");
    for short in ["s3cret", "s3cret-s3cret-s"] {
        let said = refused(&["--auth-algorithm=HS256", "--auth-key", short], &[]);
        assert_says(
            &said,
            &[
                "auth.key = ***",
                "16 bytes",
                &format!("has {}", short.len()),
                "openssl rand",
            ],
        );
        assert!(!said.contains("s3cret"), "{said}");
    }
    run(&["--auth-algorithm=HS256", "--auth-key=s3cret-s3cret-s3"], &[]);
    let pem = file(PUBLIC_KEY);
    let pem = format!("--auth-key=@{}", pem.path().to_str().unwrap());
    run(&["--auth-algorithm=es256", &pem, "--listen=0.0.0.0:80"], &[]);
    let config =
        run_toml("[auth]\naudience = [\"a\", \"b, c\"]\nalgorithm = \"EdDSA\"\njwks_url = \"https://host/jwks\"");
    assert_eq!(config.auth.audience, ["a", "b, c"]);
    for (args, parts) in [
        (
            &["--auth-key=s3cret-s3cret-s3cret"][..],
            &[
                "auth.key",
                "contradicts auth.algorithm (not set): ",
                "must not be the token's",
            ][..],
        ),
        (&["--auth-jwks-url=https://host"], &["auth.jwks_url", "auth.algorithm"]),
        (
            &["--auth-algorithm=HS256"],
            &["auth.algorithm", "no token is ever looked at"],
        ),
        (&["--auth-issuer=me"], &["auth.issuer", "no token is ever looked at"]),
        (&["--auth-required-at-handshake"], &["auth.required_at_handshake"]),
        (
            &["--auth-algorithm=RS256", "--auth-key=s3cret-s3cret-s3cret"],
            &[
                "auth.key",
                "auth.algorithm = [\"RS256\"]",
                "it is no PEM",
                "BEGIN PUBLIC KEY",
            ],
        ),
        (
            &["--auth-algorithm=HS256", &pem],
            &["auth.key", "it is PEM", "public key"],
        ),
        (
            &["--auth-algorithm=HS256,RS256", "--auth-key=s3cret-s3cret-s3cret"],
            &["it is no key for RS256"],
        ),
        (&["--auth-algorithm=ES256,RS256", &pem], &["it is no key for RS256"]),
        (
            &["--auth-algorithm=HS256", "--auth-jwks-url=https://host/jwks"],
            &["auth.jwks_url", "auth.algorithm", "use auth.key"],
        ),
        (
            &["--auth-algorithm=ES256", &pem, "--auth-jwks-url=https://host/jwks"],
            &["auth.jwks_url", "auth.key", "one place"],
        ),
        (&["--auth-cookie=a=b"], &["auth.cookie", "RFC 6265"]),
        (&["--auth-jwks-url=ftp://host"], &["auth.jwks_url", "https://, http://"]),
    ] {
        let said = refused(args, &[]);
        assert_says(&said, parts);
        assert!(!said.contains("s3cret") && !said.contains("MFkw"), "{said}");
    }
    let printed = checked(
        &[
            "--auth-algorithm=HS256",
            "--auth-key=s3cret-s3cret-s3cret",
            "--auth-require-exp",
        ],
        &[],
    );
    assert_says(
        &printed,
        &[
            "\nkey = \"***\" # flag",
            "\nalgorithm = [\"HS256\"] # flag",
            "\nrequire_exp = true # flag",
        ],
    );
    // Never a gateway that is open to everybody because the secret was masked.
    assert_says(&refused_toml(&printed), &["auth.key", "*** that stands for a secret"]);
}

/// A line that is missing for a moment must not open the gateway, and a URL needs its fetcher.
#[test]
fn sighup_changes_keys_but_not_where_they_come_from() {
    let key = run(
        &[
            "--auth-algorithm=HS256",
            "--auth-key=s3cret-s3cret-s3cret",
            "--gateway-id=a",
        ],
        &[],
    );
    let url = [
        "--auth-algorithm=ES256",
        "--auth-jwks-url=https://host/jwks",
        "--gateway-id=a",
    ];
    let (url, open) = (run(&url, &[]), run(&["--gateway-id=a"], &[]));
    let other = run(
        &[
            "--auth-algorithm=HS512",
            "--auth-key=other-other-other",
            "--gateway-id=a",
        ],
        &[],
    );
    assert_eq!(key.reloadable_changes(&other), (other.clone(), vec![]));
    assert_eq!(key.reloadable_changes(&open), (key.clone(), vec!["auth.key"]));
    assert_eq!(open.reloadable_changes(&key), (open.clone(), vec!["auth.key"]));
    assert_eq!(open.reloadable_changes(&url), (open.clone(), vec!["auth.jwks_url"]));
    // Proxies come with the key, and like it after a restart: together with development mode they
    // are refused.
    let proxied = Config {
        proxies: vec!["10.0.0.1".into()],
        ..key.clone()
    };
    assert_eq!(
        open.reloadable_changes(&proxied),
        (open.clone(), vec!["proxies", "auth.key"])
    );
    assert_eq!(key.reloadable_changes(&proxied), (proxied.clone(), vec![]));
    assert_eq!(
        key.reloadable_changes(&url),
        (key.clone(), vec!["auth.key", "auth.jwks_url"])
    );
}
