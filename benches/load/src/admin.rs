//! Requests to the first gateway's admin API: to begin a drain, or to close the users' connections.

use std::time::Duration;

use ureq::Agent;

use crate::args::Options;
use crate::message::user_name;

/// A gateway that takes longer for one answer is not well.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Has it drain.
///
/// # Errors
/// It does not say that it will.
pub(crate) fn drain(options: &Options) -> Result<(), String> {
    let (agent, url, token) = (agent(), format!("{}/admin/drain", base(options)?), token(options)?);
    let answer = agent.post(&url).header("Authorization", token).send_empty();
    check("POST", &url, answer, 202)
}

/// Has it close the connections of all users but those of pairs, one after the other.
///
/// # Errors
/// It does not say that it did.
pub(crate) fn delete(options: &Options) -> Result<(), String> {
    let (agent, base, token) = (agent(), base(options)?, token(options)?);
    for user in 2 * options.pairs()..options.connections() {
        let name = user_name(&options.connect.user_prefix, user as u32);
        let url = format!("{base}/admin/users/{name}/connections");
        let answer = agent.delete(&url).header("Authorization", &token).call();
        check("DELETE", &url, answer, 200)?;
    }
    Ok(())
}

type Answer = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn check(method: &str, url: &str, answer: Answer, wanted: u16) -> Result<(), String> {
    match answer {
        Ok(mut answer) if answer.status() == wanted => {
            // A connection with an unread body cannot be used again.
            let _ = answer.body_mut().read_to_vec();
            Ok(())
        }
        Ok(answer) => Err(format!("{method} {url}: {}", answer.status())),
        Err(error) => Err(format!("{method} {url}: {error}")),
    }
}

fn agent() -> Agent {
    Agent::config_builder()
        .timeout_global(Some(ANSWER_TIME_MAX))
        .http_status_as_error(false)
        .build()
        .into()
}

/// The value of the header field.
fn token(options: &Options) -> Result<String, String> {
    let token = options.storm.admin_token.as_deref().unwrap_or_default();
    match token.strip_prefix('@') {
        None => Ok(format!("Bearer {token}")),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| format!("--admin-token {file}: {error}"))?;
            Ok(format!("Bearer {}", text.trim_end_matches(['\r', '\n'])))
        }
    }
}

/// Where its `/admin` is.
fn base(options: &Options) -> Result<String, String> {
    match &options.storm.admin_url {
        Some(url) => Ok(url.trim_end_matches('/').to_owned()),
        None if options.targets.are_tls() => {
            Err("--cut: give --admin-url, as no certificate is checked here".to_owned())
        }
        None => Ok(format!("http://{}", options.targets.of(0).host)),
    }
}
