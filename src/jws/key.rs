//! One key, and what it can verify.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use ring::{error, hmac};
use serde::Deserialize;

use super::der::{self, Pem, PublicKey};
use super::{Algorithm, Family};

/// Sizes of RSA moduli that ring verifies, bits; less is not safe any more.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A secret or a public key. Immutable.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    material: Material,
    /// Its name, where keys have names.
    kid: Option<String>,
    /// The one algorithm that it is for, if it says so.
    only: Option<Algorithm>,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    Secret(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("family", &self.family())
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// A PEM text for an algorithm with a shared secret: everybody may know a public key.
    #[error("it is PEM, but HS256, HS384 and HS512 take a secret: use RS256, ES256 or EdDSA with a public key")]
    PemAsSecret,
    /// Something else than PEM for an algorithm with a public key.
    #[error(
        "it is no PEM, but the algorithm takes a public key: give the text between and with -----BEGIN PUBLIC KEY----- and -----END PUBLIC KEY-----, or @FILE"
    )]
    NoPem,
    /// A private key has no place on a gateway.
    #[error("it is a private key: give the gateway the public one (openssl pkey -in private.pem -pubout)")]
    Private,
    /// PEM with no public key of a known kind.
    #[error(
        "it holds no public key of RSA, P-256, P-384 or Ed25519 (for a certificate: openssl x509 -in cert.pem -pubkey -noout)"
    )]
    Unknown,
    /// RSA outside 2048 to 8192 bits.
    #[error("it is an RSA key of {0} bits: 2048 to 8192 are allowed")]
    RsaBits(usize),
    /// A key of another kind than one of the algorithms takes.
    #[error("it is no key for {0}")]
    Unfit(Algorithm),
}

/// The members of a JWK (RFC 7517) that matter here; others, `x5u` and the like among them, are never followed.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Key {
    /// The configured key for these algorithms: a secret as it is, or a public key in PEM.
    ///
    /// # Errors
    /// It does not fit every one of them.
    pub fn configured(text: &str, algorithms: &[Algorithm]) -> Result<Key, BadKey> {
        let is_pem = text.trim_start().starts_with("-----BEGIN");
        let symmetric = algorithms.iter().any(|algorithm| algorithm.is_symmetric());
        let material = match (symmetric, is_pem) {
            (true, true) => return Err(BadKey::PemAsSecret),
            (true, false) => Material::Secret(text.as_bytes().to_vec()),
            (false, false) => return Err(BadKey::NoPem),
            (false, true) => match der::read_pem(text) {
                Pem::Public(family, key) => Material::public(family, key)?,
                Pem::Private => return Err(BadKey::Private),
                Pem::Unknown => return Err(BadKey::Unknown),
            },
        };
        let key = Key {
            material,
            kid: None,
            only: None,
        };
        match algorithms.iter().find(|algorithm| !key.fits(**algorithm)) {
            Some(algorithm) => Err(BadKey::Unfit(*algorithm)),
            None => Ok(key),
        }
    }

    /// A public key of a JWKS; `None` for what we cannot use: other kinds, other purposes, secrets, broken ones.
    pub(super) fn from_jwk(json: &str) -> Option<Key> {
        let jwk: Jwk = serde_json::from_str(json).ok()?;
        let verifies = jwk.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if jwk.usage.is_some_and(|usage| usage != "sig") || !verifies {
            return None;
        }
        let bytes = |member: Option<String>| URL_SAFE_NO_PAD.decode(member?).ok();
        let point = |coordinate: usize, x: Vec<u8>, y: Vec<u8>| {
            let sizes = x.len() == coordinate && y.len() == coordinate;
            sizes.then(|| PublicKey::Point([&[4][..], &x, &y].concat()))
        };
        let (family, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(jwk.n)?, bytes(jwk.e)?);
                let (n, e) = (der::without_leading_zeros(&n), der::without_leading_zeros(&e));
                let (n, e) = (n.to_vec(), e.to_vec());
                (Family::Rsa, PublicKey::Rsa { n, e })
            }
            ("EC", Some("P-256")) => (Family::P256, point(32, bytes(jwk.x)?, bytes(jwk.y)?)?),
            ("EC", Some("P-384")) => (Family::P384, point(48, bytes(jwk.x)?, bytes(jwk.y)?)?),
            ("OKP", Some("Ed25519")) => (Family::Ed25519, PublicKey::Point(bytes(jwk.x)?)),
            _ => return None,
        };
        let only = match jwk.alg.as_deref() {
            // RFC 9864 gives EdDSA with this curve a name of its own.
            Some("Ed25519") => Some(Algorithm::EdDsa),
            Some(name) => Some(Algorithm::by_name(name)?),
            None => None,
        };
        Some(Key {
            material: Material::public(family, key).ok()?,
            kid: jwk.kid,
            only,
        })
    }

    /// Its name.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    fn family(&self) -> Family {
        match &self.material {
            Material::Secret(_) => Family::Hmac,
            Material::Rsa { .. } => Family::Rsa,
            Material::P256(_) => Family::P256,
            Material::P384(_) => Family::P384,
            Material::Ed25519(_) => Family::Ed25519,
        }
    }

    /// True if it may verify by this algorithm.
    #[must_use]
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.family() == algorithm.family() && self.only.is_none_or(|only| only == algorithm)
    }

    /// True if `signature` is this key's, by `algorithm`, of `message`.
    #[must_use]
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        let public = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let verified = match &self.material {
            Material::Secret(secret) => hmac_of(algorithm, secret)
                .ok_or(error::Unspecified)
                .and_then(|key| hmac::verify(&key, message, signature)),
            Material::Rsa { n, e } => rsa_of(algorithm)
                .ok_or(error::Unspecified)
                .and_then(|parameters| RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)),
            Material::P256(point) => public(&signature::ECDSA_P256_SHA256_FIXED, point),
            Material::P384(point) => public(&signature::ECDSA_P384_SHA384_FIXED, point),
            Material::Ed25519(point) => public(&signature::ED25519, point),
        };
        verified.is_ok()
    }
}

impl Material {
    fn public(family: Family, key: PublicKey) -> Result<Material, BadKey> {
        match (family, key) {
            (Family::Rsa, PublicKey::Rsa { n, e }) => {
                let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
                if !RSA_BITS.contains(&bits) {
                    return Err(BadKey::RsaBits(bits));
                }
                Ok(Material::Rsa { n, e })
            }
            (Family::P256, PublicKey::Point(point)) if point.len() == 65 => Ok(Material::P256(point)),
            (Family::P384, PublicKey::Point(point)) if point.len() == 97 => Ok(Material::P384(point)),
            (Family::Ed25519, PublicKey::Point(point)) if point.len() == 32 => Ok(Material::Ed25519(point)),
            _ => Err(BadKey::Unknown),
        }
    }
}

/// The secret as ring takes it; `None` for an algorithm that takes none.
pub(super) fn hmac_of(algorithm: Algorithm, secret: &[u8]) -> Option<hmac::Key> {
    let hash = match algorithm {
        Algorithm::Hs256 => hmac::HMAC_SHA256,
        Algorithm::Hs384 => hmac::HMAC_SHA384,
        Algorithm::Hs512 => hmac::HMAC_SHA512,
        _ => return None,
    };
    Some(hmac::Key::new(hash, secret))
}

fn rsa_of(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
