#[cfg(unix)]
use std::path::Path;
use std::{io, net::SocketAddr};

use socket2::{SockRef, TcpKeepalive};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpSocket, TcpStream};

use super::address::Address;
use crate::config::{Connector, SocketSettings, Target};

/// Resolves a target to its addresses, in the order of the operating system. A connector does that
/// itself.
pub(crate) async fn resolve(
    target: &Target,
    connector: Option<&Connector<Target>>,
) -> io::Result<Vec<Address>> {
    if let Some(connector) = connector {
        return Ok(vec![Address::Custom(connector.clone(), target.clone())]);
    }
    if let Some(path) = &target.unix_socket {
        #[cfg(unix)]
        return Ok(vec![Address::Unix(path.clone())]);
        #[cfg(not(unix))]
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this system does not support Unix sockets such as {}", path.display()),
        ));
    }
    if let Some(address) = target.hostaddr {
        return Ok(vec![Address::Tcp(SocketAddr::new(address, target.port))]);
    }
    let name = target.host.as_deref().unwrap_or_default();
    let addresses = tokio::net::lookup_host((name, target.port)).await?;
    Ok(addresses.map(Address::Tcp).collect())
}

/// Connects by TCP. The options are set first, so that they apply while connecting.
pub(super) async fn tcp(address: SocketAddr, settings: &SocketSettings) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Every request is written at once, so Nagle's algorithm would only delay it.
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    if settings.keepalive {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = settings.keepalive_idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = settings.keepalive_interval {
            keepalive = keepalive.with_interval(interval);
        }
        #[cfg(not(windows))]
        if let Some(count) = settings.keepalive_count {
            keepalive = keepalive.with_retries(count);
        }
        options.set_tcp_keepalive(&keepalive)?;
        // As in libpq, it depends on keepalives, and has no effect on other systems.
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        if settings.user_timeout.is_some() {
            options.set_tcp_user_timeout(settings.user_timeout)?;
        }
    }
    socket.connect(address).await
}

/// Connects to a Unix socket. A path that begins with `@` is in the abstract namespace of Linux.
#[cfg(unix)]
pub(super) async fn unix(path: &Path) -> io::Result<UnixStream> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => {
            // tokio expects a leading NUL.
            let name = [b"\0", name].concat();
            UnixStream::connect(std::ffi::OsString::from_vec(name)).await
        }
        _ => UnixStream::connect(path).await,
    }
}
