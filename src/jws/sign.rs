//! Making tokens, for trying things out: a gateway in service only verifies.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;

use super::{Algorithm, Family, PROVIDER};

/// Something that signs by one algorithm. `Debug` does not show the key.
#[derive(Debug)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
}

/// Why nothing was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotSign {
    /// Not a private key for the algorithm.
    #[error("it is no private key for {0} in PEM (PKCS#8: openssl pkcs8 -topk8 -nocrypt -in key.pem)")]
    BadKey(Algorithm),
    /// The system has no random numbers, or the key is broken.
    #[error("signing failed")]
    Failed,
}

impl SigningKey {
    /// A secret as it is, or a private key in PEM, whichever the algorithm takes.
    ///
    /// # Errors
    /// It is no such key.
    pub fn new(algorithm: Algorithm, text: &str) -> Result<SigningKey, CannotSign> {
        let text = text.as_bytes();
        let key = match algorithm.family() {
            Family::Hmac => Ok(EncodingKey::from_secret(text)),
            Family::Rsa => EncodingKey::from_rsa_pem(text),
            Family::P256 | Family::P384 => EncodingKey::from_ec_pem(text),
            Family::Ed25519 => EncodingKey::from_ed_pem(text),
        };
        let bad = CannotSign::BadKey(algorithm);
        let key = key.map(|key| SigningKey { algorithm, key }).map_err(|_| bad)?;
        // Whether it is one for this algorithm shows when it signs.
        key.signature(b"").map_err(|_| bad)?;
        Ok(key)
    }

    /// A token with these claims, which are a JSON object.
    ///
    /// # Errors
    /// Signing failed.
    pub fn sign(&self, claims: &str, kid: Option<&str>) -> Result<String, CannotSign> {
        let mut header = serde_json::json!({"alg": self.algorithm.name(), "typ": "JWT"});
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.signature(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, CannotSign> {
        let signer = (PROVIDER.signer_factory)(&self.algorithm.of_library(), &self.key);
        let signature = signer.map(|signer| signer.try_sign(message));
        signature.ok().and_then(Result::ok).ok_or(CannotSign::Failed)
    }
}
