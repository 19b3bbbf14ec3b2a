//! One key, and what it can verify.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519};
use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{AlgorithmFamily, DecodingKey, DecodingKeyKind};
use serde::Deserialize;

use super::set::TRIES_MAX;
use super::{Algorithm, Family, PROVIDER};

/// Sizes of RSA moduli that are verified, bits; less is not safe any more.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// How public keys begin in PEM: `SubjectPublicKeyInfo` (RFC 5280, RFC 8410) and the older
/// `RSAPublicKey` (RFC 8017).
const PUBLIC: [&str; 2] = ["PUBLIC KEY", "RSA PUBLIC KEY"];

/// A secret or a public key. Immutable. `Debug` does not show what it is made of.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    key: DecodingKey,
    family: Family,
    /// Its name, where keys have names.
    kid: Option<String>,
    /// The one algorithm that it is for, if it names one.
    only: Option<Algorithm>,
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
    /// A private key must not be on a gateway.
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
    /// One of several keys, counted from 1, that no algorithm takes.
    #[error("its key number {0} is for none of these algorithms: take it out, or add its algorithm")]
    Idle(usize),
    /// More keys than a token is tried with.
    #[error(
        "it has {0} keys for one algorithm, and a token is tried with {TRIES_MAX}: take out those that sign no more"
    )]
    TooMany(usize),
}

/// Why a key of a JWKS cannot be used. Most sets hold some such keys, for other purposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Not the members of RFC 7517.
    #[error("it is no JWK")]
    NoJwk,
    /// `use` or `key_ops` exclude it.
    #[error("it is not for signatures (use, key_ops)")]
    Purpose,
    /// `oct`: a set that everybody may read holds none.
    #[error("it is a secret (kty oct)")]
    Secret,
    /// Another `kty` or `crv`.
    #[error("it is of another kind than RSA, P-256, P-384 and Ed25519 (kty, crv)")]
    Kind,
    /// Another `alg`.
    #[error("its alg is none that we know")]
    Algorithm,
    /// A member is missing, or not base64url.
    #[error("n and e, x and y, or x are not there or no base64url")]
    Member,
    /// RSA outside 2048 to 8192 bits.
    #[error("it is an RSA key of {0} bits, 2048 to 8192 are allowed")]
    RsaBits(usize),
    /// No point of its curve, or no RSA key.
    #[error("its numbers make no key of its kind")]
    NoKey,
}

/// A secret that guessing may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is a secret of {bytes} bytes, and {algorithm} wants {wanted} or more (RFC 7518, section 3.2), or whoever has one token may guess it and make others: \
     take a longer one (openssl rand -hex {wanted}), here and where tokens are made"
)]
pub struct ShortSecret {
    bytes: usize,
    algorithm: Algorithm,
    wanted: usize,
}

/// The members of a JWK (RFC 7517) that matter here. Other members, `x5u` and the like among them,
/// are never followed.
///
/// The library's type would not do: it has no name for `alg` of RFC 9864 and cannot tell it from
/// unusable ones.
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

impl VerifyingKey {
    /// The configured keys for these algorithms: a secret as it is, or all public keys of a PEM
    /// text. Several keys in one text allow a rotation.
    ///
    /// # Errors
    /// An algorithm has no key, or a key no algorithm.
    pub fn configured(text: &str, algorithms: &[Algorithm]) -> Result<Vec<VerifyingKey>, BadKey> {
        let is_pem = text.contains("-----BEGIN ");
        let symmetric = algorithms.iter().any(|algorithm| algorithm.is_symmetric());
        let keys = match (symmetric, is_pem) {
            (true, true) => return Err(BadKey::PemAsSecret),
            (true, false) => vec![VerifyingKey::secret(text.as_bytes())],
            (false, false) => return Err(BadKey::NoPem),
            (false, true) => VerifyingKey::all_from_pem(text)?,
        };
        let fits = |key: &VerifyingKey| algorithms.iter().any(|algorithm| key.fits(*algorithm));
        if let Some(algorithm) = algorithms
            .iter()
            .find(|algorithm| !keys.iter().any(|key| key.fits(**algorithm)))
        {
            return Err(BadKey::Unfit(*algorithm));
        }
        if let Some(idle) = keys.iter().position(|key| !fits(key)) {
            return Err(BadKey::Idle(idle + 1));
        }
        let most = algorithms
            .iter()
            .map(|algorithm| keys.iter().filter(|key| key.fits(*algorithm)).count());
        match most.max() {
            Some(most) if most > TRIES_MAX => Err(BadKey::TooMany(most)),
            _ => Ok(keys),
        }
    }

