//! Keys from a URL: a thread that fetches them, so that nobody else waits for a network.
//!
//! The thread knows nothing of keys. It fetches at once, then again in the background, and sooner
//! when it is asked to, but not more often than every few seconds however often that is. What it
//! gets, or why it got nothing, goes to the control thread. It ends when the [`Fetcher`] is
//! dropped; a fetch under way then is nobody's business any more and ends by its own limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::woken::Woken;
use crate::config::{Config, shown_url};
use crate::engine::Waker;
use crate::jws::KeySet;
use crate::metrics::FetchResult;
use crate::runtime::StartError;
use crate::shared::Shared;
use crate::shared::clock::Clock;

/// How often keys are fetched when nothing else happens, less up to a tenth by chance, so that the
/// gateways of a cluster do not ask together. A key that its owner withdrew is believed for as
/// long.
const REFRESH: Duration = Duration::from_secs(300);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(15);
/// The same while there are no keys at all.
const RETRY_AT_START: Duration = Duration::from_millis(500);
/// How soon at the most, whoever asks: unknown keys are easily made up. Shorter than
/// `auth.timeout`'s default, so that who shows a token right after a rotation is let in.
const GAP: Duration = Duration::from_secs(2);
/// How long a fetch may take.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How long a start waits for the first keys; as long as for Redis.
const START_MAX: Duration = Duration::from_secs(5);
/// The longest answer; ten keys with their certificates are 20 KiB.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
const REDIRECTS_MAX: u32 = 3;

/// What a fetch brought: the body of the answer, or why there is none.
pub(super) type Fetched = Result<Vec<u8>, String>;

/// The thread's other end.
pub(super) struct Fetcher {
    wanted: Sender<()>,
    fetched: Receiver<Fetched>,
    /// As it may be shown.
    url: String,
}

impl Fetcher {
    /// Starts the thread, which begins to fetch.
    pub(super) fn start(url: &str, waker: Waker) -> std::io::Result<Fetcher> {
        let (wanted, requests) = bounded(1);
        let (answers, fetched) = unbounded();
        let agent = agent(url);
        let address = url.to_owned();
        std::thread::Builder::new().name("jwks".into()).spawn(move || {
            let mut had_some = false;
            loop {
                let began = Instant::now();
                let result = fetch(&agent, &address);
                had_some |= result.is_ok();
                let pause = match &result {
                    Ok(_) => REFRESH.mul_f64(0.9 + 0.1 * fastrand::f64()),
                    Err(_) if had_some => RETRY,
                    Err(_) => RETRY_AT_START,
                };
                if answers.send(result).is_err() {
                    return;
                }
                waker.wake();
                if wait(&requests, began, pause).is_none() {
                    return;
                }
            }
        })?;
        Ok(Fetcher {
            wanted,
            fetched,
            url: shown_url(url),
        })
    }

    /// Asks for a fetch; its answer comes by [`Fetcher::try_next`], as do all others.
    pub(super) fn want(&self) {
        // One request is as good as many.
        let _ = self.wanted.try_send(());
    }

    /// What was fetched since.
    pub(super) fn try_next(&self) -> Option<Fetched> {
        self.fetched.try_recv().ok()
    }

    /// True if something was fetched.
    pub(super) fn has_news(&self) -> bool {
        !self.fetched.is_empty()
    }
}

/// Keys that were fetched, and whoever fetches the next ones. Owned by the control thread.
pub(super) struct FetchedKeys {
    pub(super) fetcher: Fetcher,
    /// The last good ones.
    pub(super) set: Arc<KeySet>,
    failing: bool,
}

impl FetchedKeys {
    /// Waits for the first ones.
    pub(super) async fn first(
        fetcher: Fetcher,
        woken: &Woken,
        ending: &AtomicBool,
        config: &Config,
        shared: (&Shared, Clock),
    ) -> Result<FetchedKeys, StartError> {
        let mut keys = FetchedKeys {
            fetcher,
            set: Arc::default(),
            failing: false,
        };
        let until = tokio::time::Instant::now() + START_MAX;
        let mut cause = "it does not answer".to_owned();
        loop {
            woken.set_waiting();
            if ending.load(Ordering::Acquire) {
                return Err(StartError::GivenUp);
            }
            match keys.fetcher.try_next() {
                Some(fetched) => match keys.take(fetched, config, shared) {
                    Ok(_) => return Ok(keys),
                    Err(why) => cause = why,
                },
                None if tokio::time::timeout_at(until, woken.woken()).await.is_err() => {
                    return Err(StartError::NoKeys {
                        url: keys.fetcher.url,
                        cause,
                        waited: START_MAX,
                    });
                }
                None => {}
            }
        }
    }

    /// Goes by what was fetched; if that is no good, by what there was. Returns true if the keys
    /// have changed.
    pub(super) fn handle_fetched(&mut self, fetched: Fetched, config: &Config, shared: (&Shared, Clock)) -> bool {
        match self.take(fetched, config, shared) {
            Ok(changed) => {
                if std::mem::take(&mut self.failing) {
                    log::info!("keys come from {} again", self.fetcher.url);
                }
                changed
            }
            Err(cause) => {
                if !self.failing {
                    log::warn!(
                        "no keys from {}: {cause}; going on with those there are",
                        self.fetcher.url
                    );
                }
                self.failing = true;
                false
            }
        }
    }

    fn take(&mut self, fetched: Fetched, config: &Config, (shared, clock): (&Shared, Clock)) -> Result<bool, String> {
        let set = fetched
            .and_then(|json| KeySet::from_jwks(&json, &config.auth.algorithms).map_err(|error| error.to_string()));
        let counters = &shared.jwks;
        match set {
            Ok(set) => {
                counters.fetched(FetchResult::Ok);
                counters.fetched_ms.set(clock.now().mono_ms());
                let changed = set != *self.set;
                if changed {
                    log::info!("keys from {}: {}", self.fetcher.url, set.names());
                    if let Some(left_out) = set.left_out() {
                        log::info!("keys from {} that are left out: {left_out}", self.fetcher.url);
                    }
                    self.set = Arc::new(set);
                }
                Ok(changed)
            }
            Err(cause) => {
                counters.fetched(FetchResult::Failed);
                Err(cause)
            }
        }
    }
}

/// Until it is time for the next fetch; `None` once nobody wants one any more.
fn wait(requests: &Receiver<()>, began: Instant, pause: Duration) -> Option<()> {
    match requests.recv_deadline(began + pause) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => return Some(()),
        Err(RecvTimeoutError::Disconnected) => return None,
    }
    loop {
        match requests.recv_deadline(began + GAP) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return Some(()),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn agent(url: &str) -> Agent {
    let mut config = Agent::config_builder()
        .timeout_global(Some(FETCH_MAX))
        .max_redirects(REDIRECTS_MAX)
        .user_agent(concat!("shardgate/", env!("CARGO_PKG_VERSION")))
        .accept("application/jwk-set+json, application/json");
    if url.starts_with("https://") {
        // The system's authorities, as for Redis; SSL_CERT_FILE names others.
        let found = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        // A redirect must not lead to where anybody could answer.
        config = config.https_only(true).tls_config(tls.build());
    }
    config.build().new_agent()
}

fn fetch(agent: &Agent, url: &str) -> Fetched {
    let body = agent
        .get(url)
        .call()
        .and_then(|answer| answer.into_body().with_config().limit(ANSWER_BYTES_MAX).read_to_vec());
    // The URL may hold a key of its own.
    body.map_err(|error| error.to_string().replace(url, &shown_url(url)))
}
