//! How are libnftnl's objects filled where the nftnl crate has no safe word for it?
//!
//! The room with `unsafe`: expressions and set attributes by libnftnl's setters, messages that carry
//! other flags or more attributes than the crate's, and options of sockets. Invariants: one operation
//! per block, with the reason why it holds; whatever a caller names an attribute of `nftnl_sys`, the
//! library is never given a pointer, fewer bytes than it reads, or more than it has room for.

#![expect(
    unsafe_code,
    reason = "libnftnl and libc are C; the crates over them have no safe form of these calls"
)]

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::set::Set;
use nftnl::{MsgType, NlMsg, Rule, nft_nlmsg_maxsize};
use nftnl_sys::libc::{self, NLM_F_REQUEST, nlmsghdr};
use nftnl_sys::{nftnl_expr, nftnl_expr_alloc, nftnl_expr_set};

/// Sets an option of a socket that is a number.
pub(super) fn set_option(
    socket: &OwnedFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<c_int>()).map_err(io::Error::other)?;
    let value: *const c_int = &raw const value;
    // SAFETY: `value` points to `len` bytes that live until the call returns, which copies them.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A message with no more than its headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// The message's type within `nf_tables`.
    pub(crate) kind: u16,
    /// `NFPROTO_*`
    pub(crate) family: u16,
}

// SAFETY: 20 bytes are written.
unsafe impl NlMsg for Header {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, _: MsgType) {
        // SAFETY: the caller's buffer has room for any message.
        unsafe {
            nftnl_sys::nftnl_nlmsg_build_hdr(buf.cast(), self.kind, self.family, 0, seq);
        }
    }
}

/// A message with flags of our choice, and attributes behind its own.
#[derive(Debug)]
pub(crate) struct Message<'a, T> {
    /// What writes the message.
    pub(crate) object: &'a T,
    /// Instead of those that it writes; that it is a request is said in any case.
    pub(crate) flags: c_int,
    /// Attributes, padded to four bytes. Where they find no room, the message goes without them.
    pub(crate) more: &'a [u8],
}

// SAFETY: what `T` writes has at most the largest size, and the rest is written only if all of it has.
unsafe impl<T: NlMsg> NlMsg for Message<'_, T> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, msg_type: MsgType) {
        // SAFETY: the caller's buffer has room for any message.
        unsafe { self.object.write(buf, seq, msg_type) };
        // SAFETY: `T` has just put a header there. The batch aligns its messages to four bytes.
        let header = unsafe { &mut *buf.cast::<nlmsghdr>() };
        header.nlmsg_flags = u16::try_from(NLM_F_REQUEST | self.flags).unwrap_or(0);
        let (start, len) = (header.nlmsg_len, self.more.len());
        let end = u32::try_from(len).map_or(u32::MAX, |len| start.saturating_add(len));
        if end > nft_nlmsg_maxsize() {
            return;
        }
        header.nlmsg_len = end;
        // SAFETY: `start` is within the caller's buffer, since it is not more than `end`.
        let to = unsafe { buf.cast::<u8>().add(start as usize) };
        // SAFETY: up to `end` the buffer is ours to write, and the attributes are no part of it.
        unsafe { to.copy_from_nonoverlapping(self.more.as_ptr(), len) };
    }
}

/// `NFT_DATA_VALUE_MAXLEN`: room for a value in an expression. No name of ours is as long.
const MAX_VALUE: usize = 64;

/// Which expression of `nf_tables` it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpressionKind(&'static CStr);

impl ExpressionKind {
    pub(crate) const BITWISE: Self = Self(c"bitwise");
    pub(crate) const CMP: Self = Self(c"cmp");
    pub(crate) const CT: Self = Self(c"ct");
    pub(crate) const DYNSET: Self = Self(c"dynset");
    pub(crate) const FIB: Self = Self(c"fib");
    pub(crate) const IMMEDIATE: Self = Self(c"immediate");
    pub(crate) const LOOKUP: Self = Self(c"lookup");
    pub(crate) const MASQ: Self = Self(c"masq");
    pub(crate) const META: Self = Self(c"meta");
    pub(crate) const NAT: Self = Self(c"nat");
    pub(crate) const NUMGEN: Self = Self(c"numgen");
    pub(crate) const PAYLOAD: Self = Self(c"payload");
    pub(crate) const REJECT: Self = Self(c"reject");

    /// Whether an attribute is a number, a name or a value: all of these expressions are, but for the
    /// expressions that `dynset` may hold, which the library takes as pointers.
    fn has_plain(self, attribute: u32) -> bool {
        let pointers = [
            nftnl_sys::NFTNL_EXPR_DYNSET_EXPR,
            nftnl_sys::NFTNL_EXPR_DYNSET_EXPRESSIONS,
        ];
        self.0 != Self::DYNSET.0 || !pointers.contains(&attribute)
    }
}

