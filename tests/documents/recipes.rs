//! The justfile and `rust-toolchain.toml`: every recipe is one command that works as it stands.
//!
//! just itself need not be installed: what it would type is read from the file, and tried as the
//! documents' commands are. Programs are started; scripts and what is built from them must be
//! there; what takes minutes must be what CI types.

use std::os::unix::fs::PermissionsExt;

use crate::blocks::{Redis, missing};
use crate::common::namespace;
use crate::repository;
use crate::session::{self, Session};

/// The words that recipes which start a program are given.
const WORDS: &[(&str, &str)] = &[
    ("run", "--limits-messages-per-second 0"),
    (
        "load",
        "direct --users 4 --rate 20 --duration 1s --url ws://127.0.0.1:8080/ws",
    ),
];

#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    name: String,
    parameters: Vec<String>,
    command: String,
}

impl Recipe {
    /// The command with these words instead of all parameters.
    fn with(&self, words: &str) -> String {
        let (before, behind) = self.command.split_once("{{").unwrap_or((&self.command, "}}"));
        let (_, behind) = behind.rsplit_once("}}").expect("a parameter ends");
        format!("{before}{words}{behind}").trim().to_owned()
    }
}

/// The recipes of a justfile that has nothing else: a line of documentation, a head, one command.
fn recipes(text: &str) -> Result<Vec<Recipe>, String> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut lines = text.lines().peekable();
    let mut documented = false;
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            documented = line.starts_with('#');
            continue;
        }
        let head = line
            .strip_suffix(':')
            .ok_or(format!("{line:?} is no head of a recipe"))?;
        let mut words = head.split_whitespace();
        let name = words.next().ok_or("a recipe without a name")?.to_owned();
        if !documented {
            return Err(format!("{name} is not documented"));
        }
        let command = lines.next().and_then(|line| line.strip_prefix("    "));
        let command = command.ok_or(format!("{name} has no command"))?;
        if lines.peek().is_some_and(|line| !line.is_empty()) {
            return Err(format!("{name} is more than one command"));
        }
        let parameter = |word: &str| word.trim_start_matches('*').split('=').next().unwrap().to_owned();
        let recipe = Recipe {
            name,
            parameters: words.map(parameter).collect(),
            command: command.trim_start_matches('@').to_owned(),
        };
        for parameter in &recipe.parameters {
            if !recipe.command.contains(&format!("{{{{ {parameter} }}}}")) {
                return Err(format!("{} does not use {parameter}", recipe.name));
            }
        }
        recipes.push(recipe);
    }
    Ok(recipes)
}

fn ours() -> Vec<Recipe> {
    recipes(&std::fs::read_to_string(repository().join("justfile")).unwrap()).unwrap()
}

/// The fault of a command that is not started here.
fn wrong(recipe: &Recipe) -> Option<String> {
    let command = recipe.with("");
    if command == "just --list" {
        return None;
    }
    if !session::is_shell(&command) {
        return Some(format!("bash cannot read {command:?}"));
    }
    if let Some(what) = missing(&command) {
        return Some(what);
    }
    let program = command.split(' ').next().unwrap();
    if program != "cargo" {
        return match std::fs::metadata(repository().join(program)) {
            Ok(found) if found.permissions().mode() & 0o111 != 0 => None,
            _ => Some(format!("{program} is no program of this tree")),
        };
    }
    // `missing` has looked for the bench.
    let ci = std::fs::read_to_string(repository().join(".ci/run")).unwrap();
    (!command.contains("--bench ") && !ci.contains(&command)).then(|| format!(".ci/run does not type {command:?}"))
}

fn words_of(recipe: &Recipe) -> Option<&'static str> {
    WORDS
        .iter()
        .find(|(name, _)| *name == recipe.name)
        .map(|(_, words)| *words)
}

#[test]
fn every_recipe_works() {
    namespace::inside("recipes::every_recipe_works", || {
        let recipes = ours();
        let names: Vec<&str> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
        for name in ["run", "test", "lint", "docs", "bench", "fuzz", "load"] {
            assert!(names.contains(&name), "{names:?}");
        }
        let redis = Redis::start();
        let mut session = Session::new(&[]);
        let mut failed = Vec::new();
        for recipe in &recipes {
            let tried = match words_of(recipe) {
                Some(words) => {
                    let typed = session::commands(&recipe.with(words)).remove(0);
                    session.run(&recipe.name, &typed, &[0])
                }
                None => wrong(recipe).map_or(Ok(()), Err),
            };
            failed.extend(tried.err().map(|why| format!("{}: {why}", recipe.name)));
        }
        failed.extend(session.end_servers().err());
        drop(redis);
        assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    });
}

#[test]
fn a_recipe_that_does_not_work_is_seen() {
    let one = recipes("# why\nx A *B:\n    tests/run {{ A }} {{ B }}\n").unwrap();
    assert_eq!((one[0].with("1 2"), wrong(&one[0])), ("tests/run 1 2".to_owned(), None));
    for text in [
        "x:\n    ls\n",
        "# why\nx:\n",
        "# why\nx:\n    ls\n    ls\n",
        "# why\nx A:\n    ls\n",
        "x := 1\n",
    ] {
        assert!(recipes(text).is_err(), "{text:?}");
    }
    for command in [
        "tests/nothing",
        "README.md",
        "cargo sing",
        "cargo bench --bench nothing",
        "ls 'a",
    ] {
        let recipe = recipes(&format!("# why\nx:\n    {command}\n")).unwrap().remove(0);
        assert!(wrong(&recipe).is_some(), "{command}");
    }
}

/// CI's commands need components that a toolchain has only if it is told to.
#[test]
fn the_toolchain_has_what_is_typed() {
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).unwrap();
    let file: toml::Table = toml::from_str(&read("rust-toolchain.toml")).unwrap();
    assert_eq!(file["toolchain"]["channel"].as_str(), Some("stable"));
    let components = file["toolchain"]["components"].as_array().unwrap();
    for (command, component) in [("cargo clippy", "clippy"), ("cargo fmt", "rustfmt")] {
        assert!(read(".ci/run").contains(command));
        assert!(
            components.iter().any(|name| name.as_str() == Some(component)),
            "{component}"
        );
    }
}
