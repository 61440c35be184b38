use std::time::Duration;

/// What is asked of the operating system for a TCP socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SocketSettings {
    pub(crate) keepalive: bool,
    pub(crate) keepalive_idle: Option<Duration>,
    pub(crate) keepalive_interval: Option<Duration>,
    pub(crate) keepalive_count: Option<u32>,
    pub(crate) user_timeout: Option<Duration>,
}
