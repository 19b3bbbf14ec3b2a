//! `shardgate token`: prints a token that a gateway with the same configuration takes. It is for
//! trying things out. In service, the system that knows the users makes the tokens.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use shardgate::auth::Verifier;
use shardgate::config::{self, AuthConfig, ConfigError, CredentialSource, Loaded};
use shardgate::jws::{Algorithm, SigningKey};

use crate::print::{complain, print};

const HELP: &str = "\
Usage: shardgate token --user NAME [--ttl TIME] [--claims JSON] [--private-key FILE] [--alg NAME] [--kid NAME]
                       [--FLAG VALUE]...

Prints a token for a user, by the configuration that a gateway would have: all of its flags, variables and its file hold here, too.

  --user NAME           The user: sub
  --ttl TIME            How long it is good: 500ms, 25s, 2m, 1h [1h]; 0s for ever
  --claims JSON         More claims, such as '{\"sub_channels\":[\"room:*\"],\"connections\":2}'
  --private-key FILE    Signs with this (PEM); needed unless auth.key is a secret
  --alg NAME            One of auth.algorithm [its first]
  --kid NAME            Says which key signed

Examples:
  SHARDGATE_AUTH_KEY=@secret.txt shardgate token --user alice --ttl 1h --auth-algorithm HS256
  shardgate token --config shardgate.toml --user alice --private-key private.pem
";

/// The arguments besides those of the configuration.
#[derive(Default)]
struct TokenArgs {
    user: Option<String>,
    ttl: Option<String>,
    claims: Option<String>,
    private_key: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
}

/// Runs the subcommand; `args` are those behind its name.
pub(crate) fn run(args: Vec<OsString>, env: Vec<(OsString, OsString)>) -> ExitCode {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return print(HELP);
    }
    match make(args, env) {
        Ok(token) => print(&format!("{token}\n")),
        Err(why) => {
            complain("shardgate token", &why);
            ExitCode::from(ConfigError::EXIT_CODE)
        }
    }
}

fn make(args: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Result<String, String> {
    let (wish, rest) = split(args)?;
    let config = match config::load(rest, env).map_err(|error| error.to_string())? {
        Loaded::Run(config) => config,
        Loaded::Help(text) | Loaded::Version(text) => return Ok(text),
        Loaded::Checked(config, effective) => return Ok(effective.text(&config, None)),
    };
    let auth = &config.auth;
    let algorithm = match &wish.alg {
        Some(name) => Algorithm::by_name(name).filter(|algorithm| auth.algorithms.contains(algorithm)),
        None => auth.algorithms.first().copied(),
    };
    let algorithm =
        algorithm.ok_or("set auth.algorithm and auth.key, or auth.jwks_url: there is none that could be used")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = claims(&wish, auth, now)?;
    let key = signing_key(&wish, auth, algorithm)?;
    let token = key
        .sign(&claims, wish.kid.as_deref())
        .map_err(|error| error.to_string())?;
    // An error here is better than a 401 later. The keys of a URL are not known here.
    if let (CredentialSource::Key(_), Ok(Some(verifier))) = (&auth.source, Verifier::new(auth, None)) {
        verifier
            .verify(&token, now.as_millis() as u64)
            .map_err(|refusal| format!("a gateway with this configuration would refuse it: {}", refusal.label()))?;
    }
    Ok(token)
}

/// Our own flags, and those of the configuration.
fn split(args: Vec<OsString>) -> Result<(TokenArgs, Vec<OsString>), String> {
    let (mut wish, mut rest) = (TokenArgs::default(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        let (flag, inline) = text
            .split_once('=')
            .map_or((text, None), |(flag, value)| (flag, Some(value)));
        let argument = match flag {
            "--user" => &mut wish.user,
            "--ttl" => &mut wish.ttl,
            "--claims" => &mut wish.claims,
            "--private-key" => &mut wish.private_key,
            "--alg" => &mut wish.alg,
            "--kid" => &mut wish.kid,
            _ => {
                rest.push(arg);
                continue;
            }
        };
        let value = inline.map(str::to_owned).or_else(|| args.next()?.into_string().ok());
        *argument = Some(value.ok_or_else(|| format!("{flag} has no value"))?);
    }
    Ok((wish, rest))
}

fn claims(wish: &TokenArgs, auth: &AuthConfig, now: Duration) -> Result<String, String> {
    let user = wish
        .user
        .clone()
        .ok_or("--user is missing; see shardgate token --help")?;
    let ttl = wish.ttl.as_deref().unwrap_or("1h");
    let ttl = config::parse_duration(ttl).map_err(|why| format!("--ttl {ttl:?} is no time: {why}"))?;
    let mut claims = Map::new();
    claims.insert("sub".into(), user.into());
    claims.insert("iat".into(), now.as_secs().into());
    if !ttl.is_zero() {
        claims.insert("exp".into(), ((now + ttl).as_millis() as f64 / 1000.0).into());
    }
    if let Some(issuer) = &auth.issuer {
        claims.insert("iss".into(), issuer.clone().into());
    }
    if let Some(audience) = auth.audience.first() {
        claims.insert("aud".into(), audience.clone().into());
    }
    if let Some(more) = &wish.claims {
        let more: Map<String, Value> =
            serde_json::from_str(more).map_err(|error| format!("--claims is no JSON object: {error}"))?;
        claims.extend(more);
    }
    Ok(Value::Object(claims).to_string())
}

fn signing_key(wish: &TokenArgs, auth: &AuthConfig, algorithm: Algorithm) -> Result<SigningKey, String> {
    match (&wish.private_key, &auth.source) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("--private-key {path}: {error}"))?;
            SigningKey::new(algorithm, &text).map_err(|error| format!("--private-key {path}: {error}"))
        }
        (None, CredentialSource::Key(key)) if algorithm.is_symmetric() => {
            SigningKey::new(algorithm, key.expose()).map_err(|error| format!("auth.key: {error}"))
        }
        _ => Err(format!(
            "a gateway has the public key for {algorithm} only, and cannot sign: name the private one with --private-key FILE"
        )),
    }
}
