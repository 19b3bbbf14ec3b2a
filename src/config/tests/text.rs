//! What people read: `--check-config`, `--help`, the documentation, the example files, and the table behind them.

use super::*;
use crate::config::keys::{self, Fallback, KEYS};
use crate::config::text;

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
fn check_config_with_a_masked_url_still_loads() {
    let text = checked(&["--redis-url=rediss://u:s3cret@host", "--redis-ca=/ca.pem"], &[]);
    assert_says(&text, &["# url = \"rediss://***@host\"", "# ca = \"/ca.pem\""]);
    assert!(!text.contains("s3cret"));
    assert_eq!(run_toml(&text).redis, None);
    let text = checked(&["--redis-url=rediss://host", "--redis-ca=/ca.pem"], &[]);
    assert!(run_toml(&text).redis.is_some_and(|redis| redis.target.ca.is_some()));
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
