//! `target_session_attrs`: whether a server has the wanted role.

use super::server_connection::Connection;
use crate::{config::TargetSessionAttrs, error::Result};

/// Checks the role of a server. Returns a description of its role if it is not the wanted one.
///
/// Since Postgres 14 a server reports its role; an older one is queried.
pub(super) async fn check_role(
    connection: &mut Connection,
    wanted: TargetSessionAttrs,
) -> Result<Option<&'static str>> {
    let reported = |connection: &Connection, name| {
        connection.session.parameter(name).map(|value| value == "on")
    };
    let in_recovery = match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(None),
        TargetSessionAttrs::ReadWrite | TargetSessionAttrs::ReadOnly => {
            let read_only = match (
                reported(connection, "default_transaction_read_only"),
                reported(connection, "in_hot_standby"),
            ) {
                (Some(by_default), Some(in_recovery)) => by_default || in_recovery,
                _ => connection.query_scalar("show transaction_read_only").await? == "on",
            };
            return Ok(match (wanted, read_only) {
                (TargetSessionAttrs::ReadWrite, true) => Some("its sessions are read-only"),
                (TargetSessionAttrs::ReadOnly, false) => Some("its sessions are not read-only"),
                _ => None,
            });
        }
        TargetSessionAttrs::Primary | TargetSessionAttrs::Standby => {
            match reported(connection, "in_hot_standby") {
                Some(in_recovery) => in_recovery,
                None => {
                    connection.query_scalar("select pg_catalog.pg_is_in_recovery()").await? == "t"
                }
            }
        }
    };
    Ok(match (wanted, in_recovery) {
        (TargetSessionAttrs::Primary, true) => Some("it is a standby"),
        (TargetSessionAttrs::Standby, false) => Some("it is a primary"),
        _ => None,
    })
}
