//! The configuration: files, variables, flags, and its printed form.

use super::{PROGRAM, assert_refused};
use crate::common::Gateway;
use crate::common::gateway::{command, run_command, run_to_exit};

#[test]
fn a_bad_configuration() {
    for (args, words) in [
        (&["--lisen", "127.0.0.1:0"][..], &["lisen", "--listen"][..]),
        (&["--limits-mesage-bytes", "1000"], &["--limits-message-bytes"]),
        (
            &["--limits-message-bytes", "many"],
            &["limits.message_bytes", "many", "125"],
        ),
        (&["--limits-message-bytes", "1"], &["limits.message_bytes", "125"]),
        (&["--heartbeat-interval", "25"], &["heartbeat.interval", "25", "s"]),
        (
            &["--heartbeat-interval", "2m"],
            &["heartbeat.interval", "heartbeat.timeout"],
        ),
        (&["--engine", "kqueue"], &["engine", "kqueue", "ring", "epoll"]),
        (&["--listen", "8080"], &["listen", "8080"]),
        (&["--origins", "example.com"], &["origins", "example.com"]),
        (&["--config", "/no/such/file.toml"], &["/no/such/file.toml"]),
        (&["--shards", "0"], &["shards", "0"]),
        (&["--auth-key", "secret"], &["auth.key"]),
        (&["--redis-url", "redis:/h"], &["redis.url", "redis://"]),
        (&["--presence-ttl", "10ms"], &["presence.ttl", "1s"]),
        (&["nonsense"], &["nonsense"]),
    ] {
        assert_refused(&run_to_exit(args), 2, words);
    }
}

#[test]
fn a_bad_file_or_variable() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    for (text, words) in [
        ("listne = \"127.0.0.1:0\"", &["listne", "listen"][..]),
        ("[limits]\nmesage_bytes = 5", &["mesage_bytes", "limits.message_bytes"]),
        ("limits.message_bytes = true", &["limits.message_bytes"]),
        ("listen = ", &["shardgate.toml"]),
    ] {
        std::fs::write(&file, text).unwrap();
        assert_refused(&run_to_exit(&["--config", file.to_str().unwrap()]), 2, words);
    }
    let mut with_variable = command(PROGRAM);
    with_variable.env("SHARDGATE_LISTNE", "127.0.0.1:0");
    assert_refused(
        &run_command(with_variable),
        2,
        &["SHARDGATE_LISTNE", "SHARDGATE_LISTEN"],
    );
    let mut with_variable = command(PROGRAM);
    with_variable.env("SHARDGATE_SHARDS", "some");
    assert_refused(&run_command(with_variable), 2, &["SHARDGATE_SHARDS", "some"]);
}

#[test]
fn precedence_is_flag_then_variable_then_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    std::fs::write(&file, "gateway_id = \"file\"\nshards = 3\necho = true\n").unwrap();
    let file = file.to_str().unwrap();
    let of = |args: &[&str], env: &[(&str, &str)]| Gateway::start_with_env(args, env).id.clone();
    assert_eq!(of(&["--config", file], &[]), "file");
    assert_eq!(
        of(&["--config", file], &[("SHARDGATE_GATEWAY_ID", "variable")]),
        "variable"
    );
    assert_eq!(
        of(
            &["--config", file, "--gateway-id", "flag"],
            &[("SHARDGATE_GATEWAY_ID", "variable")]
        ),
        "flag"
    );
    assert_eq!(of(&[], &[("SHARDGATE_CONFIG", file)]), "file");
    assert_ne!(of(&[], &[]), of(&[], &[]), "a made-up name is made up each time");
}

#[test]
fn variables_of_kubernetes_are_ignored() {
    let gateway = Gateway::start_with_env(
        &[],
        &[
            ("SHARDGATE_PORT", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
            ("SHARDGATE_SERVICE_PORT", "8080"),
            ("SHARDGATE_SERVICE_PORT_WS", "8080"),
        ],
    );
    gateway.connect("alice").close();
}

#[test]
fn development_mode_stays_at_home() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        assert_refused(
            &run_to_exit(&["--listen", listen]),
            2,
            &["listen", "development mode", "auth.key", "--insecure"],
        );
        let gateway = Gateway::start(&["--listen", listen, "--insecure"]);
        drop(gateway);
    }
    for listen in ["127.0.0.1:0", "127.0.0.2:0"] {
        Gateway::start(&["--listen", listen]).connect("alice").close();
    }
}

#[test]
fn check_config_prints_and_opens_nothing() {
    let gateway = Gateway::start(&[]);
    let addr = gateway.addr.to_string();
    // The port is in use, and that is no matter.
    let ended = run_to_exit(&["--check-config", "--listen", &addr, "--heartbeat-interval", "7s"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stdout.contains(&addr) && ended.stdout.contains("7s"),
        "{}",
        ended.stdout
    );
    // Its output is a file with the same meaning.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("printed.toml");
    std::fs::write(&file, &ended.stdout).unwrap();
    let again = run_to_exit(&["--check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(again.code, Some(0), "{again:#?}");
    assert!(
        again.stdout.contains(&addr) && again.stdout.contains("7s"),
        "{}",
        again.stdout
    );
    assert_refused(&run_to_exit(&["--check-config", "--shards", "x"]), 2, &["shards"]);
}

#[test]
fn help_and_version() {
    let help = run_to_exit(&["--help"]);
    assert_eq!(help.code, Some(0));
    for flag in [
        "--listen",
        "--engine",
        "--limits-connections",
        "--drain-timeout",
        "--config",
    ] {
        assert!(help.stdout.contains(flag), "{flag}");
    }
    let version = run_to_exit(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
}

/// A reader that stops early, or an output without room, causes no panic.
#[test]
fn what_cannot_be_printed() {
    for args in ["--help", "--version", "--check-config", "token --help"] {
        let mut full = command("sh");
        full.arg("-c").arg(format!("{PROGRAM} {args} >/dev/full"));
        let ended = run_command(full);
        assert_refused(&ended, 1, &["cannot write to standard output", "No space left"]);
        let mut closed = command("sh");
        // The reader has gone before anything is written.
        closed.arg("-c").arg(format!(
            "exec 3>&1; ({{ sleep 0.2; {PROGRAM} {args}; echo $? >&3; }} | true)"
        ));
        let ended = run_command(closed);
        assert_eq!((ended.stdout.trim(), ended.stderr.as_str()), ("1", ""), "{args}");
    }
    // The same for standard error: the exit code is the same.
    let mut full = command("sh");
    full.arg("-c").arg(format!("{PROGRAM} --bogus 2>/dev/full"));
    assert_eq!(run_command(full).code, Some(2));
}
