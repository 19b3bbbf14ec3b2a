//! The client's side of TLS, for `wss://`.
//!
//! Duty: plain bytes to records and back, by rustls. No certificate is checked, so the command line
//! must say so. No session is resumed, so every connection costs the server as much as a new
//! client.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// The shared configuration of a thread's connections.
pub(crate) fn config() -> Arc<ClientConfig> {
    let provider = aws_lc_rs::default_provider();
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for all versions");
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The TLS of one connection.
#[derive(Debug)]
pub(crate) struct Tls(ClientConnection);

impl Tls {
    /// A connection to the server of this name, which may have a port.
    pub(crate) fn new(config: &Arc<ClientConfig>, host: &str) -> Result<Self, String> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(|error| format!("{host}: {error}"))?;
        let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(|error| error.to_string())?;
        // Bytes sent before the handshake is done wait in there.
        tls.set_buffer_limit(None);
        Ok(Self(tls))
    }

    /// Seals `plain` and appends it, with whatever else there is to say, to `wire`.
    pub(crate) fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        // Both write to memory, which takes everything.
        let _ = self.0.writer().write_all(plain);
        while self.0.wants_write() && self.0.write_tls(wire).is_ok() {}
    }

    /// Reads received bytes and appends what they say to `plain`.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub(crate) fn open(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        while !wire.is_empty() {
            self.0.read_tls(&mut wire).map_err(|error| error.to_string())?;
            self.0.process_new_packets().map_err(|error| error.to_string())?;
            match self.0.reader().read_to_end(plain) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

/// Takes every certificate; that its owner has the key is checked all the same.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
