//! Certificates for tests: an authority, its certificates, and gateways and clients that use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::{Client, Gateway};

/// An authority, with a directory for everything that it signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub ca: PathBuf,
    pub dir: tempfile::TempDir,
}

/// A certificate and its key, PEM files.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        let dir = tempfile::Builder::new().prefix("shardgate-tls-").tempdir().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "shardgate test authority");
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority {
            issuer: Issuer::new(params, key),
            ca,
            dir,
        }
    }

    /// Signs a certificate for this host, written as `<name>.pem` and `<name>.key`.
    pub fn sign(&self, name: &str) -> Pair {
        self.sign_with(name, |_| {})
    }

    pub fn sign_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let write = |extension: &str, text: String| {
            let path = self.dir.path().join(format!("{name}.{extension}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Pair {
            cert: write("pem", cert.pem()),
            key: write("key", key.serialize_pem()),
        }
    }

    /// The TLS configuration of a client that trusts this authority, with its `versions` and its
    /// certificate.
    pub fn client_with(&self, versions: &[&'static SupportedProtocolVersion], shows: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match shows {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_file(&pair.cert).unwrap()],
                    PrivateKeyDer::from_pem_file(&pair.key).unwrap(),
                )
                .unwrap(),
        }
    }

    /// A client of any version that trusts this authority.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::new(self.client_with(rustls::ALL_VERSIONS, None))
    }
}

impl Pair {
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }

    pub fn cert(&self) -> &str {
        text(&self.cert)
    }

    pub fn key(&self) -> &str {
        text(&self.key)
    }

    /// Replaces these files with others, each at once.
    pub fn replace_with(&self, other: &Pair) {
        replace(&self.cert, &other.cert);
        replace(&self.key, &other.key);
    }
}

/// Replaces `file` with a copy of `by`, at once.
pub fn replace(file: &Path, by: &Path) {
    let new = file.with_extension("new");
    std::fs::copy(by, &new).unwrap();
    std::fs::rename(&new, file).unwrap();
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A gateway with a certificate, whose clients trust it.
pub struct Secure {
    pub gateway: Gateway,
    pub authority: Authority,
    pub pair: Pair,
}

impl Secure {
    pub fn start(engine: &str, args: &[&str]) -> Secure {
        let authority = Authority::new();
        let pair = authority.sign("server");
        let files = ["--tls-cert", pair.cert(), "--tls-key", pair.key(), "--engine", engine];
        let mut gateway = Gateway::start(&[&files, args].concat());
        gateway.tls = Some(authority.client());
        Secure {
            gateway,
            authority,
            pair,
        }
    }

    pub fn refused(&self, reason: &str) -> f64 {
        let reason = format!("reason=\"{reason}\"");
        self.gateway.metric("shardgate_handshakes_refused_total", &[&reason])
    }

    pub fn plain(&self) -> Client {
        Client::connect(self.gateway.addr)
    }

    pub fn client(&self, config: ClientConfig) -> Client {
        self.plain().over_tls(Arc::new(config))
    }

    /// The certificate that new connections see.
    pub fn certificate(&self) -> CertificateDer<'static> {
        let client = self.gateway.tcp();
        client.tls.as_ref().unwrap().peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    }
}
