//! Making tokens, for trying things out: a gateway in service only verifies.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaEncoding, RsaKeyPair};
use ring::{hmac, rand};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::Algorithm;
use super::key::hmac_of;

/// Something that signs by one algorithm.
pub struct SigningKey {
    algorithm: Algorithm,
    signer: Signer,
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ecdsa(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
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

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A secret as it is, or a private key in PEM, whichever the algorithm takes.
    ///
    /// # Errors
    /// It is no such key.
    pub fn new(algorithm: Algorithm, text: &str) -> Result<SigningKey, CannotSign> {
        let signer = match hmac_of(algorithm, text.as_bytes()) {
            Some(key) => Some(Signer::Hmac(key)),
            None => PrivateKeyDer::from_pem_slice(text.as_bytes())
                .ok()
                .and_then(|der| Signer::private(algorithm, &der)),
        };
        let signer = signer.ok_or(CannotSign::BadKey(algorithm))?;
        Ok(SigningKey { algorithm, signer })
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
        let random: &dyn rand::SecureRandom = &SystemRandom::new();
        match &self.signer {
            Signer::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signer::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(*encoding, random, message, &mut signature);
                signed.map(|()| signature).map_err(|_| CannotSign::Failed)
            }
            Signer::Ecdsa(pair) => {
                let signature = pair.sign(random, message).map_err(|_| CannotSign::Failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Signer::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl Signer {
    fn private(algorithm: Algorithm, der: &PrivateKeyDer<'_>) -> Option<Signer> {
        let encoding: &'static dyn RsaEncoding = match algorithm {
            Algorithm::Rs256 => &signature::RSA_PKCS1_SHA256,
            Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
            Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
            Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
            Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
            Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
            Algorithm::Es256 => return Self::ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der),
            Algorithm::Es384 => return Self::ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, der),
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).ok()?;
                return Some(Signer::Ed25519(Box::new(pair)));
            }
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => return None,
        };
        let pair = match der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            der => RsaKeyPair::from_pkcs8(der.secret_der()),
        };
        Some(Signer::Rsa(Box::new(pair.ok()?), encoding))
    }

    fn ecdsa(algorithm: &'static signature::EcdsaSigningAlgorithm, der: &PrivateKeyDer<'_>) -> Option<Signer> {
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_der(), &SystemRandom::new()).ok()?;
        Some(Signer::Ecdsa(Box::new(pair)))
    }
}
