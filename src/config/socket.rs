use std::time::Duration;

use super::keyword::Values;
use crate::error::Result;

/// Options of a TCP socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SocketSettings {
    pub(crate) keepalive: bool,
    pub(crate) keepalive_idle: Option<Duration>,
    pub(crate) keepalive_interval: Option<Duration>,
    pub(crate) keepalive_count: Option<u32>,
    pub(crate) user_timeout: Option<Duration>,
}

impl SocketSettings {
    pub(super) fn from_values(values: &Values) -> Result<Self> {
        let positive = |name| Ok(values.integer(name)?.filter(|n| *n > 0));
        Ok(Self {
            keepalive: match values.get("keepalives") {
                Some("") => false,
                _ => values.integer("keepalives")? != Some(0),
            },
            keepalive_idle: values.seconds("keepalives_idle")?,
            keepalive_interval: values.seconds("keepalives_interval")?,
            keepalive_count: positive("keepalives_count")?,
            user_timeout: positive("tcp_user_timeout")?.map(|ms| Duration::from_millis(ms.into())),
        })
    }
}
