//! The examples of the RFCs, tokens that OpenSSL signed, and the classic attacks.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;

const RSA: &str = include_str!("../../tests/keys/rsa.pub.pem");
const RSA_PKCS1: &str = include_str!("../../tests/keys/rsa.pkcs1.pub.pem");
const P256: &str = include_str!("../../tests/keys/p256.pub.pem");
const P384: &str = include_str!("../../tests/keys/p384.pub.pem");
const ED25519: &str = include_str!("../../tests/keys/ed25519.pub.pem");
const SECRET: &str = include_str!("../../tests/keys/secret.txt");
/// Lines of `ALG token`, made by tests/keys/make.
const OF_OPENSSL: &str = include_str!("../../tests/keys/tokens.txt");

fn public(algorithm: Algorithm) -> &'static str {
    match algorithm.family() {
        Family::Hmac => SECRET,
        Family::Rsa => RSA,
        Family::P256 => P256,
        Family::P384 => P384,
        Family::Ed25519 => ED25519,
    }
}

fn private(algorithm: Algorithm) -> &'static str {
    match algorithm.family() {
        Family::Hmac => SECRET,
        Family::Rsa => include_str!("../../tests/keys/rsa.pem"),
        Family::P256 => include_str!("../../tests/keys/p256.pem"),
        Family::P384 => include_str!("../../tests/keys/p384.pem"),
        Family::Ed25519 => include_str!("../../tests/keys/ed25519.pem"),
    }
}

fn key(algorithm: Algorithm) -> VerifyingKey {
    VerifyingKey::configured(public(algorithm), &[algorithm])
        .unwrap()
        .remove(0)
}

fn of_openssl() -> impl Iterator<Item = (Algorithm, &'static str)> {
    OF_OPENSSL.lines().map(|line| {
        let (name, token) = line.split_once(' ').unwrap();
        (Algorithm::by_name(name).unwrap(), token)
    })
}

/// The payload of a token that this key signed by the algorithm that it claims.
fn payload(token: &str, key: &VerifyingKey) -> Option<String> {
    let signed = Signed::parse(token).ok()?;
    let payload = signed.payload(key, signed.algorithm?)?;
    Some(String::from_utf8(payload).unwrap())
}

fn jwks(keys: &str) -> KeySet {
    KeySet::from_jwks(format!("{{\"keys\":[{keys}]}}").as_bytes(), &Algorithm::ALL).unwrap()
}

fn with_header(header: &str) -> String {
    format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(header))
}

/// RFC 7515, appendix A.2 and A.3, and RFC 8037, appendix A.4.
#[test]
fn the_examples_of_the_rfcs() {
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rs256 = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
    let rs256_signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let es256 = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let es256_signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let eddsa = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let eddsa_signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    for (jwk, algorithm, header, body, signature) in [
        (rs256, Algorithm::Rs256, "eyJhbGciOiJSUzI1NiJ9", claims, rs256_signature),
        (es256, Algorithm::Es256, "eyJhbGciOiJFUzI1NiJ9", claims, es256_signature),
        (
            eddsa,
            Algorithm::EdDsa,
            "eyJhbGciOiJFZERTQSJ9",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            eddsa_signature,
        ),
    ] {
        let set = jwks(jwk);
        let key = set.choose(algorithm, None).keys[0];
        let token = format!("{header}.{body}.{signature}");
        let expected = URL_SAFE_NO_PAD.decode(body).unwrap();
        assert_eq!(payload(&token, key).unwrap().as_bytes(), expected, "{algorithm}");
    }
}

