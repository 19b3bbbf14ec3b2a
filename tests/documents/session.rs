//! A reader with a terminal: types the commands of a document one after the other, in a copy of the
//! tree.
//!
//! The differences from a reader's machine: the programs are the debug build, `cargo run` and
//! `cargo build` find them built, the load generator takes fewer users and less time, and `wscat`
//! is the client of these tests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::common::{Client, DEADLINE};
use crate::repository;

/// `cargo` of a reader who has built. A release build would take minutes; the debug build exists.
const CARGO: &str = r#"#!/bin/sh
case $1 in
    build) exit 0 ;;
    run)
        shift
        program=shardgate
        while [ $# -gt 0 ]; do
            case $1 in
                --release) shift ;;
                --bin) program=$2; shift 2 ;;
                --) shift; break ;;
                *) echo "cargo run $*: not known to this test" >&2; exit 1 ;;
            esac
        done
        exec "$TREE/target/release/$program" "$@" ;;
    *) echo "cargo $*: not known to this test" >&2; exit 1 ;;
esac
"#;

/// Says which address `wscat` would go to.
const NPX: &str = r#"#!/bin/sh
if [ "$1" != wscat ] || [ "$2" != -c ] || [ $# -ne 3 ]; then echo "npx $*: not known to this test" >&2; exit 1; fi
printf %s "$3" >"$TREE/wscat-url"
"#;

/// The load generator with a load for a machine that other tests share.
const LOAD: &str = r#"#!/usr/bin/env bash
args=() timed=''
scenario=$1
while (($#)); do
    case $1 in
        --users) args+=("$1" "$(($2 < 40 ? $2 : 40))"); shift ;;
        --rate) args+=("$1" "$(($2 < 200 ? $2 : 200))"); shift ;;
        --warmup-connections) args+=("$1" 4); shift ;;
        --duration) timed=yes; args+=("$1" 1s); shift ;;
        *) args+=("$1") ;;
    esac
    shift
done
case $scenario in
    idle | direct | fanout | mixed) if [[ ! $timed ]]; then args+=(--duration 1s); fi ;;
    storm) args+=(--calm 500ms) ;;
esac
exec "$LOAD_PROGRAM" "${args[@]}"
"#;

/// The longest time of a command that is no server.
const PATIENCE: Duration = Duration::from_secs(90);

/// A command as a document shows it, with the lines to and from a program that talks (`> `, `< `).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Typed {
    pub(crate) command: String,
    pub(crate) talk: Vec<String>,
}

/// The commands of a block. A command goes on behind a backslash, and within quotes.
pub(crate) fn commands(text: &str) -> Vec<Typed> {
    let mut commands: Vec<Typed> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        if !goes_on && (line.starts_with("> ") || line.starts_with("< ")) {
            commands
                .last_mut()
                .expect("a command before what is said to it")
                .talk
                .push(line.to_owned());
            continue;
        }
        if !goes_on && (line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        if goes_on {
            let last = &mut commands.last_mut().unwrap().command;
            last.push('\n');
            last.push_str(line);
        } else {
            commands.push(Typed {
                command: line.to_owned(),
                talk: Vec::new(),
            });
        }
        let command = &commands.last().unwrap().command;
        goes_on = command.ends_with('\\') || is_quoted_at_the_end(command);
    }
    commands
}

fn is_quoted_at_the_end(command: &str) -> bool {
    without_comment(command).1
}

