//! What is asked of the gateways' admin API: to begin a drain.

use std::time::Duration;

use crate::args::Options;

/// A gateway that takes longer for one answer is not well.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Has the first gateway drain.
///
/// # Errors
/// It does not say that it will.
pub(crate) fn drain(options: &Options) -> Result<(), String> {
    let token = options.storm.admin_token.as_deref().unwrap_or_default();
    let token = match token.strip_prefix('@') {
        None => token.to_owned(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| format!("--admin-token {file}: {error}"))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_TIME_MAX))
        .http_status_as_error(false)
        .build()
        .into();
    let url = format!("{}/admin/drain", base(options)?);
    match agent
        .post(&url)
        .header("Authorization", format!("Bearer {token}"))
        .send_empty()
    {
        Ok(answer) if answer.status() == 202 => Ok(()),
        Ok(answer) => Err(format!("POST {url}: {}", answer.status())),
        Err(error) => Err(format!("POST {url}: {error}")),
    }
}

/// Where its `/admin` is.
fn base(options: &Options) -> Result<String, String> {
    match &options.storm.admin_url {
        Some(url) => Ok(url.trim_end_matches('/').to_owned()),
        None if options.targets.are_tls() => {
            Err("--cut drain: give --admin-url, as no certificate is checked here".to_owned())
        }
        None => Ok(format!("http://{}", options.targets.of(0).host)),
    }
}