/// RFC 7515, appendix A.1; its secret is no text, and so cannot be configured.
#[test]
fn the_hmac_of_the_rfc() {
    let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let secret = URL_SAFE_NO_PAD.decode(secret).unwrap();
    let message = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = URL_SAFE_NO_PAD
        .decode("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        .unwrap();
    let verifies =
        |secret: &[u8]| VerifyingKey::secret(secret).verifies(Algorithm::Hs256, message.as_bytes(), &signature);
    assert!(verifies(&secret) && !verifies(&secret[1..]));
}

/// RFC 7520, sections 4.1, 4.2 and 4.4: RSASSA-PKCS1-v1_5, PSS, and HMAC.
#[test]
fn the_examples_of_the_cookbook() {
    let rsa = jwks(
        r#"{"kty":"RSA","kid":"bilbo.baggins@hobbiton.example","use":"sig","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw","e":"AQAB"}"#,
    );
    let secret = URL_SAFE_NO_PAD
        .decode("hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg")
        .unwrap();
    let secret = KeySet::of(vec![VerifyingKey::secret(&secret)]);
    let body = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4";
    let of_bilbo = |alg| format!(r#"{{"alg":"{alg}","kid":"bilbo.baggins@hobbiton.example"}}"#);
    let rs256 = "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg";
    let ps384 = "cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw";
    let hs256 = "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0";
    let of_secret = r#"{"alg":"HS256","kid":"018c0ae5-4d9b-471b-bfd6-eef314bc7037"}"#.to_owned();
    for (set, header, signature) in [
        (&rsa, of_bilbo("RS256"), rs256),
        (&rsa, of_bilbo("PS384"), ps384),
        (&secret, of_secret, hs256),
    ] {
        let token = format!("{}.{body}.{signature}", URL_SAFE_NO_PAD.encode(header));
        let signed = Signed::parse(&token).unwrap();
        let key = set.choose(signed.algorithm.unwrap(), signed.kid.as_deref()).keys[0];
        assert_eq!(
            payload(&token, key).unwrap().as_bytes(),
            URL_SAFE_NO_PAD.decode(body).unwrap()
        );
    }
}

#[test]
fn what_openssl_signed_and_what_we_sign_verifies_by_the_same_key_and_algorithm_only() {
    assert_eq!(of_openssl().count(), Algorithm::ALL.len());
    for (algorithm, theirs) in of_openssl() {
        let ours = SigningKey::new(algorithm, private(algorithm)).unwrap();
        let ours = ours.sign(r#"{"sub":"alice"}"#, Some("k")).unwrap();
        for token in [theirs, &ours] {
            assert_eq!(
                payload(token, &key(algorithm)).as_deref(),
                Some(r#"{"sub":"alice"}"#),
                "{algorithm}"
            );
            let signed = Signed::parse(token).unwrap();
            for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
                assert_eq!(signed.payload(&key(algorithm), other), None, "{algorithm} by {other}");
                assert_eq!(signed.payload(&key(other), other), None, "{algorithm} by {other}");
                assert_eq!(
                    signed.payload(&key(other), algorithm).is_some(),
                    key(other).fits(algorithm)
                );
            }
        }
    }
}

#[test]
fn keys_are_read_and_others_told_what_they_are() {
    use Algorithm::{EdDsa, Es256, Hs256, Ps512, Rs256};
    let configured = |text: &str, algorithms: &[Algorithm]| VerifyingKey::configured(text, algorithms).map(|_| ());
    assert_eq!(configured(RSA, &[Rs256, Ps512]), Ok(()));
    assert_eq!(
        configured(&format!("\n{}", RSA_PKCS1.replace('\n', "\r\n")), &[Rs256]),
        Ok(())
    );
    let pkcs1 = VerifyingKey::configured(RSA_PKCS1, &[Rs256]).unwrap().remove(0);
    assert!(of_openssl().any(|(_, token)| payload(token, &pkcs1).is_some()));
    for pem in [RSA, P256, ED25519, RSA_PKCS1, "-----BEGIN nonsense"] {
        assert_eq!(configured(pem, &[Hs256]), Err(BadKey::PemAsSecret));
    }
    assert_eq!(configured("secret", &[Es256]), Err(BadKey::NoPem));
    assert_eq!(configured(P384, &[Es256]), Err(BadKey::Unfit(Es256)));
    assert_eq!(configured(P256, &[Es256, EdDsa]), Err(BadKey::Unfit(EdDsa)));
    assert_eq!(configured("secret", &[Hs256, Rs256]), Err(BadKey::Unfit(Rs256)));
    assert_eq!(configured(private(Rs256), &[Rs256]), Err(BadKey::Private));
    assert_eq!(configured(private(Es256), &[Es256]), Err(BadKey::Private));
    assert_eq!(
        configured(&format!("{P256}{}", private(Es256)), &[Es256]),
        Err(BadKey::Private)
    );
    let with_parameters =
        format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{P256}");
    assert_eq!(configured(&with_parameters, &[Es256]), Ok(()));
    let certificate = include_str!("../../tests/keys/p256.cert.pem");
    assert_eq!(configured(certificate, &[Es256]), Err(BadKey::Unknown));
    let debug = format!("{:?} {:?}", key(Hs256), SigningKey::new(Hs256, SECRET).unwrap());
    assert!(!debug.contains("secret of"), "{debug}");
}

/// The next key stands beside the present one, and tools may have changed each line break.
#[test]
fn all_public_keys_of_a_text_count() {
    use Algorithm::{EdDsa, Es256, Es384, Rs256};
    let count =
        |text: &str, algorithms: &[Algorithm]| VerifyingKey::configured(text, algorithms).map(|keys| keys.len());
    let two = format!("the old one\n{P256}\nand the new one\n{P256}");
    assert_eq!(count(&two, &[Es256]), Ok(2));
    assert_eq!(count(&format!("{RSA}{P384}"), &[Es384, Rs256]), Ok(2));
    assert_eq!(count(&format!("{P256}{RSA}"), &[Es256]), Err(BadKey::Idle(2)));
    assert_eq!(
        count(&format!("{P256}{RSA}"), &[Es256, EdDsa]),
        Err(BadKey::Unfit(EdDsa))
    );
    assert_eq!(count(&P256.repeat(5), &[Es256]), Err(BadKey::TooMany(5)));
    let as_it_is = VerifyingKey::configured(P256, &[Es256]).unwrap();
    for (pattern, by) in [
        ("\n", "\\n"),
        ("\n", "\\r\\n"),
        ("\n", " "),
        ("\n", "\r\n"),
        ("\n", "\n  "),
        ("-----BEGIN", "\u{feff}key: -----BEGIN"),
    ] {
        let bent = P256.replace(pattern, by);
        assert_eq!(
            VerifyingKey::configured(&bent, &[Es256]).as_ref(),
            Ok(&as_it_is),
            "{by:?}"
        );
        assert_eq!(count(&format!("\"{bent}\""), &[Es256]), Ok(1), "{by:?}");
    }
}

/// A secret as long as the hash gives no warning, and neither does a public key.
#[test]
fn short_secrets_are_noticed() {
    use Algorithm::{Es256, Hs256, Hs384, Hs512};
    for (algorithms, wanted) in [(&[Hs256][..], 32), (&[Hs256, Hs384], 48), (&[Hs512, Hs256], 64)] {
        let said = |bytes: usize| {
            let secret = "s".repeat(bytes);
            let short = VerifyingKey::configured(&secret, algorithms).unwrap()[0].short_secret(algorithms);
            short.map(|short| short.to_string())
        };
        assert_eq!((said(wanted), said(wanted + 1)), (None, None));
        let text = said(wanted - 1).unwrap();
        assert!(
            text.contains(&format!("{} bytes", wanted - 1)) && text.contains(&format!("wants {wanted} or")),
            "{text}"
        );
        assert!(!text.contains("ssss"), "{text}");
    }
    assert_eq!(key(Es256).short_secret(&[Es256]), None);
}

/// The library tells curves by the length of their points, and checks a point when it verifies with
/// it.
#[test]
fn a_point_beside_its_curve_is_no_key() {
    let honest = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    let beside = format!(
        "{{\"keys\":[{}]}}",
        ec("a", "").replace(honest, &honest.replace("f83O", "f83P"))
    );
    let refused = KeySet::from_jwks(beside.as_bytes(), &Algorithm::ALL).unwrap_err();
    assert_eq!(
        refused,
        BadKeySet::NoneFits(" (a: its numbers make no key of its kind)".into())
    );
    // The generator of secp256k1, whose points are as long as those of P-256.
    let secp256k1 = &b"\x06\x05\x2b\x81\x04\x00\x0a"[..];
    let generator = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798\
                     483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8";
    let point: Vec<u8> = (0..64)
        .map(|n| u8::from_str_radix(&generator[2 * n..2 * n + 2], 16).unwrap())
        .collect();
    let identifiers = [&b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01"[..], secp256k1].concat();
    let sequence = |content: Vec<u8>| [&[0x30, content.len() as u8], &content[..]].concat();
    let der = sequence([sequence(identifiers), b"\x03\x42\x00\x04".to_vec(), point].concat());
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    assert_eq!(
        VerifyingKey::configured(&pem, &[Algorithm::Es256]).unwrap_err(),
        BadKey::Unknown
    );
}

/// RFC 7518 forbids them, and some issuers write them.
#[test]
fn leading_zeros_of_a_modulus_change_nothing() {
    let jwk = |n: &[u8]| {
        let n = URL_SAFE_NO_PAD.encode(n);
        jwks(&format!(r#"{{"kty":"RSA","n":"{n}","e":"AAEAAQ"}}"#))
    };
    let pem = key(Algorithm::Rs256);
    let (n, _) = pem.material();
    let set = jwk(&[&[0], n].concat());
    assert_eq!(set, jwk(n));
    assert_eq!(set, KeySet::of(vec![pem.clone()]));
    let token = of_openssl()
        .find(|(algorithm, _)| *algorithm == Algorithm::Rs256)
        .unwrap()
        .1;
    assert!(payload(token, set.choose(Algorithm::Rs256, None).keys[0]).is_some());
}

/// DER that is cut or bent anywhere is no key, and no panic.
#[test]
fn broken_pem_is_no_key() {
    for pem in [RSA, RSA_PKCS1, P256, P384, ED25519] {
        let (head, rest) = pem.split_once("-----\n").unwrap();
        let (body, foot) = rest.split_once("-----END").unwrap();
        let der = base64::engine::general_purpose::STANDARD
            .decode(body.replace('\n', ""))
            .unwrap();
        for cut in 0..der.len() {
            let body = base64::engine::general_purpose::STANDARD.encode(&der[..cut]);
            let text = format!("{head}-----\n{body}\n-----END{foot}");
            for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa] {
                assert!(VerifyingKey::configured(&text, &[algorithm]).is_err(), "cut at {cut}");
            }
        }
    }
}

#[test]
fn small_rsa_keys_are_refused() {
    let n = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let json = format!(r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"AQAB"}}]}}"#);
    let refused = KeySet::from_jwks(json.as_bytes(), &Algorithm::ALL).unwrap_err();
    assert!(refused.to_string().contains("RSA key of 1024 bits"), "{refused}");
}

#[test]
fn tokens_that_are_none() {
    let long = format!("e30.{}.AAAA", "A".repeat(TOKEN_BYTES_MAX));
    let members: String = (0..200).map(|n| format!(r#""x{n}":1,"#)).collect();
    for token in [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "e30.e30",
        "e30..",
        " e30.e30.AAAA",
        "e30=.e30.AAAA",
        "e30.e30.AA+/",
        &long,
        &with_header("[]"),
        &with_header("null"),
        &with_header(r#"{"alg":"HS256""#),
        &with_header(r#"{"typ":"JWT"}"#),
        &with_header(r#"{"alg":null}"#),
        &with_header(r#"{"alg":["HS256"]}"#),
        &with_header(r#"{"alg":"HS256","alg":"none"}"#),
        &with_header(r#"{"alg":"HS256","\u0061lg":"none"}"#),
        &with_header(r#"{"alg":"HS256","kid":1}"#),
        &with_header(r#"{"alg":"HS256","crit":[]}"#),
        &with_header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#),
        &with_header(r#"{"alg":"HS256","typ":"JWE"}"#),
        &with_header(r#"{"alg":"HS256","typ":"dpop+jwt"}"#),
        &with_header(r#"{"alg":"HS256","typ":"logout+jwt"}"#),
        &with_header(r#"{"alg":"HS256","typ":""}"#),
        &with_header(&format!(r#"{{{members}"alg":"HS256"}}"#)),
    ] {
        assert!(Signed::parse(token).is_err(), "{token}");
    }
    // Read over without recursion: deep nesting is no more than long.
    let nested = with_header(&format!(
        r#"{{"alg":"HS256","x":{}1{}}}"#,
        "[".repeat(3000),
        "]".repeat(3000)
    ));
    assert!(Signed::parse(&nested).is_ok());
    for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        let token = with_header(&format!(r#"{{"alg":"HS256","typ":"{typ}"}}"#));
        assert!(Signed::parse(&token).is_ok(), "{typ}");
    }
    for alg in ["none", "None", "NONE", "", "hs256", "HS256 ", "ES512", "HS1", "Ed25519"] {
        let token = with_header(&format!(r#"{{"alg":"{alg}"}}"#));
        assert_eq!(Signed::parse(&token).unwrap().algorithm, None, "{alg}");
    }
}

/// CVE-2015-9235: a server that takes the algorithm from the token takes its public key for a
/// secret.
#[test]
fn a_public_key_is_never_a_secret() {
    for algorithm in [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512] {
        for pem in [RSA, P256, P384, ED25519, RSA.trim_end()] {
            let forged = SigningKey::new(algorithm, pem).unwrap().sign("{}", None).unwrap();
            for family in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa] {
                assert_eq!(payload(&forged, &key(family)), None);
            }
        }
    }
}

#[test]
fn keys_in_the_header_are_not_looked_at() {
    let forger = SigningKey::new(Algorithm::Es256, private(Algorithm::Es256)).unwrap();
    let honest = forger.sign("{}", None).unwrap();
    let (_, rest) = honest.split_once('.').unwrap();
    let header =
        r#"{"alg":"ES256","jwk":{"kty":"EC"},"jku":"http://evil/","x5u":"http://evil/","x5c":["x"],"kid":"k"}"#;
    let token = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
    let signed = Signed::parse(&token).unwrap();
    assert_eq!(
        (signed.algorithm, signed.kid.as_deref()),
        (Some(Algorithm::Es256), Some("k"))
    );
    assert_eq!(
        payload(&token, &key(Algorithm::Es256)),
        None,
        "the header is signed, too"
    );
}

fn ec(kid: &str, more: &str) -> String {
    let kid = if kid.is_empty() {
        String::new()
    } else {
        format!(r#""kid":"{kid}","#)
    };
    format!(
        r#"{{"kty":"EC",{kid}{more}"crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}"#
    )
}

/// The names of the keys that are tried, and whether the token chose them.
fn tried(set: &KeySet, kid: Option<&str>) -> (Vec<Option<String>>, bool) {
    let candidates = set.choose(Algorithm::Es256, kid);
    let names = candidates.keys.iter().map(|key| key.kid().map(str::to_owned));
    (names.collect(), candidates.named)
}

#[test]
fn a_kid_only_chooses_among_the_keys_that_fit() {
    let name = |name: &str| Some(name.to_owned());
    let two = jwks(&[ec("a", ""), ec("b", "")].join(","));
    assert_eq!(tried(&two, Some("b")), (vec![name("b")], true));
    assert_eq!(tried(&two, None), (vec![name("a"), name("b")], false));
    for kid in ["c", "", "A", "../../dev/null", "' OR 1=1 --", "a\0", "http://evil/a"] {
        assert_eq!(tried(&two, Some(kid)), (vec![], false), "{kid}");
    }
    assert!(two.choose(Algorithm::Rs256, Some("a")).keys.is_empty());
    assert!(two.choose(Algorithm::Hs256, Some("a")).keys.is_empty());
    let one = jwks(&ec("a", ""));
    assert_eq!(tried(&one, None), (vec![name("a")], false));
    assert_eq!(tried(&one, Some("b")), (vec![], false));
    let unnamed = jwks(&ec("", ""));
    assert_eq!(tried(&unnamed, Some("b")), (vec![None], false));
    let configured = KeySet::of(vec![key(Algorithm::Es256)]);
    assert_eq!(tried(&configured, Some("anything")), (vec![None], false));
    // Two of one name, and a few of none; never all of a large set.
    let same = jwks(&[ec("a", ""), ec("b", ""), ec("a", r#""use":"sig","#)].join(","));
    assert_eq!(tried(&same, Some("a")), (vec![name("a"), name("a")], true));
    for kid in [Some("x"), None] {
        assert_eq!(tried(&jwks(&vec![ec("", ""); 9].join(",")), kid).0.len(), TRIES_MAX);
    }
    assert_eq!(
        tried(&jwks(&vec![ec("a", ""); 9].join(",")), Some("a")).0.len(),
        TRIES_MAX
    );
}

/// A byte order mark before the set, and padding behind its numbers: there is one way to read
/// either.
#[test]
fn what_tools_do_to_a_jwks() {
    let (pem, token) = (
        key(Algorithm::Rs256),
        of_openssl().find(|(a, _)| *a == Algorithm::Rs256).unwrap().1,
    );
    let (n, e) = pem.material();
    let padded = |number: &[u8]| base64::engine::general_purpose::URL_SAFE.encode(number);
    assert!(padded(n).ends_with('='));
    let rsa = format!(r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#, padded(n), padded(e));
    assert!(payload(token, jwks(&rsa).choose(Algorithm::Rs256, None).keys[0]).is_some());
    let padded = ec("a", "").replace("VEU", "VEU=").replace("5a0", "5a0=");
    assert_eq!(jwks(&padded), jwks(&ec("a", "")));
    let json = format!("\u{feff}{{\"keys\":[{padded}]}}");
    assert_eq!(KeySet::from_jwks(json.as_bytes(), &Algorithm::ALL), Ok(jwks(&padded)));
}

#[test]
fn what_is_left_out_of_a_jwks_is_said() {
    let long = "k".repeat(1000);
    for (left_out, said) in [
        (ec("x", r#""use":"enc","#), "x: it is not for signatures"),
        (ec("x", r#""alg":"ECDH-ES","#), "x: its alg is none"),
        (
            ec("x\\n", "").replace("P-256", "secp256k1"),
            "x\\n: it is of another kind",
        ),
        (ec("", "").replace("f83O", "f83"), "(no kid): n and e, x and y, or x"),
        (ec("x", "").replace("f83O", "f83P"), "x: its numbers make no key"),
        (r#"{"kty":"oct","kid":"x","k":"c2VjcmV0"}"#.into(), "x: it is a secret"),
        (r#"{"kty":"RSA","kid":"x","e":"AQAB"}"#.into(), "x: n and e"),
        ("7".into(), "(no kid): it is no JWK"),
        (format!(r#"{{"kty":"x","kid":"{long}"}}"#), "kkk: it is of another kind"),
    ] {
        let json = format!("{{\"keys\":[{left_out}]}}");
        let refused = KeySet::from_jwks(json.as_bytes(), &Algorithm::ALL)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains(said) && !refused.contains("c2Vj") && refused.len() < 300,
            "{refused}"
        );
        let set = jwks(&format!("{left_out},{}", ec("a", "")));
        let said_of_set = set.left_out().unwrap();
        assert!(said_of_set.contains(said) && set.names() == "a", "{said_of_set}");
    }
    assert_eq!(jwks(&ec("a", "")).left_out(), None);
    let other = KeySet::from_jwks(
        format!("{{\"keys\":[{}]}}", ec("a", "")).as_bytes(),
        &[Algorithm::Rs256],
    );
    let said = other.unwrap_err().to_string();
    assert!(said.ends_with("(a: it is for other algorithms)"), "{said}");
}

#[test]
fn what_a_jwks_may_hold_besides() {
    let ours = ec(
        "a",
        r#""use":"sig","key_ops":["verify"],"alg":"ES256","x5c":["x"],"ext":true,"#,
    );
    for other in [
        ec("x", r#""use":"enc","#),
        ec("x", r#""key_ops":["sign"],"#),
        ec("x", r#""alg":"ES384","#),
        ec("x", r#""alg":"ECDH-ES","#),
        ec("x", "").replace("P-256", "secp256k1"),
        ec("x", "").replace("f83O", ""),
        ec("x", "").replace("f83O", "f83="),
        r#"{"kty":"oct","kid":"x","alg":"HS256","k":"c2VjcmV0"}"#.into(),
        r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#.into(),
        "{}".into(),
        "7".into(),
    ] {
        let set = jwks(&format!("{other},{ours}"));
        assert_eq!(tried(&set, Some("a")), (vec![Some("a".into())], true), "{other}");
        assert_eq!(tried(&set, Some("x")).0, vec![], "{other}");
    }
    let refused = |json: &str| KeySet::from_jwks(json.as_bytes(), &[Algorithm::Es256]).unwrap_err();
    for garbage in [
        "",
        "x",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":null}"#,
        "<html></html>",
        "{\"keys\":[",
    ] {
        assert_eq!(refused(garbage), BadKeySet::NotJwks, "{garbage}");
    }
    assert_eq!(refused(r#"{"keys":[]}"#), BadKeySet::NoneFits(String::new()));
    let many = vec![ec("", ""); 65].join(",");
    assert_eq!(refused(&format!(r#"{{"keys":[{many}]}}"#)), BadKeySet::TooMany);
    let rsa_only = KeySet::from_jwks(format!(r#"{{"keys":[{ours}]}}"#).as_bytes(), &[Algorithm::Rs256]);
    assert!(matches!(rsa_only, Err(BadKeySet::NoneFits(_))));
}

#[test]
fn members_are_there_once_and_of_their_type() {
    let parse = |json: &'static str| Members::parse(json.as_bytes());
    assert!(parse(r#"{"a":1,"a":1}"#).is_err() && parse(r#"{"a":1,"\u0061":2}"#).is_err());
    assert!(parse("[]").is_err() && parse("{} {}").is_err() && parse("{\"a\"}").is_err());
    let members = parse(r#"{"n":null,"s":"x\u0041","o":{"a":1,"a":2}}"#).unwrap();
    assert_eq!(members.get::<u64>("n"), Err(BadObject));
    assert_eq!(members.get::<u64>("s"), Err(BadObject));
    assert_eq!(members.get::<String>("s"), Ok(Some("xA".into())));
    assert_eq!(members.get::<u64>("missing"), Ok(None));
    assert!(members.has("n") && members.has("o") && !members.has("missing"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_change_of_a_token_verifies(which in 0..12usize, position: prop::sample::Index, byte in "[ -~]", kind in 0..3u8) {
        let (algorithm, token) = of_openssl().nth(which).unwrap();
        let mut changed = token.to_owned();
        let at = position.index(token.len());
        match kind {
            0 => changed.replace_range(at..=at, &byte),
            1 => changed.insert_str(at, &byte),
            _ => changed.replace_range(at..=at, ""),
        }
        prop_assume!(changed != token);
        prop_assert_eq!(payload(&changed, &key(algorithm)), None);
    }

    #[test]
    fn no_text_panics(text in any::<String>(), kid in any::<Option<String>>()) {
        let _ = Signed::parse(&text);
        let _ = Signed::parse(&with_header(&text));
        let _ = KeySet::from_jwks(text.as_bytes(), &Algorithm::ALL);
        let _ = VerifyingKey::configured(&text, &[Algorithm::Rs256]);
        let _ = SigningKey::new(Algorithm::Rs256, &text);
        let _ = KeySet::of(vec![key(Algorithm::Es256)]).choose(Algorithm::Es256, kid.as_deref());
    }
}
