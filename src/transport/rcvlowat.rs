//! `SO_RCVLOWAT`: the minimum number of bytes before the system reports a socket as readable
//! ([socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html)).
//!
//! A read still returns fewer bytes. The socket is also readable when the stream has ended or its
//! receive window is full.

use std::{io, sync::OnceLock};

use nix::{
    libc, setsockopt_impl, sockopt_impl,
    sys::{socket::SetSockOpt, utsname::uname},
};
use tokio::net::TcpStream;

sockopt_impl!(ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize);

pub(super) fn set(socket: &TcpStream, bytes: usize) -> io::Result<()> {
    if !is_reliable() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(ReceiveLowWater.set(socket, &bytes)?)
}

/// Since Linux 4.18, lowering the value wakes a waiter for data that has already arrived
/// (`tcp_set_rcvlowat`). Before that, the end of a result could wait forever.
fn is_reliable() -> bool {
    static RELIABLE: OnceLock<bool> = OnceLock::new();
    *RELIABLE.get_or_init(|| {
        uname().is_ok_and(|system| system.release().to_str().is_some_and(is_at_least_4_18))
    })
}

fn is_at_least_4_18(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (4, 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_release_is_parsed() {
        for (release, reliable) in [
            ("6.12.3-amd64", true),
            ("5.4.0-1", true),
            ("4.18.0-553.el8_10.x86_64", true),
            ("4.17.19", false),
            ("4.4.0", false),
            ("3.10.0-1160.el7", false),
            ("10.0", true),
            ("unknown", false),
        ] {
            assert_eq!(is_at_least_4_18(release), reliable, "{release}");
        }
    }
}