/// An expression of a rule: its attributes (`NFTNL_EXPR_*`), each a number, a name or a value.
#[derive(Clone, Debug)]
pub(crate) struct RawExpression {
    kind: ExpressionKind,
    attributes: Vec<(u32, Vec<u8>)>,
}

impl RawExpression {
    /// One without attributes.
    pub(crate) const fn new(kind: ExpressionKind) -> Self {
        Self {
            kind,
            attributes: Vec::new(),
        }
    }

    /// Sets an attribute to a value, of at most [`MAX_VALUE`] bytes.
    #[must_use]
    pub(crate) fn bytes(mut self, attribute: u32, bytes: &[u8]) -> Self {
        self.attributes.push((attribute, bytes.to_vec()));
        self
    }

    /// Sets an attribute to a name.
    #[must_use]
    pub(crate) fn name(self, attribute: u32, name: &str) -> Self {
        // libnftnl 1.2.4 copies the name up to its zero, newer versions look at the length.
        self.bytes(attribute, &[name.as_bytes(), &[0]].concat())
    }

    /// Sets an attribute to a number of 32 bits.
    #[must_use]
    pub(crate) fn number(self, attribute: u32, number: u32) -> Self {
        self.bytes(attribute, &number.to_ne_bytes())
    }
}

impl Expression for RawExpression {
    /// Ends the process if there is no memory, as Rust's own allocations do.
    fn to_expr(&self, _: &Rule<'_>) -> NonNull<nftnl_expr> {
        // SAFETY: the name ends with a zero, and is only read.
        let expression = unsafe { nftnl_expr_alloc(self.kind.0.as_ptr()) };
        let Some(expression) = NonNull::new(expression) else {
            no_memory();
        };
        for (attribute, bytes) in &self.attributes {
            let mut value = [0_u8; MAX_VALUE + 8];
            let n = bytes.len().min(MAX_VALUE);
            for (to, from) in value.iter_mut().take(n).zip(bytes) {
                *to = *from;
            }
            let number = u16::try_from(*attribute).unwrap_or(u16::MAX);
            let len = u32::try_from(n).unwrap_or(0);
            // A pointer is not set: the kernel refuses the rule.
            if !self.kind.has_plain(*attribute) {
                continue;
            }
            // SAFETY: the expression is alive until its rule frees it, and the attribute is no pointer. Of a
            // value the library reads `len` bytes, of a name those before a zero, of a number at most 8: all
            // of these lie within `value`.
            let result =
                unsafe { nftnl_expr_set(expression.as_ptr(), number, value.as_ptr().cast(), len) };
            if result < 0 {
                no_memory();
            }
        }
        expression
    }
}

fn no_memory() -> ! {
    handle_alloc_error(Layout::new::<[usize; 8]>())
}

/// Sets an attribute of a set (`NFTNL_SET_*`) to bytes, which are copied.
///
/// Does nothing for attributes that no set of ours has, and for bytes that cannot be theirs: the kernel
/// has then another set than we meant, which reading back shows.
pub(crate) fn set_attribute(set: &mut Set<'_, Ipv4Addr>, attribute: u32, bytes: &[u8]) {
    let fits = match attribute {
        nftnl_sys::NFTNL_SET_FLAGS
        | nftnl_sys::NFTNL_SET_KEY_TYPE
        | nftnl_sys::NFTNL_SET_KEY_LEN
        | nftnl_sys::NFTNL_SET_DATA_TYPE
        | nftnl_sys::NFTNL_SET_DATA_LEN
        | nftnl_sys::NFTNL_SET_GC_INTERVAL
        | nftnl_sys::NFTNL_SET_DESC_SIZE => bytes.len() == 4,
        // The library looks for a zero behind the last of 16.
        nftnl_sys::NFTNL_SET_DESC_CONCAT => bytes.len() < 16,
        nftnl_sys::NFTNL_SET_USERDATA => true,
        _ => false,
    };
    let (Ok(attribute), Ok(len), true) =
        (u16::try_from(attribute), u32::try_from(bytes.len()), fits)
    else {
        return;
    };
    let set = set.as_ptr().as_ptr();
    // SAFETY: the set is borrowed for as long as this takes; the library reads `len` bytes, as many as the
    // attribute has.
    let result =
        unsafe { nftnl_sys::nftnl_set_set_data(set, attribute, bytes.as_ptr().cast(), len) };
    if result < 0 {
        no_memory();
    }
}
