/// The parameters negotiated in a TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsInfo {
    /// As OpenSSL writes it: `TLSv1.3`.
    pub(crate) version: String,
    /// The cipher suite's registered name: `TLS_AES_256_GCM_SHA384`.
    pub(crate) cipher: String,
    /// The channel binding tls-server-end-point of RFC 5929; `None` if it is not defined for the
    /// server's certificate.
    pub(crate) server_end_point: Option<Vec<u8>>,
    pub(crate) certificate_requested: bool,
    pub(crate) certificate_sent: bool,
}
