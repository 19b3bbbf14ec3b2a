//! A token taken apart. Nothing of it is believed before its signature is verified.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Algorithm, Members, TOKEN_BYTES_MAX, VerifyingKey};

/// The parts of a token in compact form.
#[derive(Debug)]
pub struct Signed<'a> {
    /// The algorithm that it claims; `None` for one that we do not know, `none` among them.
    pub algorithm: Option<Algorithm>,
    /// Which key it claims to be signed with.
    pub kid: Option<String>,
    /// The signed bytes: header and payload, as they came.
    message: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

/// Text that is no token in compact form that we could verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

impl<'a> Signed<'a> {
    /// Takes a token apart.
    ///
    /// Keys and addresses of keys in the header (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
    ///
    /// # Errors
    /// The token is too long or not three parts in base64url without padding. Or its header is no
    /// object, names another type than JWT, or has an extension that must be understood (`crit`).
    pub fn parse(token: &'a str) -> Result<Self, Malformed> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Malformed)?;
        if payload.contains('.') {
            return Err(Malformed);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Malformed)?;
        let header = Members::parse(&header).map_err(|_| Malformed)?;
        let text = |name| header.get::<String>(name).map_err(|_| Malformed);
        if header.has("crit") || text("typ")?.is_some_and(|typ| !is_jwt(&typ)) {
            return Err(Malformed);
        }
        let algorithm = text("alg")?.ok_or(Malformed)?;
        Ok(Signed {
            algorithm: Algorithm::by_name(&algorithm),
            kid: text("kid")?,
            message,
            payload,
            signature,
        })
    }

    /// The payload, if the signature is this key's by this algorithm.
    #[must_use]
    pub fn payload(&self, key: &VerifyingKey, algorithm: Algorithm) -> Option<Vec<u8>> {
        if !key.verifies(algorithm, self.message.as_bytes(), &self.signature) {
            return None;
        }
        URL_SAFE_NO_PAD.decode(self.payload).ok()
    }
}

/// A token for access. One that an issuer signed for another purpose (`logout+jwt`, `dpop+jwt`) is
/// none, whatever it claims (RFC 8725, 3.11).
fn is_jwt(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    let typ = typ.strip_prefix("application/").unwrap_or(&typ);
    matches!(typ, "jwt" | "at+jwt")
}
