//! The room from outside: arguments, variables and files in, [`Loaded`] or [`ConfigError`] out.

mod checks;
mod random;
mod sources;
mod text;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::keys::{Fallback, Key};
use super::sources::KeyValues;
use super::value::Kind;
use super::*;

/// A TOML file that lives as long as the test.
fn file(toml: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, toml).unwrap();
    file
}

fn outcome(args: &[&str], env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load(args.iter().copied(), env.iter().copied())
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Config {
    match outcome(args, env).unwrap_or_else(|error| panic!("{args:?} {env:?}: {error}")) {
        Loaded::Run(config) => *config,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn run_toml(toml: &str) -> Config {
    run(&["--config", file(toml).path().to_str().unwrap()], &[])
}

fn checked(args: &[&str], env: &[(&str, &str)]) -> String {
    match outcome(&[args, &["--check-config"]].concat(), env).unwrap() {
        Loaded::Checked(config, effective) => effective.text(&config, None),
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

/// A value that a key takes and that is not its default.
fn other_value(key: &Key) -> &'static str {
    match key.kind {
        Kind::Bool if matches!(key.default, Fallback::Value("true")) => "false",
        Kind::Bool => "true",
        Kind::Integer { min: 512, .. } => "777",
        Kind::Integer { min: 4_096, .. } => "7777",
        Kind::Integer { .. } => "250",
        Kind::Duration { .. } => "77s",
        Kind::Choice(words) => words.last().unwrap(),
        Kind::Choices(words) => words[0],
        Kind::Text { .. } | Kind::Texts { .. } | Kind::Cookie => "other",
        Kind::Origins => "https://other.example",
        Kind::Patterns => "other:{user}",
        Kind::Networks => "10.0.0.0/8",
        Kind::Cpus => "5",
        Kind::Listen => "unix:/other.sock",
        Kind::Secret | Kind::Secrets => "s3cret-s3cret-s3cret",
        Kind::File => "/other.pem",
        Kind::RedisUrl => "redis://user:s3cret@host/0",
        Kind::Url(_) => "https://user:s3cret@host/keys",
    }
}

/// Settings that no release runs with yet, from TOML.
fn settings(toml: &str) -> Result<KeyValues, ConfigError> {
    let mut settings = KeyValues::defaults();
    settings.set_from_toml(Path::new("gw.toml"), toml)?;
    Ok(settings)
}
