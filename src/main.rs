//! The gateway program: configuration, log, signals, exit code. Everything else is in the library.

#[path = "main/print.rs"]
mod print;
#[path = "main/systemd.rs"]
mod systemd;
#[path = "main/token.rs"]
mod token;

use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use shardgate::config::{self, Config, ConfigError, Listen, Loaded};
use shardgate::control::{Exit, Gateway, Handle, log_reload};
use shardgate::logging;
use shardgate::runtime::{StartError, limit_remedy, preflight};
use shardgate::tls::Certificates;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// One stop request may send two signals. That happens when a caller signals a process and its
/// group, or on Ctrl-C in a terminal whose shell passes it on.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// How long the last lines of the log may take.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// How long systemd may take to receive that we are ready. Nothing waits for that but the end of
/// the gateway.
const READY_TOLD_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    if args.first().is_some_and(|first| first == "token") {
        return token::run(args[1..].to_vec(), env);
    }
    match config::load(args.clone(), env.clone()) {
        Ok(Loaded::Run(config)) => run(*config, &args, &env),
        Ok(Loaded::Help(text) | Loaded::Version(text)) => print::print(&text),
        // `--check-config` shall also report a key that does not belong to its certificate.
        Ok(Loaded::Checked(config, effective)) => match config.tls.as_ref().map(Certificates::read).transpose() {
            // The check may run on another host than the gateway.
            Ok(_) => print::print(&effective.text(&config, preflight::foresee(&config).ok().as_ref())),
            Err(error) => refuse(&error),
        },
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &dyn Display) -> ExitCode {
    print::complain("shardgate", error);
    ExitCode::from(ConfigError::EXIT_CODE)
}

fn run(config: Config, args: &[OsString], env: &[(OsString, OsString)]) -> ExitCode {
    if let Err(error) = logging::start(config.log_format) {
        let remedy = limit_remedy(&error);
        print::complain(
            "shardgate",
            &format_args!("cannot start the log's thread: {error}{remedy}"),
        );
        return ExitCode::FAILURE;
    }
    // The level is the `log` crate's own, so that it can change while running.
    log::set_max_level(config.log_level);
    let code = serve(config, args, env);
    logging::flush(LAST_WORDS_MAX);
    code
}

fn serve(config: Config, args: &[OsString], env: &[(OsString, OsString)]) -> ExitCode {
    // Before any wait, so that no signal is missed.
    let mut signals = match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot handle signals: {error}")),
    };
    let signals_handle = signals.handle();
    let (told, handle) = std::sync::mpsc::channel::<Handle>();
    let mut watched = config.clone();
    let (args, env) = (args.to_vec(), env.to_vec());
    // Signals are handled from the start on, as it may wait for Redis for long.
    let watcher = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let Ok(handle) = handle.recv() else {
            return;
        };
        let mut draining: Option<Instant> = None;
        for signal in signals.forever() {
            if signal == SIGHUP {
                let reloaded = config::reload(&watched, args.clone(), env.clone());
                watched = log_reload(reloaded, &handle).unwrap_or_else(|| watched.clone());
                continue;
            }
            match draining {
                None => {
                    draining = Some(Instant::now());
                    handle.drain();
                }
                Some(since) if since.elapsed() < SECOND_SIGNAL_AFTER => {
                    log::info!("one more signal within a second of the first: the same order");
                }
                Some(_) => {
                    log::warn!("second signal: ending at once");
                    logging::flush(LAST_WORDS_MAX);
                    std::process::exit(1);
                }
            }
        }
    });
    let watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            return fail(&format!(
                "cannot start the signal thread: {error}{}",
                limit_remedy(&error)
            ));
        }
    };
    let gateway = Gateway::start_with(
        &config,
        |handle| {
            let _ = told.send(handle);
        },
        // A drain by signal or by the admin API: systemd shall not call a gateway active that
        // accepts no clients any more.
        || systemd::tell(&NotifyState::Stopping, Duration::ZERO),
    );
    let gateway = match gateway {
        Ok(gateway) => gateway,
        Err(StartError::GivenUp) => {
            log::info!("told to end while starting");
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error.to_string()),
    };
    let listen = gateway.listen();
    log::info!("gateway {} listening on {listen}", config.gateway_id);
    if let Some(admin) = gateway.admin_listen() {
        log::info!("administration on {admin}");
    }
    if gateway.shared().development {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        match listen {
            Listen::Unix(_) => log::warn!("development mode: every client is who it says it is"),
            addr => log::warn!("development mode: every client is who it says it is; try it at {scheme}://{addr}/"),
        }
    }
    log::info!("Ready");
    systemd::tell(&NotifyState::Ready, READY_TOLD_MAX);
    let exit = gateway.wait();
    signals_handle.close();
    let _ = watcher.join();
    match exit {
        Exit::Drained { left, closed } => {
            log::info!("drained: {left} clients left, {closed} were closed");
            ExitCode::SUCCESS
        }
        Exit::Stopped | Exit::Broken => ExitCode::FAILURE,
    }
}

fn fail(cause: &str) -> ExitCode {
    logging::say_last(cause);
    ExitCode::FAILURE
}
