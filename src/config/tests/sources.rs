//! Precedence, spelling, and the refusal of unknown names; no secret in any of it.

use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::keys::KEYS;
use crate::config::value::Value;

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
fn a_file_that_is_missing_or_broken_is_reported_with_its_source() {
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
        refused(&["--redis-url=user:s3cret@host"], &[]),
        refused_toml("[admin]\ntoken = s3cret"),
        refused_toml("[admin]\ntoken = \"a\" s3cret"),
        refused_toml("admin.token = \"a\"\nadmin.token = \"s3cret\""),
        refused_toml("[admin]\ntoken = {s3cret}"),
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

/// `--auth-key "$(cat key.pem)"`, and what becomes of it without the quotes.
#[test]
fn a_secret_may_begin_with_hyphens() {
    let private = "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----";
    let said = refused(&["--auth-algorithm=ES256", "--auth-key", private], &[]);
    assert_says(&said, &["auth.key (flag --auth-key)", "it is a private key"]);
    let mut said = vec![said];
    let config = run(
        &["--auth-algorithm", "HS256", "--auth-key", "--s3cret-s3cret-s3cret"],
        &[],
    );
    assert!(matches!(config.auth.source, CredentialSource::Key(key) if key.expose() == "--s3cret-s3cret-s3cret"));
    let redis = ["--redis-url", "redis://host", "--cluster-key", "--s3cret-s3cret-s3cret"];
    assert_eq!(run(&redis, &[]).redis.unwrap().keys[0].expose(), redis[3]);
    // A flag that there is was not meant as a secret.
    for args in [&["--auth-key", "--echo"][..], &["--auth-key", "--listen=127.0.0.1:0"]] {
        assert_says(&refused(args, &[]), &["has no value"]);
    }
    let words = [
        "--auth-key",
        "-----BEGIN",
        "PUBLIC",
        "KEY-----",
        "s3cret",
        "-----END",
        "PUBLIC",
        "KEY-----",
    ];
    said.push(refused(&words, &[]));
    said.push(refused(&["--auth-key=", private], &[]));
    said.push(refused(&["--auth-kee", private], &[]));
    said.push(refused(&[private], &[]));
    said.push(refused(&["--admin-token", "two", "-s3cret"], &[]));
    said.push(refused(&["--redis-url", "redis://host", "s3cret"], &[]));
    said.push(refused(&["-----BEGIN s3cret"], &[]));
    for text in said {
        assert!(!text.contains("s3cret") && !text.contains("PUBLIC"), "{text}");
    }
}

#[test]
fn an_at_sign_reads_a_secret_from_a_file() {
    let secret = file("s3cret\r\n\n");
    let toml = |path: &Path| format!("admin.token = '@{}'", path.display());
    let read = settings(&toml(secret.path())).ok().unwrap();
    assert!(read.setting("admin.token").value == Value::Text("s3cret".into()));
    let said = settings(&toml(Path::new("/nowhere"))).err().unwrap().to_string();
    assert_says(&said, &["/nowhere", "gw.toml", "line 1", "No such file"]);
    let said = settings(&toml(file("\n").path())).err().unwrap().to_string();
    assert_says(&said, &["admin.token", "is empty"]);
}

/// A URL may hold a password, so it may come from a file like any secret.
#[test]
fn an_at_sign_reads_a_url_from_a_file() {
    let url = file("\u{feff}redis://user:s3cret@host/3\r\n");
    let path = url.path().to_str().unwrap();
    let flag = format!("--redis-url=@{path}");
    let variable = format!("@{path}");
    let toml = file(&format!("[redis]\nurl = '@{path}'\n"));
    for config in [
        run(&[&flag], &[]),
        run(&[], &[("SHARDGATE_REDIS_URL", &variable)]),
        run(&["--config", toml.path().to_str().unwrap()], &[]),
    ] {
        let redis = config.redis.unwrap();
        assert_eq!(redis.target.password.as_deref(), Some("s3cret"));
    }
    let text = checked(&[&flag], &[]);
    assert_says(&text, &["url = \"redis://***@host/3\" # flag --redis-url\n"]);
    let keys = file("https://host/jwks?key=s3cret\n");
    let keys = format!("--auth-jwks-url=@{}", keys.path().display());
    let config = run(&["--auth-algorithm=ES256", &keys], &[]);
    assert!(matches!(config.auth.source, CredentialSource::Jwks(url) if url.ends_with("key=s3cret")));
    // The file holds the password alone.
    let password = file("s3cret\n");
    let said = refused(&[&format!("--redis-url=@{}", password.path().display())], &[]);
    assert_says(&said, &["redis.url = *** from", "redis://", "flag --redis-url"]);
    assert!(!said.contains("s3cret"), "{said}");
    assert_says(&refused(&["--redis-url=@/nowhere"], &[]), &["/nowhere", "No such file"]);
}

/// The byte order mark that Windows' editors put before a file is no part of it.
#[test]
fn a_byte_order_mark_is_no_syntax_error() {
    assert!(run_toml("\u{feff}echo = true\n").echo);
}
