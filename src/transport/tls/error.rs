use std::io;

use rustls::{AlertDescription as Alert, CertificateError, OtherError};

use super::verify::Refused;
use crate::error::Error;

/// Converts an I/O error of a TLS stream. Returns `None` if it comes from the socket.
///
/// It applies to reads too, not only to the handshake. With TLS 1.3, the client's handshake ends
/// before the server has verified the client certificate, so a rejection arrives with the first
/// read.
pub(crate) fn tls_error(error: &io::Error) -> Option<Error> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(Error::tls(describe(error)))
}

fn describe(error: &rustls::Error) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(CertificateError::Other(OtherError(e))) if e.is::<Refused>() => {
            e.to_string()
        }
        E::InvalidCertificate(CertificateError::BadSignature) => {
            "the server's signature is wrong: it does not have the key of its certificate".into()
        }
        E::InvalidCertificate(e) => format!("the server's certificate cannot be used: {e}"),
        E::AlertReceived(alert) => describe_alert(*alert),
        E::PeerIncompatible(reason) => format!(
            "the server supports no TLS version that is allowed ({reason:?}): it must support 1.2 \
             or 1.3, within ssl_min_protocol_version and ssl_max_protocol_version"
        ),
        E::InvalidMessage(reason) => format!(
            "the server's response is not TLS ({reason:?}): check that it is a Postgres server \
             that supports this sslnegotiation"
        ),
        E::NoApplicationProtocol => {
            "the server selected a protocol other than PostgreSQL by ALPN".into()
        }
        other => format!("the session failed: {other}"),
    }
}

/// The reasons are the server's. Its log has the details.
fn describe_alert(alert: Alert) -> String {
    match alert {
        Alert::ProtocolVersion => "the server supports none of the allowed TLS versions: compare \
             ssl_min_protocol_version and ssl_max_protocol_version on both sides"
            .into(),
        Alert::CertificateRequired => {
            "the server requires a client certificate: set sslcert and sslkey".into()
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => format!(
            "the server rejected the client certificate ({alert:?}): check sslcert against the \
             server's ssl_ca_file and ssl_crl_file; see its log"
        ),
        Alert::HandshakeFailure => {
            "the server aborted the handshake (HandshakeFailure): it has no cipher in common with \
             this client, has a key that this client does not support (RSASSA-PSS or an unusual \
             curve), or requires a client certificate; see its log"
                .into()
        }
        Alert::NoApplicationProtocol => {
            "the server does not support PostgreSQL by ALPN (NoApplicationProtocol)".into()
        }
        Alert::UnrecognisedName => {
            "the server does not recognize the host name (SNI): set sslsni=0, or a host name that \
             it recognizes"
                .into()
        }
        other => format!("the server aborted the session ({other:?}); see its log"),
    }
}
