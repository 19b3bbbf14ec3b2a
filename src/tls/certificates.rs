//! Certificate, key and authorities: from PEM files to a `ServerConfig`, and again when the files
//! change.
//!
//! Owned by the control thread, which is the only one that reads the files. A `ServerConfig` is
//! never changed, only replaced. So connections keep the one that they began with.

use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, ServerSessionMemoryCache, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::config::TlsFiles;

/// Tickets that a TLS 1.3 client gets. One is enough to come back with, and it gets another one
/// then.
const TICKETS: usize = 1;
/// Sessions of TLS 1.2 clients without tickets that are remembered.
const SESSIONS_MAX: usize = 4096;

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A file cannot be read.
    #[error("cannot read {key} {path:?}: {cause}")]
    Unreadable {
        /// `tls.cert`, `tls.key` or `tls.client_ca`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// A file does not have what it should have.
    #[error("{key} {path:?} has no {wanted} in PEM{cause}")]
    NothingThere {
        /// Which.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// The error; empty if the file has none at all.
        cause: String,
    },
    /// The two do not belong together.
    #[error("tls.key {key:?} does not belong to tls.cert {cert:?}: give the key that the certificate was made for")]
    Mismatch {
        /// `tls.cert`
        cert: PathBuf,
        /// `tls.key`
        key: PathBuf,
    },
    /// No client would accept it.
    #[error("tls.cert {cert:?} {why}: renew it, or look at the clock")]
    NotValidNow {
        /// `tls.cert`
        cert: PathBuf,
        /// `has expired` or `is not valid yet`.
        why: &'static str,
    },
    /// rustls does not take them.
    #[error("tls.cert {cert:?} and tls.key {key:?} cannot be used: {cause}")]
    Unusable {
        /// `tls.cert`
        cert: PathBuf,
        /// `tls.key`
        key: PathBuf,
        /// Why.
        cause: rustls::Error,
    },
    /// Authorities that no certificate can be checked against.
    #[error("tls.client_ca {path:?} cannot be used: {cause}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// Tells one version of a file from another: none if the file is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The files, and the `ServerConfig` made of them.
#[derive(Debug)]
pub struct Certificates {
    files: TlsFiles,
    /// Taken before the files were read, so that a change meanwhile is seen the next time.
    stamps: [Stamp; 3],
    /// Fingerprint of the files' contents: reading the same again must not forget sessions.
    fingerprint: u128,
    server: Arc<ServerConfig>,
}

impl Certificates {
    /// Reads the files. A certificate that is not valid now is better than none, and gets a line in
    /// the log.
    ///
    /// # Errors
    /// They are not there or no good.
    pub fn read(files: &TlsFiles) -> Result<Self, CertificatesError> {
        let stamps = stamps(files);
        let contents = Contents::read(files)?;
        if let Err(error) = contents.check_validity(files) {
            log::warn!("clients will refuse us: {error}");
        }
        Ok(Certificates {
            server: Arc::new(contents.server(files)?),
            fingerprint: contents.fingerprint(),
            files: files.clone(),
            stamps,
        })
    }

    /// The TLS configuration that new connections begin with.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// True if a file is not the one that was read. True only once per change.
    pub fn have_changed(&mut self) -> bool {
        let stamps = stamps(&self.files);
        std::mem::replace(&mut self.stamps, stamps) != stamps
    }

    /// Reads the files again, or others. True if that makes a difference; sessions of before are
    /// forgotten then.
    ///
    /// # Errors
    /// They are not there or no good, or the certificate is not valid now: the one of before stays.
    pub fn read_again(&mut self, files: &TlsFiles) -> Result<bool, CertificatesError> {
        self.files.clone_from(files);
        self.stamps = stamps(files);
        let contents = Contents::read(files)?;
        let fingerprint = contents.fingerprint();
        if fingerprint == self.fingerprint {
            return Ok(false);
        }
        contents.check_validity(files)?;
        self.server = Arc::new(contents.server(files)?);
        self.fingerprint = fingerprint;
        Ok(true)
    }
}

fn stamps(files: &TlsFiles) -> [Stamp; 3] {
    [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].map(|path| {
        // Follows links: a mounted secret is replaced by changing one.
        let metadata = fs::metadata(path?).ok()?;
        use std::os::unix::fs::MetadataExt;
        Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
    })
}

/// The contents of the files.
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, CertificatesError> {
        let read = |key, path: &Path| {
            fs::read(path).map_err(|cause| CertificatesError::Unreadable {
                key,
                path: path.to_owned(),
                cause,
            })
        };
        Ok(Contents {
            cert: read("tls.cert", &files.cert)?,
            key: read("tls.key", &files.key)?,
            client_ca: files
                .client_ca
                .as_deref()
                .map(|path| read("tls.client_ca", path))
                .transpose()?,
        })
    }

    fn fingerprint(&self) -> u128 {
        let mut hasher = SipHasher13::new();
        for contents in [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()] {
            hasher.write_usize(contents.map_or(usize::MAX, Vec::len));
            hasher.write(contents.map_or(&[], |contents| contents));
        }
        hasher.finish128().as_u128()
    }

    /// Whether the certificate's time has come and not passed.
    fn check_validity(&self, files: &TlsFiles) -> Result<(), CertificatesError> {
        let chain = certificates("tls.cert", &files.cert, &self.cert)?;
        let Ok(certificate) = ParsedCertificate::try_from(&chain[0]) else {
            // A certificate that cannot be parsed is refused elsewhere, with a cause.
            return Ok(());
        };
        // Times are checked before signers, and there are no signers here.
        let verified =
            verify_server_cert_signed_by_trust_anchor(&certificate, &RootCertStore::empty(), &[], UnixTime::now(), &[]);
        use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let why = match verified {
            Err(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => "has expired",
            Err(rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. })) => "is not valid yet",
            _ => return Ok(()),
        };
        let cert = files.cert.clone();
        Err(CertificatesError::NotValidNow { cert, why })
    }

    fn server(&self, files: &TlsFiles) -> Result<ServerConfig, CertificatesError> {
        let unusable = |cause| CertificatesError::Unusable {
            cert: files.cert.clone(),
            key: files.key.clone(),
            cause,
        };
        let chain = certificates("tls.cert", &files.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|cause| nothing_there("tls.key", &files.key, "private key", &cause))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let refused = |cause: String| CertificatesError::Authorities {
                    path: path.clone(),
                    cause,
                };
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls.client_ca", path, pem)? {
                    roots.add(authority).map_err(|cause| refused(cause.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|cause: VerifierBuilderError| refused(cause.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|cause| match cause {
            rustls::Error::InconsistentKeys(_) => CertificatesError::Mismatch {
                cert: files.cert.clone(),
                key: files.key.clone(),
            },
            cause => unusable(cause),
        })?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Its keys are made here and change every six hours; all shards use them, so a client may
        // come back to any.
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(unusable)?;
        server.send_tls13_tickets = TICKETS;
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok(server)
    }
}

fn certificates(key: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificatesError> {
    let refused = |cause| nothing_there(key, path, "certificate", &cause);
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    if found.is_empty() {
        return Err(refused(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn nothing_there(key: &'static str, path: &Path, wanted: &'static str, cause: &pem::Error) -> CertificatesError {
    CertificatesError::NothingThere {
        key,
        path: path.to_owned(),
        wanted,
        cause: match cause {
            pem::Error::NoItemsFound => String::new(),
            // Without the bytes of the message: they may be a key's.
            pem::Error::MissingSectionEnd { .. } => ": a section has no end".to_owned(),
            pem::Error::IllegalSectionStart { .. } => ": a section begins wrongly".to_owned(),
            _ => ": it is damaged".to_owned(),
        },
    }
}
