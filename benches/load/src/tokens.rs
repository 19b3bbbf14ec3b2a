//! One token per user, made before the load, so that signing is no part of what is measured.

use std::sync::Arc;

use shardgate::jws::{Algorithm, SigningKey};

use crate::message::user_name;

/// The users' tokens, by their numbers; shared by the threads.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) algorithm: Algorithm,
    tokens: Arc<[String]>,
}

impl Tokens {
    /// Makes `count` tokens with the key that `spec` names as `ALG:FILE`.
    ///
    /// # Errors
    /// The fault.
    pub(crate) fn make(spec: &str, prefix: &str, count: usize) -> Result<Tokens, String> {
        let (name, file) = spec
            .split_once(':')
            .ok_or("--token-key: must be ALG:FILE, such as ES256:private.pem")?;
        let algorithm = Algorithm::by_name(name)
            .ok_or_else(|| format!("--token-key: {name} is none of {}", Algorithm::NAMES.join(", ")))?;
        let text = std::fs::read_to_string(file).map_err(|error| format!("--token-key: {file}: {error}"))?;
        let key = SigningKey::new(algorithm, text.trim_end_matches(['\r', '\n']))
            .map_err(|error| format!("--token-key: {file}: {error}"))?;
        let token = |number: u32| {
            let claims = serde_json::json!({"sub": user_name(prefix, number)}).to_string();
            key.sign(&claims, None).map_err(|error| format!("--token-key: {error}"))
        };
        Ok(Tokens {
            algorithm,
            tokens: (0..count as u32).map(token).collect::<Result<_, _>>()?,
        })
    }

    /// The token of a user.
    pub(crate) fn of(&self, user: u32) -> &str {
        &self.tokens[user as usize]
    }
}
