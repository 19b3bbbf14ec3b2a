//! Public keys from PEM: `SubjectPublicKeyInfo` (RFC 5280, RFC 8410) and the older `RSAPublicKey` (RFC 8017).
//!
//! Reads just enough of DER to find the key; whether it is a good one is ring's to say.

use rustls::pki_types::pem::{PemObject, SectionKind};

use super::Family;

/// Object identifiers of `AlgorithmIdentifier`s, whole elements.
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// What a PEM text holds.
pub(super) enum Pem {
    /// A public key, as ring takes it; an RSA key is modulus and exponent.
    Public(Family, PublicKey),
    /// A private key.
    Private,
    /// Something else, or something broken.
    Unknown,
}

/// A public key in the form in which its family writes it.
pub(super) enum PublicKey {
    /// Big-endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point, or the 32 bytes of Ed25519.
    Point(Vec<u8>),
}

/// One section of a PEM text, whatever it is.
struct Section(SectionKind, Vec<u8>);

impl PemObject for Section {
    fn from_pem(kind: SectionKind, der: Vec<u8>) -> Option<Self> {
        Some(Section(kind, der))
    }
}

/// Reads the first key of a PEM text; parameters of curves and the like may stand before it.
pub(super) fn read_pem(text: &str) -> Pem {
    for section in Section::pem_slice_iter(text.as_bytes()) {
        let Ok(Section(kind, der)) = section else {
            return Pem::Unknown;
        };
        let public = match kind {
            SectionKind::PublicKey => subject_public_key(&der),
            SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => return Pem::Private,
            _ => continue,
        };
        return public.map_or(Pem::Unknown, |(family, key)| Pem::Public(family, key));
    }
    // `rustls-pki-types` has no name for the section of PKCS#1 public keys.
    pkcs1_pem(text)
        .and_then(|der| rsa_public_key(&der))
        .map_or(Pem::Unknown, |key| Pem::Public(Family::Rsa, key))
}

fn pkcs1_pem(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once("-----BEGIN RSA PUBLIC KEY-----")?;
    let (base64, _) = rest.split_once("-----END RSA PUBLIC KEY-----")?;
    let base64: String = base64.split_ascii_whitespace().collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).ok()
}

fn subject_public_key(der: &[u8]) -> Option<(Family, PublicKey)> {
    let whole = all(SEQUENCE, der)?;
    let (algorithm, rest) = element(SEQUENCE, whole)?;
    // The first byte counts unused bits, of which a key has none.
    let (0, key) = all(BIT_STRING, rest)?
        .split_first()
        .map(|(unused, key)| (*unused, key))?
    else {
        return None;
    };
    let point = || PublicKey::Point(key.to_vec());
    if algorithm.starts_with(RSA) {
        return Some((Family::Rsa, rsa_public_key(key)?));
    }
    match algorithm.strip_prefix(EC) {
        Some(P256) => Some((Family::P256, point())),
        Some(P384) => Some((Family::P384, point())),
        None if algorithm == ED25519 => Some((Family::Ed25519, point())),
        _ => None,
    }
}

fn rsa_public_key(der: &[u8]) -> Option<PublicKey> {
    let whole = all(SEQUENCE, der)?;
    let (n, rest) = element(INTEGER, whole)?;
    let e = all(INTEGER, rest)?;
    Some(PublicKey::Rsa {
        n: without_leading_zeros(n).to_vec(),
        e: without_leading_zeros(e).to_vec(),
    })
}

/// As ring wants unsigned numbers.
pub(super) fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// The content of the one element that `der` is.
fn all(tag: u8, der: &[u8]) -> Option<&[u8]> {
    let (content, rest) = element(tag, der)?;
    rest.is_empty().then_some(content)
}

/// The content of the first element, and what comes behind it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = der else {
        return None;
    };
    let (len, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (
            usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])),
            &rest[2..],
        ),
        _ => return None,
    };
    (*found == tag).then_some(())?;
    rest.split_at_checked(len)
}
