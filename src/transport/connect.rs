#[cfg(unix)]
use std::path::Path;
use std::{io, net::SocketAddr};

use socket2::{SockRef, TcpKeepalive};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpSocket, TcpStream};

use super::address::Address;
use crate::config::{SocketSettings, Target};

/// The addresses of a target, in the order in which the system gives them.
pub(crate) async fn resolve(target: &Target) -> io::Result<Vec<Address>> {
    if let Some(path) = &target.unix_socket {
        #[cfg(unix)]
        return Ok(vec![Address::Unix(path.clone())]);
        #[cfg(not(unix))]
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this system has no Unix sockets such as {}", path.display()),
        ));
    }
    if let Some(address) = target.hostaddr {
        return Ok(vec![Address::Tcp(SocketAddr::new(address, target.port))]);
    }
    let name = target.host.as_deref().unwrap_or_default();
    let addresses = tokio::net::lookup_host((name, target.port)).await?;
    Ok(addresses.map(Address::Tcp).collect())
}

/// Connects with the options set before, so that they count while it connects too.
pub(super) async fn tcp(address: SocketAddr, settings: &SocketSettings) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Every request is written in one piece: waiting to fill a packet only delays it.
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
        // As in libpq, a part of keepalives, and without effect where the system has no such option.
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        if settings.user_timeout.is_some() {
            options.set_tcp_user_timeout(settings.user_timeout)?;
        }
    }
    socket.connect(address).await
}

/// Connects to a Unix socket; a path that begins with `@` is a name in Linux's abstract namespace.
#[cfg(unix)]
pub(super) async fn unix(path: &Path) -> io::Result<UnixStream> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => {
            // tokio knows such a name by its NUL.
            let name = [b"\0", name].concat();
            UnixStream::connect(std::ffi::OsString::from_vec(name)).await
        }
        _ => UnixStream::connect(path).await,
    }
}
