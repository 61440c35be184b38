use super::keyword::Values;
use crate::error::{Error, Result};

/// The accepted protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProtocolRange {
    pub(crate) min: ProtocolVersion,
    pub(crate) max: ProtocolVersion,
}

/// A version of the protocol. Version 3.1 does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProtocolVersion {
    V3_0,
    V3_2,
}

impl ProtocolRange {
    pub(super) fn from_values(values: &Values) -> Result<Self> {
        let version = |name| match values.get(name) {
            None => Ok(None),
            Some("3.0") => Ok(Some(ProtocolVersion::V3_0)),
            Some("3.2" | "latest") => Ok(Some(ProtocolVersion::V3_2)),
            Some(_) => Err(Error::config(format!("invalid {name}: expected 3.0, 3.2 or latest"))),
        };
        let min = version("min_protocol_version")?.unwrap_or(ProtocolVersion::V3_0);
        // Older poolers fail on newer versions.
        let max = version("max_protocol_version")?.unwrap_or(min);
        if min > max {
            return Err(Error::config("min_protocol_version is greater than max_protocol_version"));
        }
        Ok(Self { min, max })
    }
}
