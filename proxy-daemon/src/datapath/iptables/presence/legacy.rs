//! What does `ip_tables` say about a table without showing its rules?
//!
//! `IPT_SO_GET_INFO`, which takes the kernel the same for any number of rules, while every
//! iptables-legacy copies the whole table. Invariants: no table is created by asking.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::datapath::iptables::tool::has_legacy_table;
use crate::net::IpFamily;

/// `struct ipt_getinfo`, and `struct ip6t_getinfo`, which is the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    /// Where in the table the built-in chains begin.
    hook_entry: [u32; 5],
    /// Where their policies are.
    underflow: [u32; 5],
    num_entries: u32,
    /// Unit: bytes.
    size: u32,
}

const _: () = assert!(size_of::<Info>() == 84);

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;

/// What the kernel says about these tables, in the network namespace of this thread; nothing of one
/// that is not there.
pub(super) fn infos<const N: usize>(
    family: IpFamily,
    tables: [&str; N],
) -> io::Result<[Option<Info>; N]> {
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let mut infos = [None; N];
    for (table, info) in tables.into_iter().zip(&mut infos) {
        // Kernel: to be asked for a table that it has not makes it create one.
        if has_legacy_table(family, table) {
            let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            *info = Some(ask(&socket, level, table)?);
        }
    }
    Ok(infos)
}

#[expect(
    unsafe_code,
    reason = "no crate has this option: its value is read by the kernel before it is written"
)]
fn ask(socket: &OwnedFd, level: libc::c_int, table: &str) -> io::Result<Info> {
    let mut info = Info::default();
    for (to, from) in info.name.iter_mut().zip(table.bytes()) {
        *to = from;
    }
    let mut len = libc::socklen_t::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    // SAFETY: `info` and `len` are ours for the whole call, and `len` is the size of `info`, of which the
    // kernel writes no more than that; whatever bytes it writes are an `Info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            GET_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(info)
    } else {
        Err(io::Error::last_os_error())
    }
}
