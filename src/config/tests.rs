//! The room from outside: arguments, variables and files in, [`Outcome`] or [`ConfigError`] out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use log::LevelFilter;
use proptest::prelude::*;

use super::keys::{self, Fallback, KEYS, Key};
use super::sources::Settings;
use super::value::Kind;
use super::*;

/// A TOML file that lives as long as the test.
fn file(toml: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, toml).unwrap();
    file
}

fn outcome(args: &[&str], env: &[(&str, &str)]) -> Result<Outcome, ConfigError> {
    load(args.iter().copied(), env.iter().copied())
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Config {
    match outcome(args, env).unwrap_or_else(|error| panic!("{args:?} {env:?}: {error}")) {
        Outcome::Run(config) => *config,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn run_toml(toml: &str) -> Config {
    run(&["--config", file(toml).path().to_str().unwrap()], &[])
}

fn checked(args: &[&str], env: &[(&str, &str)]) -> String {
    match outcome(&[args, &["--check-config"]].concat(), env).unwrap() {
        Outcome::Checked(text) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> String {
    match outcome(args, env) {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "one line: {text}");
            text
        }
        Ok(outcome) => panic!("{args:?} {env:?} was taken: {outcome:?}"),
    }
}

fn refused_toml(toml: &str) -> String {
    refused(&["--config", file(toml).path().to_str().unwrap()], &[])
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn without_anything_the_defaults_of_the_contract_hold() {
    let config = run(&[], &[]);
    assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.engine, EngineChoice::Auto);
    assert!(!config.echo && !config.insecure);
    assert_eq!(
        (config.shards, config.cpus, config.control_cpu),
        (None, Placement::FirstAllowed, None)
    );
    assert_eq!((config.listen_backlog, config.log_level), (4096, LevelFilter::Info));
    assert!(config.origins.is_empty());
    let limits = Limits {
        connections: None,
        message_bytes: 65_536,
        outbox_bytes: 1_048_576,
        channels_per_connection: 128,
        messages_per_second: 100,
        burst: 200,
        connections_per_user: 16,
        handshakes_per_second: 0,
        handshake_timeout: Duration::from_secs(10),
        header_bytes: 16_384,
    };
    assert_eq!(config.limits, limits);
    let heartbeat = Heartbeat {
        interval: Duration::from_secs(25),
        timeout: Duration::from_secs(90),
    };
    assert_eq!(config.heartbeat, heartbeat);
    assert_eq!(
        (config.auth_timeout, config.drain_timeout),
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
fn every_key_has_three_spellings() {
    let flag = run(&["--limits-message-bytes", "1000", "--gateway-id=a"], &[]);
    let variable = run(
        &[],
        &[
            ("SHARDGATE_LIMITS_MESSAGE_BYTES", "1000"),
            ("SHARDGATE_GATEWAY_ID", "a"),
        ],
    );
    let toml = run_toml("gateway_id = \"a\"\n[limits]\nmessage_bytes = 1000\n");
    let dotted = run_toml("gatewayId = \"a\"\nlimits.message_bytes = 1_000\n");
    assert_eq!(flag.limits.message_bytes, 1000);
    assert_eq!(flag.gateway_id, "a");
    assert!(flag == variable && variable == toml && toml == dotted);
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let file = file("[limits]\nburst = 1\nconnections = 1\nconnections_per_user = 1\n");
    let env = [
        ("SHARDGATE_CONFIG", file.path().to_str().unwrap()),
        ("SHARDGATE_LIMITS_CONNECTIONS", "2"),
        ("SHARDGATE_LIMITS_CONNECTIONS_PER_USER", "2"),
    ];
    let limits = run(&["--limits-connections-per-user=3"], &env).limits;
    assert_eq!(
        (limits.burst, limits.connections, limits.connections_per_user),
        (1, Some(2), 3)
    );
    assert_eq!(limits.message_bytes, 65_536);
}

#[test]
fn the_config_flag_beats_its_variable() {
    let (by_flag, by_variable) = (file("echo = true"), file("echo = 7"));
    let args = ["--config", by_flag.path().to_str().unwrap()];
    assert!(run(&args, &[("SHARDGATE_CONFIG", by_variable.path().to_str().unwrap())]).echo);
}

#[test]
fn a_boolean_flag_may_stand_alone() {
    assert!(run(&["--echo"], &[]).echo);
    assert!(run(&["--echo", "--insecure"], &[]).insecure);
    assert!(run(&["--echo=true"], &[]).echo);
    assert!(!run(&["--echo", "false"], &[]).echo);
    assert!(!run(&["--echo=false"], &[("SHARDGATE_ECHO", "true")]).echo);
    assert!(run(&[], &[("SHARDGATE_ECHO", "1")]).echo);
    assert_says(
        &refused(&["--echo=maybe"], &[]),
        &["echo", "flag --echo", "\"maybe\"", "true or false"],
    );
    assert_says(&refused(&["--echo", "maybe"], &[]), &["unexpected argument \"maybe\""]);
}

#[test]
fn lists_are_arrays_in_toml_and_comma_separated_elsewhere() {
    let origins = vec!["https://a.example".to_owned(), "https://*.b.example".to_owned()];
    assert_eq!(
        run(&["--origins", "https://a.example,https://*.b.example"], &[]).origins,
        origins
    );
    assert_eq!(
        run(&[], &[("SHARDGATE_ORIGINS", "https://a.example, https://*.b.example")]).origins,
        origins
    );
    assert_eq!(
        run_toml("origins = [\"https://a.example\", \"https://*.b.example\"]").origins,
        origins
    );
    assert_eq!(run_toml("origins = \"https://a.example\"").origins, origins[..1]);
    assert!(run_toml("origins = []").origins.is_empty());
    assert_says(
        &refused_toml("\norigins = [1]"),
        &["origins", "line 2", "an array of strings"],
    );
    assert_says(
        &refused(&["--origins=https://a.example/"], &[]),
        &["origins", "has a path"],
    );
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
    assert_eq!(run(&["--drain-timeout=0s"], &[]).drain_timeout, Duration::ZERO);
}

#[test]
fn numbers_have_ranges() {
    for (flag, bad) in [
        ("--limits-message-bytes", "124"),
        ("--limits-message-bytes", "67108865"),
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
    assert_eq!(run(&["--listen=[::1]:0"], &[]).listen, "[::1]:0".parse().unwrap());
    for wrong in [
        "8080",
        ":8080",
        "localhost:8080",
        "127.0.0.1",
        "127.0.0.1:65536",
        "::1:80",
    ] {
        assert_says(
            &refused(&["--listen", wrong], &[]),
            &["listen", wrong, "IP address and port"],
        );
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
fn an_unknown_name_is_refused_with_the_nearest_valid_one() {
    let said = refused(&["--limits-mesage-bytes", "5"], &[]);
    assert_says(
        &said,
        &[
            "unknown flag --limits-mesage-bytes",
            "did you mean --limits-message-bytes?",
        ],
    );
    assert_says(
        &refused(&["--limits.message_bytes=5"], &[]),
        &["\"5\"", "did you mean --limits-message-bytes?"],
    );
    assert_says(
        &refused(&["--message-bytes=5"], &[]),
        &["did you mean --limits-message-bytes?"],
    );
    assert_says(&refused(&["--shard=5"], &[]), &["did you mean --shards?"]);
    assert_says(&refused(&["--chek-config"], &[]), &["did you mean --check-config?"]);
    assert_says(&refused(&["-listen"], &[]), &["did you mean --listen?"]);
    let said = refused(&[], &[("SHARDGATE_LISTN", "x")]);
    assert_says(
        &said,
        &[
            "unknown variable SHARDGATE_LISTN",
            "\"x\"",
            "did you mean SHARDGATE_LISTEN?",
        ],
    );
    let said = refused_toml("echo = true\n[limits]\nmesage_bytes = 5\n");
    assert_says(
        &said,
        &[
            "unknown key limits.mesage_bytes (file",
            "line 3",
            "\"5\"",
            "did you mean limits.message_bytes?",
        ],
    );
    assert_says(
        &refused_toml("message_bytes = 5"),
        &["did you mean limits.message_bytes?"],
    );
    assert_says(
        &refused_toml("[limit]\nburst = 5"),
        &["unknown table limit", "did you mean limits?"],
    );
    assert_says(&refused_toml("limits = 5"), &["limits", "a table, [limits]"]);
    assert_says(&refused_toml("[[limits]]\nburst = 5"), &["limits", "a table, [limits]"]);
    assert_says(
        &refused_toml("[listen]\nport = 5"),
        &["listen", "line 1", "a string in quotes"],
    );
    for far in ["--xylophone", "--x", "--"] {
        assert!(!refused(&[far], &[]).contains("did you mean"), "{far}");
    }
}

#[test]
fn what_kubernetes_injects_is_ignored_and_so_are_foreign_variables() {
    run(
        &[],
        &[
            ("SHARDGATE_PORT", "tcp://10.0.0.1:80"),
            ("SHARDGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
            ("SHARDGATE_SERVICE_PORT_HTTP", "80"),
            ("SHARDGATE", ""),
            ("shardgate_listen", "x"),
            ("PATH", ""),
        ],
    );
    for key in KEYS {
        assert!(!key.variable().starts_with("SHARDGATE_PORT") && !key.variable().starts_with("SHARDGATE_SERVICE_"));
    }
}

#[test]
fn an_empty_value_is_an_error() {
    assert_says(
        &refused(&[], &[("SHARDGATE_LISTEN", "")]),
        &["variable SHARDGATE_LISTEN has no value", "IP address"],
    );
    assert_says(
        &refused(&[], &[("SHARDGATE_CONFIG", "")]),
        &["variable SHARDGATE_CONFIG has no value"],
    );
    for args in [
        &["--listen="][..],
        &["--listen"],
        &["--listen", "--echo"],
        &["--listen", ""],
    ] {
        assert_says(&refused(args, &[]), &["flag --listen has no value", "IP address"]);
    }
    assert_says(&refused(&["--config"], &[]), &["flag --config has no value"]);
    assert_says(&refused(&["--origins", "https://a.example,,"], &[]), &["origins"]);
}

#[test]
fn a_flag_is_given_once() {
    let said = refused(&["--shards=1", "--echo", "--shards", "1"], &[]);
    assert_says(&said, &["shards is given twice", "flag --shards", "give it once"]);
    assert_says(
        &refused(&["--config=a", "--config=b"], &[]),
        &["--config is given twice"],
    );
    assert_says(
        &refused_toml("gateway_id = \"a\"\ngatewayId = \"a\""),
        &["gateway_id is given twice", "line 1", "line 2"],
    );
    assert_says(&refused_toml("echo = true\necho = true"), &["line 2", "not valid TOML"]);
}

#[test]
fn bytes_that_are_not_utf8_are_named_not_shown() {
    let bad = |prefix: &str| OsString::from_vec([prefix.as_bytes(), b"s3cret\xff"].concat());
    let none: [(OsString, OsString); 0] = [];
    let said = load([OsString::from("--echo"), bad("")], none.clone())
        .unwrap_err()
        .to_string();
    assert_eq!(said, "argument 2 is not valid UTF-8");
    let said = load([bad("--admin-token=")], none).unwrap_err().to_string();
    assert_eq!(said, "the value of flag --admin-token is not valid UTF-8");
    let no_args: [OsString; 0] = [];
    let said = load(no_args.clone(), [(OsString::from("SHARDGATE_ADMIN_TOKEN"), bad(""))])
        .unwrap_err()
        .to_string();
    assert_eq!(said, "variable SHARDGATE_ADMIN_TOKEN is not valid UTF-8");
    assert!(load(no_args, [(bad("OTHER"), bad(""))]).is_ok());
}

#[test]
fn a_file_that_is_missing_or_broken_is_told_with_its_place() {
    let said = refused(&["--config", "/nowhere/shardgate.toml"], &[]);
    assert_says(&said, &["/nowhere/shardgate.toml", "flag --config", "No such file"]);
    let said = refused(&[], &[("SHARDGATE_CONFIG", "/nowhere.toml")]);
    assert_says(&said, &["/nowhere.toml", "variable SHARDGATE_CONFIG"]);
    let said = refused_toml("echo = true\n[admin]\ntoken = \"s3cret\n");
    assert_says(&said, &["line 3", "not valid TOML"]);
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn a_stronger_source_does_not_hide_a_mistake_in_a_weaker_one() {
    assert_says(
        &refused(&["--shards=1"], &[("SHARDGATE_SHARDS", "many")]),
        &["variable SHARDGATE_SHARDS", "\"many\""],
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
    let said = refused(
        &["--limits-outbox-bytes=1000"],
        &[("SHARDGATE_LIMITS_MESSAGE_BYTES", "1001")],
    );
    assert_says(
        &said,
        &[
            "limits.outbox_bytes = 1000 (flag",
            "limits.message_bytes = 1001 (variable",
            "largest size",
        ],
    );
    run(&["--limits-outbox-bytes=1000", "--limits-message-bytes=1000"], &[]);
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

/// A value that a key takes and that is not its default.
fn other_value(key: &Key) -> &'static str {
    match key.kind {
        Kind::Bool => "true",
        Kind::Integer { min: 512, .. } => "777",
        Kind::Integer { .. } => "250",
        Kind::Duration { .. } => "77s",
        Kind::Address => "127.0.0.1:7777",
        Kind::Choice(words) => words.last().unwrap(),
        Kind::Choices(words) => words[0],
        Kind::List | Kind::Text { .. } => "other",
        Kind::Origins => "https://other.example",
        Kind::Cpus => "5",
        Kind::Secret => "s3cret",
        Kind::File => "/other.pem",
        Kind::Url(schemes) if schemes.contains(&"redis") => "redis://user:s3cret@host/0",
        Kind::Url(_) => "https://user:s3cret@host/keys",
    }
}

#[test]
fn a_key_that_this_release_does_not_have_is_refused_unless_it_says_the_default() {
    for key in KEYS.iter().filter(|key| !key.available) {
        let said = refused(&[&key.flag(), other_value(key)], &[]);
        assert_says(&said, &[key.name, &key.flag(), "not in this release"]);
        assert!(!said.contains("s3cret"), "{said}");
        assert_says(
            &refused(&[], &[(&key.variable(), other_value(key))]),
            &[key.name, &key.variable()],
        );
        if let Fallback::Value(default) = key.default {
            run(&[&key.flag(), default], &[]);
        }
    }
    for name in [
        "admin.token",
        "admin.listen",
        "tls.cert",
        "tls.key",
        "redis.url",
        "redis.start_timeout",
        "redis.prefix",
        "presence.ttl",
        "auth.algorithm",
        "auth.key",
        "auth.jwks_url",
        "auth.issuer",
        "auth.audience",
        "auth.leeway",
        "auth.cookie",
        "auth.required_at_handshake",
        "auth.require_exp",
        "channels.subscribe",
        "channels.publish",
        "limits.channels_per_connection",
    ] {
        assert!(
            !KEYS[keys::find(name).unwrap()].available,
            "{name} is implemented: take it off this list"
        );
    }
    // By kind first: a bad value is told as such.
    assert_says(
        &refused(&["--auth-algorithm=none"], &[]),
        &["auth.algorithm", "\"none\"", "HS256"],
    );
    assert_says(&refused(&["--presence-ttl=90"], &[]), &["presence.ttl", "bare number"]);
}

#[test]
fn secrets_are_shown_nowhere() {
    let said = [
        refused(&["--admin-token=s3cret"], &[]),
        refused(&["--admin-token", "two", "s3cret"], &[]),
        refused(&["--admin-tokne=s3cret"], &[]),
        refused(&["--auth-kee=s3cret"], &[]),
        refused(&["--api-key=s3cret"], &[]),
        refused(&["--redis-url=redix://user:s3cret@host"], &[]),
        refused(&["redis://user:s3cret@host"], &[]),
        refused(&["--auth-jwks-url=ftp://host/?key=s3cret"], &[]),
        refused(&[], &[("SHARDGATE_ADMIN_TOKENS", "s3cret")]),
        refused(&[], &[("SHARDGATE_REDIS_PASSWORD", "s3cret")]),
        refused_toml("admin = \"s3cret\""),
        refused_toml("[admin]\ntokne = \"s3cret\""),
        refused_toml("[admin]\ntoken = [\"s3cret\"]"),
        refused_toml("[redis]\nurl = [\"redis://user:s3cret@host\"]"),
        refused_toml("[redis]\nurl = \"redix://user:s3cret@host\""),
    ];
    for text in said {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

/// Settings that no release runs with yet, from TOML.
fn settings(toml: &str) -> Result<Settings, ConfigError> {
    let mut settings = Settings::defaults();
    settings.set_from_toml(Path::new("gw.toml"), toml)?;
    Ok(settings)
}

#[test]
fn check_config_comments_secrets_out() {
    let toml = "[admin]\ntoken = \"s3cret\"\n[redis]\nurl = \"redis://user:s3cret@host/0\"\n";
    let text = text::effective(&settings(toml).ok().unwrap());
    assert_says(
        &text,
        &[
            "[admin]\n# token = \"***\" # file \"gw.toml\" line 2\n",
            "# url = \"redis://***@host/0\"",
        ],
    );
    assert!(!text.contains("s3cret"));
    let text = text::effective(&settings("redis.url = \"redis://host/0\"").ok().unwrap());
    assert_says(&text, &["\nurl = \"redis://host/0\" # file \"gw.toml\" line 1\n"]);
}

#[test]
fn an_at_sign_reads_a_secret_from_a_file() {
    let secret = file("s3cret\r\n\n");
    let toml = |path: &Path| format!("admin.token = '@{}'", path.display());
    let read = settings(&toml(secret.path())).ok().unwrap();
    assert!(read.setting("admin.token").value == value::Value::Text("s3cret".into()));
    let said = settings(&toml(Path::new("/nowhere"))).err().unwrap().to_string();
    assert_says(&said, &["/nowhere", "gw.toml", "line 1", "No such file"]);
    let said = settings(&toml(file("\n").path())).err().unwrap().to_string();
    assert_says(&said, &["admin.token", "is empty"]);
}

#[test]
fn check_config_tells_the_source_of_what_is_not_default() {
    let file = file("\n[limits]\nburst = 7\n");
    let path = file.path().to_str().unwrap();
    let text = checked(&["--listen=[::1]:1", "--config", path], &[("SHARDGATE_ECHO", "on")]);
    assert_says(
        &text,
        &[
            "listen = \"[::1]:1\" # flag --listen\n",
            "echo = true # variable SHARDGATE_ECHO\n",
            &format!("burst = 7 # file {path:?} line 3\n"),
            "engine = \"auto\"\n",
            "# gateway_id: host name and a random suffix\n",
            "# shards: ",
            "[heartbeat]\ninterval = \"25s\"\n",
        ],
    );
    assert!(
        !text.contains("[redis]"),
        "keys of later releases are not shown: {text}"
    );
    assert_says(&refused(&["--check-config", "--shards=x"], &[]), &["shards"]);
    assert_says(
        &refused(&["--check-config=yes"], &[]),
        &["--check-config takes no value"],
    );
}

#[test]
fn help_and_version_win() {
    for args in [&["--help"][..], &["--bogus", "-h"], &["--version", "--help"]] {
        assert!(
            matches!(outcome(args, &[("SHARDGATE_BOGUS", "")]), Ok(Outcome::Help(_))),
            "{args:?}"
        );
    }
    assert!(matches!(outcome(&["-V"], &[]), Ok(Outcome::Version(text)) if text == "shardgate 0.1.0\n"));
    let Ok(Outcome::Help(help)) = outcome(&["--help"], &[]) else {
        panic!("help")
    };
    for key in KEYS {
        assert_says(&help, &[&key.flag()]);
    }
    assert_says(
        &help,
        &[
            "--config FILE",
            "--check-config",
            "Examples:",
            "(not in this release)",
            "Limits:\n",
        ],
    );
    for line in help.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn the_table_is_sound() {
    for (row, key) in KEYS.iter().enumerate() {
        assert_eq!(keys::find(key.name), Some(row), "{} stands twice", key.name);
        assert!(
            key.name.split('.').count() <= 2 && !key.help.ends_with('.'),
            "{}",
            key.name
        );
        if let Fallback::Value(default) = key.default {
            assert!(key.kind.parse_text(default).is_ok(), "{} = {default}", key.name);
        }
        assert!(key.kind.parse_text(other_value(key)).is_ok(), "{}", key.name);
    }
    let groups: Vec<_> = KEYS
        .chunk_by(|a, b| a.group == b.group)
        .map(|group| group[0].group)
        .collect();
    let mut unique = groups.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(
        groups.len(),
        unique.len(),
        "rows of one group stand together: {groups:?}"
    );
}

/// What makes another value than [`other_value`] good, where it contradicts a default.
fn company(key: &Key) -> &'static [&'static str] {
    match key.name {
        "heartbeat.interval" => &["--heartbeat-timeout=2m"],
        "limits.outbox_bytes" => &["--limits-message-bytes=250"],
        "shards" => &["--cpus=none"],
        _ => &[],
    }
}

#[test]
fn sighup_applies_what_the_table_says_and_names_the_rest() {
    for key in KEYS.iter().filter(|key| key.available) {
        let company = company(key);
        let old = run(&[company, &["--gateway-id=a"]].concat(), &[]);
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
fn every_file_in_tuning_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning");
    let mut loaded = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            run(&["--config", path.to_str().unwrap()], &[]);
            loaded += 1;
        }
    }
    assert!(loaded >= 2);
}

/// `UPDATE_DOCS=1 cargo test --lib config` rewrites the table.
#[test]
fn the_documentation_has_the_table_of_keys() {
    const BEGIN: &str = "<!-- keys: made by `UPDATE_DOCS=1 cargo test --lib config` -->\n";
    const END: &str = "<!-- end of keys -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let old = fs::read_to_string(&path).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("the marker where the table begins");
    let (_, after) = rest.split_once(END).expect("the marker where the table ends");
    let new = format!("{before}{BEGIN}\n{}{END}{after}", text::markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, new).unwrap();
    } else {
        assert!(
            old == new,
            "docs/configuration.md is behind: UPDATE_DOCS=1 cargo test --lib config"
        );
    }
}

/// Good flags of any size, without contradictions.
fn any_flags() -> impl Strategy<Value = Vec<String>> {
    let keys: Vec<&'static Key> = KEYS
        .iter()
        .filter(|key| key.available && !["shards", "cpus", "insecure"].contains(&key.name))
        .collect();
    let flag = |key: &'static Key| -> BoxedStrategy<String> {
        let value: BoxedStrategy<String> = match key.kind {
            Kind::Bool => any::<bool>().prop_map(|yes| yes.to_string()).boxed(),
            Kind::Integer { .. } if key.name == "limits.outbox_bytes" => {
                (67_108_864..=1u64 << 30).prop_map(|n| n.to_string()).boxed()
            }
            Kind::Integer { min, max, .. } => (min..=max).prop_map(|n| n.to_string()).boxed(),
            Kind::Duration { .. } if key.name == "heartbeat.timeout" => {
                (26_000u64..86_400_000).prop_map(|ms| format!("{ms}ms")).boxed()
            }
            Kind::Duration { .. } if key.name == "heartbeat.interval" => {
                (1u64..26_000).prop_map(|ms| format!("{ms}ms")).boxed()
            }
            Kind::Duration { .. } => (1u64..=1440).prop_map(|minutes| format!("{minutes}m")).boxed(),
            Kind::Address => any::<(u8, u16)>()
                .prop_map(|(host, port)| format!("127.0.0.{host}:{port}"))
                .boxed(),
            Kind::Choice(words) => proptest::sample::select(words).prop_map(str::to_owned).boxed(),
            Kind::Origins => "https://[a-z]{1,9}\\.example(,http://\\*\\.[a-z]{1,9}\\.test:80)?(,null)?".boxed(),
            Kind::Text { .. } => "[ !-~ä-ü]{1,60}".boxed(),
            _ => unreachable!("{} is not in this release", key.name),
        };
        let flag = key.flag();
        value.prop_map(move |value| format!("{flag}={value}")).boxed()
    };
    let cpus = prop_oneof![
        Just(vec![]),
        (1usize..9, 0usize..900)
            .prop_map(|(shards, cpu)| vec![format!("--shards={shards}"), format!("--cpus={cpu}-{}", cpu + 9)]),
        (1usize..=256).prop_map(|shards| vec![format!("--shards={shards}"), "--cpus=none".to_owned()]),
        Just(vec!["--cpus=7,3-4,0".to_owned()]),
    ];
    // Its own default is too small for the largest message, so an outbox is always given.
    let always = keys
        .iter()
        .filter(|key| key.name == "limits.outbox_bytes")
        .map(|key| flag(key))
        .collect::<Vec<_>>();
    let rest: Vec<_> = keys
        .into_iter()
        .filter(|key| key.name != "limits.outbox_bytes")
        .collect();
    let count = rest.len();
    let rest = proptest::sample::subsequence(rest, 0..=count);
    let rest = rest.prop_flat_map(move |keys| keys.into_iter().map(flag).collect::<Vec<_>>());
    (always, rest, cpus, any::<bool>()).prop_map(|(always, rest, cpus, insecure)| {
        let insecure = insecure.then(|| "--insecure".to_owned());
        always.into_iter().chain(rest).chain(cpus).chain(insecure).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_check_config_prints_gives_the_same_configuration(flags in any_flags()) {
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        if !flags.iter().any(|flag| flag.starts_with("--gateway-id")) {
            args.push("--gateway-id=fixed");
        }
        let printed = file(&checked(&args, &[]));
        let path = printed.path().to_str().unwrap();
        prop_assert_eq!(run(&args, &[]), run(&["--config", path], &[]));
    }

    #[test]
    fn flags_and_variables_mean_the_same(flags in any_flags()) {
        let mut env: Vec<(String, String)> = flags
            .iter()
            .map(|flag| {
                let (name, value) = flag.trim_start_matches("--").split_once('=').unwrap_or(("insecure", "true"));
                (format!("SHARDGATE_{}", name.replace('-', "_").to_ascii_uppercase()), value.to_owned())
            })
            .collect();
        let mut flags = flags;
        if !flags.iter().any(|flag| flag.starts_with("--gateway-id")) {
            flags.push("--gateway-id=fixed".to_owned());
            env.push(("SHARDGATE_GATEWAY_ID".to_owned(), "fixed".to_owned()));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        prop_assert_eq!(run(&flags, &[]), run(&[], &env));
    }

    #[test]
    fn no_input_panics(args in proptest::collection::vec("(--)?[a-z=@-]{0,12}", 0..4), toml in any::<String>(), name in "[A-Z_]{0,8}") {
        let _ = load(args, [(format!("SHARDGATE_{name}"), "x")]);
        let _ = settings(&toml);
    }
}
