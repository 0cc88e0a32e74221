//! What does `ip_tables` say about a table without a program that prints its rules?
//!
//! `IPT_SO_GET_INFO` takes the kernel the same for any number of rules. `IPT_SO_GET_ENTRIES` copies the
//! table, of which only the places of chains and jumps are looked at. Invariants: no table is created by
//! asking; lengths and offsets that the kernel sends are not trusted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::expected::Found;
use crate::datapath::iptables::chain::Table;
use crate::datapath::iptables::names::CHAIN_PREFIX;
use crate::datapath::iptables::tool::has_legacy_table;
use crate::net::IpFamily;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`, and `struct ip6t_getinfo`, which is the same.
const INFO_LEN: usize = 84;
/// `struct ipt_get_entries`, and `struct ip6t_get_entries`, without the entries.
const ENTRIES_HEADER: usize = 40;
/// Where in it the size of the entries is, after the table's name.
const ENTRIES_SIZE: usize = 32;
/// `IPT_STANDARD_TARGET` has no name, `IPT_ERROR_TARGET` begins a chain.
const HEAD: &[u8] = b"ERROR";
/// `struct xt_entry_target`: the length of the name, and where its data begins.
const TARGET_NAME: std::ops::Range<usize> = 2..31;
const TARGET_DATA: usize = 32;

/// What the kernel says about a table: hooks, number and size of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info([u8; INFO_LEN]);

impl Info {
    fn number(&self, at: usize) -> usize {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        let number = bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    /// How many entries there are: rules, and two for each chain.
    pub(super) fn n_entries(&self) -> usize {
        self.number(76)
    }

    /// Unit: bytes.
    fn size(&self) -> usize {
        self.number(80)
    }
}

/// What the kernel says about a table, in the network namespace of this thread; `None` if it is not there.
pub(super) fn info(family: IpFamily, table: Table) -> io::Result<Option<Info>> {
    // Kernel: to be asked for a table that it has not makes it create one.
    if !has_legacy_table(family, table.name()) {
        return Ok(None);
    }
    let mut info = Info([0; INFO_LEN]);
    put_name(table, &mut info.0);
    get(family, GET_INFO, &mut info.0)?;
    Ok(Some(info))
}

/// The chains of ours, with their tables.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile.
pub(super) fn chains(family: IpFamily) -> io::Result<Vec<(Table, Found)>> {
    let mut chains = Vec::new();
    for table in Table::ALL {
        let Some(info) = info(family, table)? else {
            continue;
        };
        let mut bytes = vec![0; ENTRIES_HEADER + info.size()];
        put_name(table, &mut bytes);
        let size = u32::try_from(info.size()).unwrap_or(0).to_ne_bytes();
        if let Some(place) = bytes.get_mut(ENTRIES_SIZE..ENTRIES_SIZE + size.len()) {
            place.copy_from_slice(&size);
        }
        get(family, GET_ENTRIES, &mut bytes).map_err(|error| match error.raw_os_error() {
            // Kernel: the size is another now.
            Some(libc::EAGAIN) => io::ErrorKind::Interrupted.into(),
            _ => error,
        })?;
        let entries = bytes.get(ENTRIES_HEADER..).unwrap_or(&[]);
        let found = count(family, entries).into_iter();
        chains.extend(found.map(|found| (table, found)));
    }
    Ok(chains)
}

/// Where `struct ipt_entry` and `struct ip6t_entry` say where the target is; the next entry is said after it.
const fn target_at(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 88,
        IpFamily::V6 => 140,
    }
}

/// The chains of ours, with the numbers of their rules and of the rules that go to them.
fn count(family: IpFamily, entries: &[u8]) -> Vec<Found> {
    // By where the first entry after the head is, which is where others go to.
    let mut names: Vec<(usize, &str)> = Vec::new();
    // How many entries come after the head, of which one is the tail, and how many go there.
    let mut uses: BTreeMap<usize, u32> = BTreeMap::new();
    let target_at = target_at(family);
    let (mut current, mut at) = (0, 0);
    while let Some(entry) = entries.get(at..)
        && let (Some(target), Some(next)) = (short(entry, target_at), short(entry, target_at + 2))
        && next > target
    {
        let data = entry.get(target + TARGET_DATA..next).unwrap_or(&[]);
        let kind = entry.get(target..).and_then(|entry| entry.get(TARGET_NAME));
        let kind = kind.map(c_string);
        at += next;
        if kind == Some(HEAD) {
            current = at;
            names.push((at, std::str::from_utf8(c_string(data)).unwrap_or_default()));
            continue;
        }
        *uses.entry(current).or_default() += 1;
        if kind == Some(b"")
            && let Some(verdict) = data.first_chunk()
            && let Ok(to) = usize::try_from(i32::from_ne_bytes(*verdict))
        {
            *uses.entry(to).or_default() += 1;
        }
    }
    names.retain(|(_, name)| name.starts_with(CHAIN_PREFIX));
    let ours = names.into_iter().map(|(first, name)| Found {
        name: name.to_owned(),
        handle: 0,
        uses: uses.get(&first).map_or(0, |n| n.saturating_sub(1)),
    });
    ours.collect()
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(usize::from(u16::from_ne_bytes(*bytes)))
}

fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Writes the name of the table to the beginning of a question.
fn put_name(table: Table, question: &mut [u8]) {
    for (to, from) in question.iter_mut().zip(table.name().bytes()) {
        *to = from;
    }
}

/// Puts a question that the answer takes the place of.
#[expect(
    unsafe_code,
    reason = "no crate has these options: their value is read by the kernel before it is written"
)]
fn get(family: IpFamily, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let (fd, value) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: `value` and `len` are ours for the whole call, and `len` is the size of `value`, of which the
    // kernel writes no more than that; whatever bytes it writes are bytes.
    let result = unsafe { libc::getsockopt(fd, level, option, value, &raw mut len) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_that_make_no_sense_end_the_reading() {
        for family in IpFamily::ALL {
            for bytes in [
                vec![],
                vec![0; 100],
                vec![0; 400],
                vec![0xff; 400],
                vec![1; 1000],
            ] {
                assert!(count(family, &bytes).is_empty());
            }
        }
    }
}
