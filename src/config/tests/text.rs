//! Texts for people: `--check-config`, `--help`, the documentation, the example files, and the
//! table behind them.

use super::*;
use crate::config::keys::{self, Fallback, KEYS};
use crate::config::text;

/// The mask is refused as a secret: a file made of printed output does not open the gateway to
/// everybody.
#[test]
fn check_config_masks_secrets_and_the_mask_is_refused() {
    let secret = "s3cret-s3cret-s3cret";
    let toml = format!("[admin]\ntoken = \"{secret}\"\n[redis]\nurl = \"redis://user:s3cret@host/0\"\n");
    let text = text::effective(&settings(&toml).ok().unwrap(), &[]);
    assert_says(
        &text,
        &[
            "[admin]\ntoken = \"***\" # file \"gw.toml\" line 2\n",
            "\nurl = \"redis://***@host/0\" # file",
        ],
    );
    assert!(!text.contains("s3cret"));
    let text = text::effective(&settings("redis.url = \"redis://host/0\"").ok().unwrap(), &[]);
    assert_says(&text, &["\nurl = \"redis://host/0\" # file \"gw.toml\" line 1\n"]);
    for args in [
        &["--admin-token", secret][..],
        &["--auth-algorithm=HS256", "--auth-key", secret],
        &["--redis-url=rediss://u:s3cret@host", "--redis-ca=/ca.pem"],
        &["--auth-algorithm=ES256", "--auth-jwks-url=https://host/?key=s3cret"],
    ] {
        let text = checked(args, &[]);
        assert!(!text.contains("s3cret"), "{text}");
        assert_says(&refused_toml(&text), &["*** ", "stands for"]);
    }
    let text = checked(&["--redis-url=rediss://host", "--redis-ca=/ca.pem"], &[]);
    assert!(run_toml(&text).redis.is_some_and(|redis| redis.target.ca.is_some()));
}

/// No key that has a value is printed as a comment.
#[test]
fn check_config_prints_what_holds() {
    let Ok(Loaded::Checked(config, effective)) = outcome(&["--check-config", "--gateway-id=a"], &[]) else {
        panic!("it is good");
    };
    let host = OnHost {
        cpus: vec![Some(0), Some(1), Some(4)],
        connections: 777,
        handshakes: 12_288,
    };
    let text = effective.text(&config, Some(&host));
    assert_says(
        &text,
        &[
            "\nshards = 3 # not set: one per ",
            "\ncpus = \"0-1,4\" # not set: ",
            "\nconnections = 777 # not set: what nofile permits",
            "\nhandshakes = 12288 # not set: ",
            "\nsubscribe = [\"*\"] # not set: ",
            "\norigins = [] # same origin only\n",
            "\nproxies = [] # none\n",
        ],
    );
    let comments: Vec<&str> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    for comment in &comments {
        let (name, words) = comment.split_once(": ").unwrap();
        let nothing = ["none", "not ", "clients need", "the system's"];
        assert!(
            nothing.iter().any(|nothing| words.starts_with(nothing)),
            "{name} has a value: {words}"
        );
    }
    let loaded = run_toml(&text);
    assert_eq!((loaded.shards, loaded.limits.connections), (Some(3), Some(777)));
    assert_eq!(loaded.cpus, Placement::Cpus(vec![0, 1, 4]));
    let unpinned = OnHost {
        cpus: vec![None; 2],
        ..host
    };
    assert_says(
        &effective.text(&config, Some(&unpinned)),
        &["shards = 2 #", "\ncpus = \"none\" #"],
    );
    // A random value is shown as it would be, each time another one.
    assert_says(
        &checked(&[], &[]),
        &["\ngateway_id = \"", "# not set: host name and a random suffix\n"],
    );
    // With tokens, channels are nobody's until somebody names some.
    let args = [
        "--check-config",
        "--auth-algorithm=ES256",
        "--auth-jwks-url=https://host/keys",
    ];
    let Ok(Loaded::Checked(config, effective)) = outcome(&args, &[]) else {
        panic!("it is good");
    };
    let text = effective.text(&config, Some(&unpinned));
    assert_says(&text, &["\nsubscribe = [] #", "\npublish = [] #"]);
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
            "# shards: ",
            "[heartbeat]\ninterval = \"25s\"\n",
        ],
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
            matches!(outcome(args, &[("SHARDGATE_BOGUS", "")]), Ok(Loaded::Help(_))),
            "{args:?}"
        );
    }
    assert!(matches!(outcome(&["-V"], &[]), Ok(Loaded::Version(text)) if text == "shardgate 0.1.0\n"));
    let Ok(Loaded::Help(help)) = outcome(&["--help"], &[]) else {
        panic!("help")
    };
    for key in KEYS {
        assert_says(&help, &[&key.flag()]);
    }
    assert_says(&help, &["--config FILE", "--check-config", "Examples:", "Limits:\n"]);
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