    /// A shared secret.
    pub(super) fn secret(secret: &[u8]) -> VerifyingKey {
        VerifyingKey {
            key: DecodingKey::from_secret(secret),
            family: Family::Hmac,
            kid: None,
            only: None,
        }
    }

    fn all_from_pem(text: &str) -> Result<Vec<VerifyingKey>, BadKey> {
        // The library takes a private key for the public one that is in it.
        if text.contains(" PRIVATE KEY-----") {
            return Err(BadKey::Private);
        }
        let sections = public_sections(text);
        if sections.is_empty() {
            return Err(BadKey::Unknown);
        }
        sections
            .iter()
            .map(|section| VerifyingKey::from_pem(section.as_bytes()))
            .collect()
    }

    /// The key of one section.
    fn from_pem(pem: &[u8]) -> Result<VerifyingKey, BadKey> {
        let key = DecodingKey::from_rsa_pem(pem)
            .and_then(|key| {
                let components = PROVIDER.key_utils.rsa_pub_components_from_public_key;
                let (n, e) = components(key.try_get_as_bytes()?)?;
                Ok(DecodingKey::from_rsa_raw_components(&n, &e))
            })
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem));
        VerifyingKey::public(key.map_err(|_| BadKey::Unknown)?)
    }

    /// A public key of a JWKS.
    ///
    /// # Errors
    /// We cannot use it; with its name, if it has one.
    pub(super) fn from_jwk(json: &str) -> Result<VerifyingKey, (Option<String>, LeftOut)> {
        let jwk: Jwk = serde_json::from_str(json).map_err(|_| (None, LeftOut::NoJwk))?;
        let kid = jwk.kid.clone();
        match VerifyingKey::of_members(jwk) {
            Ok(key) => Ok(key),
            Err(why) => Err((kid, why)),
        }
    }

    fn of_members(jwk: Jwk) -> Result<VerifyingKey, LeftOut> {
        let verifies = jwk.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if jwk.usage.is_some_and(|usage| usage != "sig") || !verifies {
            return Err(LeftOut::Purpose);
        }
        let text = |member: Option<String>| member.ok_or(LeftOut::Member);
        let point = |x: Option<String>, y: Option<String>| {
            let (x, y) = (text(x)?, text(y)?);
            DecodingKey::from_ec_components(unpadded(&x), unpadded(&y)).map_err(|_| LeftOut::Member)
        };
        let (family, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (number(&text(jwk.n)?)?, number(&text(jwk.e)?)?);
                (Family::Rsa, DecodingKey::from_rsa_raw_components(&n, &e))
            }
            ("EC", Some("P-256")) => (Family::P256, point(jwk.x, jwk.y)?),
            ("EC", Some("P-384")) => (Family::P384, point(jwk.x, jwk.y)?),
            ("OKP", Some("Ed25519")) => {
                let key = DecodingKey::from_ed_components(unpadded(&text(jwk.x)?));
                (Family::Ed25519, key.map_err(|_| LeftOut::Member)?)
            }
            ("oct", _) => return Err(LeftOut::Secret),
            _ => return Err(LeftOut::Kind),
        };
        let only = match jwk.alg.as_deref() {
            // RFC 9864 gives EdDSA with this curve a name of its own.
            Some("Ed25519") => Some(Algorithm::EdDsa),
            Some(name) => Some(Algorithm::by_name(name).ok_or(LeftOut::Algorithm)?),
            None => None,
        };
        let key = VerifyingKey::public(key).map_err(|bad| match bad {
            BadKey::RsaBits(bits) => LeftOut::RsaBits(bits),
            _ => LeftOut::NoKey,
        })?;
        if key.family != family {
            return Err(LeftOut::NoKey);
        }
        Ok(VerifyingKey {
            kid: jwk.kid,
            only,
            ..key
        })
    }

    fn public(key: DecodingKey) -> Result<VerifyingKey, BadKey> {
        if let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() {
            let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
            if !RSA_BITS.contains(&bits) {
                return Err(BadKey::RsaBits(bits));
            }
            if !is_rsa_key(n, e) {
                return Err(BadKey::Unknown);
            }
        }
        let family = family_of(&key).ok_or(BadKey::Unknown)?;
        Ok(VerifyingKey {
            key,
            family,
            kid: None,
            only: None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// True if it may verify by this algorithm.
    #[must_use]
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.family == algorithm.family() && self.only.is_none_or(|only| only == algorithm)
    }

    /// That it is a secret shorter than what one of these algorithms makes of it, if so.
    #[must_use]
    pub fn short_secret(&self, algorithms: &[Algorithm]) -> Option<ShortSecret> {
        let bytes = self.material().0.len();
        let short = algorithms.iter().filter_map(|algorithm| {
            let wanted = algorithm.secret_bytes_min().filter(|wanted| bytes < *wanted)?;
            let algorithm = *algorithm;
            Some(ShortSecret {
                bytes,
                algorithm,
                wanted,
            })
        });
        short.max_by_key(|short| short.wanted)
    }

    /// True if `signature` is this key's, by `algorithm`, of `message`.
    #[must_use]
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        // The library only compares its families, in which both curves are one.
        self.fits(algorithm)
            && (PROVIDER.verifier_factory)(&algorithm.of_library(), &self.key)
                .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }

    /// The material of a key: a secret, a point, or modulus and exponent.
    pub(super) fn material(&self) -> (&[u8], &[u8]) {
        match self.key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => (bytes, &[]),
            DecodingKeyKind::RsaModulusExponent { n, e } => (n, e),
        }
    }
}

