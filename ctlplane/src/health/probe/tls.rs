//! Whom does an HTTPS probe trust? Certificates are read when a configuration comes into force.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{Outcome, Steps};
use crate::health::check::{Http, Kind, Target, Tls};

/// Where Debian, Ubuntu and Alpine, then Fedora and RHEL, then SUSE keep certificates of authorities.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What was made of the files of a configuration, each set of rules once.
#[derive(Default)]
pub(in crate::health) struct Connectors {
    made: HashMap<String, Arc<Result<TlsConnector, String>>>,
}

impl Connectors {
    /// The one for a target; `None` where it needs none.
    pub(in crate::health) fn of(&mut self, target: &Target) -> Option<Arc<Result<TlsConnector, String>>> {
        let Kind::Https(_, tls) = &target.check.kind else { return None };
        let key = format!("{:?}", (tls.verify, &tls.ca_file, &tls.client));
        Some(Arc::clone(self.made.entry(key).or_insert_with(|| Arc::new(connector(tls)))))
    }
}

fn connector(tls: &Tls) -> Result<TlsConnector, String> {
    config(tls).map(|config| TlsConnector::from(Arc::new(config)))
}

fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let builder = if tls.verify {
        builder.with_root_certificates(authorities(tls.ca_file.as_deref())?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    };
    let Some((chain_file, key_file)) = &tls.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(chain_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| format!("cannot read the key in {key_file}: {error}"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("{chain_file} with {key_file}: {error}"))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |error| format!("cannot read certificates in {file}: {error}");
    let list: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if list.is_empty() { Err(format!("{file} has no certificate in PEM form")) } else { Ok(list) }
}

fn authorities(file: Option<&str>) -> Result<RootCertStore, String> {
    let system = || SYSTEM_AUTHORITIES.into_iter().find(|file| std::path::Path::new(file).exists());
    let file = file.or_else(system).ok_or_else(|| {
        "this system has no certificates of authorities: set ca_file, or verify = false".to_owned()
    })?;
    let mut store = RootCertStore::empty();
    // some authorities of the system may be of a kind that is not understood
    let (added, _) = store.add_parsable_certificates(certificates(file)?);
    if added == 0 { Err(format!("{file} has no certificate of an authority")) } else { Ok(store) }
}

/// The name that the certificate has to have.
pub(super) fn server_name(tls: &Tls, http: &Http, address: IpAddr) -> Steps<ServerName<'static>> {
    let named = tls.server_name.as_deref().or(http.host.as_deref());
    let Some(named) = named else { return Ok(ServerName::IpAddress(address.into())) };
    let without_port = named.rsplit_once(':').map_or(named, |(host, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.contains(':') { host } else { named }
    });
    ServerName::try_from(without_port.to_owned())
        .map_err(|_| Outcome::Untold(format!("\"{without_port}\" is no name of a server")))
}

/// Why there was no handshake, in words that name what to look at.
pub(super) fn failed(error: &io::Error, name: &ServerName<'_>) -> Outcome {
    let name = name.to_str();
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(reason)) => format!("its certificate {}", refused(reason, &name)),
        Some(Error::InvalidMessage(_)) => "what answers does not speak TLS".to_owned(),
        Some(Error::AlertReceived(alert)) => format!("the server ended the handshake: {alert:?}"),
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection was closed within the handshake".to_owned()
        }
        None => return super::failed("TLS", error),
    };
    Outcome::Bad(format!("TLS: {text}"))
}

fn refused(reason: &CertificateError, name: &str) -> String {
    use CertificateError as Reason;
    match reason {
        Reason::Expired | Reason::ExpiredContext { .. } => "has expired".to_owned(),
        Reason::NotValidYet | Reason::NotValidYetContext { .. } => {
            "is not valid yet; look at the clocks of both machines".to_owned()
        }
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => {
            format!("is not for {name}; set server_name to a name that it has")
        }
        Reason::UnknownIssuer => {
            "is not signed by an authority that is trusted; name its authority with ca_file".to_owned()
        }
        other => format!("is refused: {other}"),
    }
}

/// `verify = false`: any certificate will do; signatures are checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
