use std::io;

use rustls::{AlertDescription as Alert, CertificateError, OtherError};

use super::verify::Refused;
use crate::error::Error;

/// What an I/O error of a TLS stream says about TLS; `None` when it comes from the socket.
///
/// Not only for the handshake: with TLS 1.3 the client's part of it is over before the server has
/// looked at the client's certificate, and its refusal comes with the first read.
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
            "the server speaks no TLS that is allowed here ({reason:?}): it must speak 1.2 or 1.3 \
             within ssl_min_protocol_version and ssl_max_protocol_version"
        ),
        E::InvalidMessage(reason) => format!(
            "what the server sent is not TLS ({reason:?}): is it a Postgres server, and does it \
             know this sslnegotiation?"
        ),
        E::NoApplicationProtocol => {
            "the server speaks another protocol than PostgreSQL inside TLS".into()
        }
        other => format!("the session failed: {other}"),
    }
}

/// The reasons are the server's, and its log has them in full.
fn describe_alert(alert: Alert) -> String {
    match alert {
        Alert::ProtocolVersion => {
            "the server speaks none of the TLS versions allowed here: compare \
             ssl_min_protocol_version and ssl_max_protocol_version on both sides"
                .into()
        }
        Alert::CertificateRequired => {
            "the server demands a client certificate: set sslcert and sslkey".into()
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => format!(
            "the server refused the client's certificate ({alert:?}): check sslcert against the \
             server's ssl_ca_file and ssl_crl_file; its log says more"
        ),
        Alert::HandshakeFailure => {
            "the server broke off the handshake (HandshakeFailure): it shares no cipher with this \
             client, has a key that this client does not support (RSASSA-PSS or an unusual curve), \
             or demands a client certificate; its log says more"
                .into()
        }
        Alert::NoApplicationProtocol => {
            "the server does not speak PostgreSQL inside TLS (NoApplicationProtocol)".into()
        }
        Alert::UnrecognisedName => {
            "the server does not know the host name it was asked for (SNI): set sslsni=0, or the \
             name it knows"
                .into()
        }
        other => format!("the server broke off the session ({other:?}); its log says why"),
    }
}