/// The command without a comment behind it, and whether it ends within quotes.
fn without_comment(command: &str) -> (&str, bool) {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in command.char_indices() {
        match quote {
            None if c == '#' && before.is_whitespace() => return (command[..at].trim_end(), false),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    (command.trim_end(), quote.is_some())
}

/// A gateway that stays: its log, and its process.
struct Server {
    location: String,
    log: PathBuf,
    pid: u32,
}

pub(crate) struct Session {
    folder: tempfile::TempDir,
    shell: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
    servers: Vec<Server>,
    typed: usize,
}

impl Session {
    pub(crate) fn new(environment: &[(&str, PathBuf)]) -> Session {
        let folder = tempfile::Builder::new()
            .prefix("shardgate-documents-")
            .tempdir()
            .unwrap();
        let tree = folder.path().join("tree");
        let release = tree.join("target/release");
        fs::create_dir_all(&release).unwrap();
        for entry in fs::read_dir(repository()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "target" && entry.file_name() != ".git" {
                symlink(entry.path(), tree.join(entry.file_name())).unwrap();
            }
        }
        symlink(env!("CARGO_BIN_EXE_shardgate"), release.join("shardgate")).unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        script(&bin.join("cargo"), CARGO);
        script(&bin.join("npx"), NPX);
        script(&release.join("shardgate-load"), LOAD);
        let path = format!(
            "{}:{}:{}",
            bin.display(),
            release.display(),
            std::env::var("PATH").unwrap()
        );
        let mut shell = crate::common::gateway::command("bash");
        shell
            .args(["--norc", "--noprofile"])
            .current_dir(&tree)
            .env("PATH", path)
            .env("TREE", &tree)
            .env("LOAD_PROGRAM", crate::common::built::load_generator())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut shell = shell.spawn().unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
        Session {
            input: shell.stdin.take().unwrap(),
            folder,
            shell,
            answers,
            servers: Vec::new(),
            typed: 0,
        }
    }

    /// Types one command. A gateway stays, and this waits until it is ready. A gateway without `&`
    /// keeps the terminal, so earlier ones are ended first.
    ///
    /// # Errors
    /// The fault, for a reader of the document. `exits` are the codes that are right.
    pub(crate) fn run(&mut self, location: &str, typed: &Typed, exits: &[i32]) -> Result<(), String> {
        let (command, _) = without_comment(&typed.command);
        let stays = is_server(command);
        let command = match (stays, command.strip_suffix('&')) {
            (true, None) => {
                self.end_servers()?;
                format!("{command} &")
            }
            (false, Some(_)) => return Err("only gateways stay in the background".to_owned()),
            _ => typed.command.clone(),
        };
        let (code, last, log) = self.execute(&command)?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        if stays {
            let server = Server {
                location: location.to_owned(),
                log: log.clone(),
                pid: last,
            };
            server.wait_until_ready()?;
            self.servers.push(server);
        } else if !exits.contains(&code) {
            return Err(format!("exit code {code}:\n{}", said()));
        }
        self.talk(&typed.talk)
    }

    /// Returns the exit code, the last background process, and the file of the output.
    fn execute(&mut self, command: &str) -> Result<(i32, u32, PathBuf), String> {
        self.typed += 1;
        let log = self.folder.path().join(format!("{}.log", self.typed));
        let script = format!(
            "{{ {command}\n}} </dev/null >'{}' 2>&1\nprintf '%s %s\\n' \"$?\" \"${{!:-0}}\"\n",
            log.display()
        );
        self.input
            .write_all(script.as_bytes())
            .map_err(|error| error.to_string())?;
        let answer = self.answers.recv_timeout(PATIENCE).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("no end after {PATIENCE:?} ({error}):\n{said}")
        })?;
        let (code, pid) = answer.split_once(' ').ok_or("the shell's answer is none")?;
        Ok((code.parse().unwrap(), pid.parse().unwrap(), log))
    }

    /// Ends the gateways that run, as Ctrl-C would.
    pub(crate) fn end_servers(&mut self) -> Result<(), String> {
        for server in std::mem::take(&mut self.servers) {
            let pid = server.pid;
            let (code, ..) = self.execute(&format!("kill -TERM {pid}; wait {pid}"))?;
            let log = fs::read_to_string(&server.log).unwrap();
            if code != 0 || log.contains("panicked at") {
                return Err(format!("the gateway of {} ended with {code}:\n{log}", server.location));
            }
        }
        Ok(())
    }

    /// If `npx wscat` was called: connects to its address, sends and expects the document's lines.
    fn talk(&mut self, talk: &[String]) -> Result<(), String> {
        let file = self.folder.path().join("tree/wscat-url");
        let Ok(url) = fs::read_to_string(&file) else {
            return if talk.is_empty() {
                Ok(())
            } else {
                Err("nobody to talk to".to_owned())
            };
        };
        fs::remove_file(&file).unwrap();
        let (address, path) = url
            .strip_prefix("ws://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| format!("{url} is no ws://HOST:PORT/PATH"))?;
        let mut client = Client::connect(address.parse().map_err(|error| format!("{address}: {error}"))?);
        client.send_raw(
            crate::common::client::upgrade_head(&format!("/{path}"), "")
                .replace("gateway.example", address)
                .as_bytes(),
        );
        let answer = client.read_head();
        if answer.status != 101 {
            return Err(format!("{url}: {answer:?}"));
        }
        let welcome = client.recv_json();
        if welcome["type"] != "welcome" {
            return Err(format!("{url}: {welcome}"));
        }
        for line in talk {
            match line.split_at(2) {
                ("> ", text) => client.send_text(text),
                (_, expected) => {
                    let heard = client.recv_text();
                    if !fits(expected, &heard) {
                        return Err(format!("the document shows {expected}, and the gateway says {heard}"));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Processes that still run end with the namespace.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Server {
    fn wait_until_ready(&self) -> Result<(), String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            if log.contains("Ready") {
                return Ok(());
            }
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            let ended = stat.is_empty() || stat.contains(") Z ");
            if ended || Instant::now() > until {
                return Err(format!("the gateway is not ready:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether the command is a gateway that goes on until a signal.
fn is_server(command: &str) -> bool {
    let mut words = command.split_whitespace().skip_while(|word| {
        let (name, value) = word.split_once('=').unwrap_or_default();
        !value.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    });
    let first = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let program = match first.rsplit('/').next().unwrap() {
        "cargo" => rest.first() == Some(&"run") && !rest.contains(&"shardgate-load"),
        name => name == "shardgate",
    };
    let ends = ["token", "--check-config", "--help", "--version"];
    program && !rest.iter().any(|word| ends.contains(word))
}

/// Whether the text is the shown one; `…` stands for anything.
fn fits(shown: &str, text: &str) -> bool {
    let mut rest = text;
    let mut parts = shown.split('…');
    let Some(behind) = rest.strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    rest = behind;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || shown.ends_with('…')
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whether bash can read it.
pub(crate) fn is_shell(text: &str) -> bool {
    let status = Command::new("bash")
        .args(["-n", "-c", text])
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

#[test]
fn commands_are_told_apart() {
    let typed = commands("# why\na \\\n  b   # c\n\nd 'x\ny' &\nnpx wscat -c u\n> one\n< two\n");
    let all: Vec<(&str, usize)> = typed
        .iter()
        .map(|typed| (typed.command.as_str(), typed.talk.len()))
        .collect();
    assert_eq!(all, [("a \\\n  b   # c", 0), ("d 'x\ny' &", 0), ("npx wscat -c u", 2)]);
    assert_eq!(without_comment("a '#' \"#\" b#c # d"), ("a '#' \"#\" b#c", false));
    for server in [
        "shardgate",
        "A=b shardgate --echo",
        "cargo run --release",
        "target/release/shardgate -x",
    ] {
        assert!(is_server(server), "{server}");
    }
    for other in [
        "shardgate token --user a",
        "shardgate --check-config",
        "shardgate-load idle",
        "cargo run --release --bin shardgate-load -- idle",
        "cargo build",
    ] {
        assert!(!is_server(other), "{other}");
    }
}

#[test]
fn what_is_shown_is_what_comes() {
    assert!(fits(
        r#"{"id":"01…","status":"offline"}"#,
        r#"{"id":"01a2","status":"offline"}"#
    ));
    assert!(!fits(
        r#"{"id":"01…","status":"offline"}"#,
        r#"{"id":"01a2","status":"delivered"}"#
    ));
    assert!(!fits("a", "ab"));
}

#[test]
fn a_command_that_fails_is_seen() {
    let mut session = Session::new(&[]);
    let typed = |command: &str| commands(command).remove(0);
    assert_eq!(session.run("here", &typed("true"), &[0]), Ok(()));
    assert_eq!(session.run("here", &typed("(exit 3)"), &[0, 3]), Ok(()));
    let failed = session.run("here", &typed("echo why; false"), &[0]).unwrap_err();
    assert!(failed.contains("exit code 1") && failed.contains("why"), "{failed}");
    let failed = session
        .run("here", &typed("shardgate --listen nowhere"), &[0])
        .unwrap_err();
    assert!(failed.contains("not ready") && failed.contains("nowhere"), "{failed}");
}