/// The public keys of a PEM text, each as a text of its own. Text around them does not matter.
/// Tools may have changed line breaks to spaces, to a written `\n`, or to nothing.
fn public_sections(text: &str) -> Vec<String> {
    let text = text.replace("\\r", "").replace("\\n", "\n");
    let mut sections = Vec::new();
    let mut rest = text.as_str();
    while let Some((label, body)) = rest
        .split_once("-----BEGIN ")
        .and_then(|(_, rest)| rest.split_once("-----"))
    {
        rest = body;
        let foot = format!("-----END {label}-----");
        let Some((body, behind)) = body.split_once(&foot) else {
            continue;
        };
        rest = behind;
        if PUBLIC.contains(&label) {
            let body: String = body.split_whitespace().collect();
            sections.push(format!("-----BEGIN {label}-----\n{body}\n{foot}\n"));
        }
    }
    sections
}

/// The library's keys cannot be compared.
impl PartialEq for VerifyingKey {
    fn eq(&self, other: &VerifyingKey) -> bool {
        let same_name = self.kid == other.kid && self.only == other.only;
        same_name && self.family == other.family && self.material() == other.material()
    }
}

impl Eq for VerifyingKey {}

/// Which kind of public key this is. The library goes by the label of PEM or JWK. It would only
/// find at the first token that a key is no point of the curve.
fn family_of(key: &DecodingKey) -> Option<Family> {
    let is = |algorithm: &'static dyn VerificationAlgorithm| {
        key.try_get_as_bytes()
            .is_ok_and(|bytes| ParsedPublicKey::new(algorithm, bytes).is_ok())
    };
    match key.family() {
        AlgorithmFamily::Rsa => Some(Family::Rsa),
        AlgorithmFamily::Ec if is(&ECDSA_P256_SHA256_FIXED) => Some(Family::P256),
        AlgorithmFamily::Ec if is(&ECDSA_P384_SHA384_FIXED) => Some(Family::P384),
        AlgorithmFamily::Ed if is(&ED25519) => Some(Family::Ed25519),
        _ => None,
    }
}

/// True if they are odd, and AWS-LC takes the exponent: from 3 to 33 bits. A verifier with any
/// other exponent would keep all clients out.
fn is_rsa_key(n: &[u8], e: &[u8]) -> bool {
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let exponent = e.iter().try_fold(0u64, |number, byte| {
        number.checked_mul(256).map(|number| number + u64::from(*byte))
    });
    is_odd(n) && is_odd(e) && exponent.is_some_and(|exponent| (3..1 << 33).contains(&exponent))
}

/// A number of a JWK, without the leading zeros that some write (RFC 7518, 6.3.1.1, forbids them)
/// and the library refuses.
fn number(base64url: &str) -> Result<Vec<u8>, LeftOut> {
    let bytes = URL_SAFE_NO_PAD
        .decode(unpadded(base64url))
        .map_err(|_| LeftOut::Member)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}

/// Without the padding that some write and RFC 7515, section 2, forbids: there is one way to read
/// it.
fn unpadded(base64url: &str) -> &str {
    base64url.trim_end_matches('=')
}
