//! How does a set element become bytes?
//!
//! Invariants: equal elements have equal bytes, and an element that the kernel prints has the bytes
//! that we would write for it, once `write_normal` has put its attributes in our order; the key
//! comes first, and its length is known, so that elements can be sorted and found by it.

use nftnl_sys::libc;

use crate::datapath::nftables::ruleset::Verdict;
use crate::sys::netfilter::attributes::{Attrs, Writer};

/// `NFTA_LIST_ELEM`
pub(super) const LIST_ELEM: u16 = 1;
/// `NFTA_DATA_VALUE`
const DATA_VALUE: u16 = 1;
/// `NFTA_DATA_VERDICT`
const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`
const VERDICT_CODE: u16 = 1;
/// `NFTA_VERDICT_CHAIN`
const VERDICT_CHAIN: u16 = 2;

const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const USERDATA: u16 = 6;
const EXPR: u16 = 7;
const OBJECT: u16 = 9;
const KEY_END: u16 = 10;
const EXPRESSIONS: u16 = 11;
const INTERVAL_END: u32 = libc::NFT_SET_ELEM_INTERVAL_END.cast_unsigned();
/// Bytes of a comment that `nft` can show, without the closing zero.
const MAX_COMMENT: usize = 127;

/// The key of an element.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key<'a> {
    /// Just this.
    Exact(&'a [u8]),
    /// From the first to the second, both included; for concatenated keys.
    Range(&'a [u8], &'a [u8]),
    /// Where the interval that began before ends: the first key that is not in it.
    End(&'a [u8]),
}

/// What an element holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Data<'a> {
    /// Nothing.
    None,
    /// A verdict.
    Verdict(&'a Verdict),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// Writes an element without its surrounding `NFTA_LIST_ELEM`; answers how many bytes its key took.
pub(crate) fn write_element(w: &mut Writer, key: Key<'_>, data: Data<'_>, comment: &str) -> usize {
    let start = w.len();
    match key {
        Key::Exact(key) => w.nest(KEY, |w| w.attr(DATA_VALUE, key)),
        Key::Range(first, last) => {
            w.nest(KEY, |w| w.attr(DATA_VALUE, first));
            w.nest(KEY_END, |w| w.attr(DATA_VALUE, last));
        }
        Key::End(key) => {
            w.nest(KEY, |w| w.attr(DATA_VALUE, key));
            w.attr_u32(FLAGS, INTERVAL_END);
        }
    }
    let key_len = w.len() - start;
    match data {
        Data::None => {}
        Data::Verdict(verdict) => w.nest(DATA, |w| write_verdict(w, verdict)),
        Data::Bytes(bytes) => w.nest(DATA, |w| w.attr(DATA_VALUE, bytes)),
    }
    if !comment.is_empty() {
        w.attr(USERDATA, &comment_bytes(comment));
    }
    key_len
}

fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = verdict.code();
    w.nest(DATA_VERDICT, |w| {
        w.attr_u32(VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            w.attr_str(VERDICT_CHAIN, chain);
        }
    });
}

/// A comment as `nft` keeps it in an object's user data; none is no data.
pub(super) fn comment_bytes(comment: &str) -> Vec<u8> {
    if comment.is_empty() {
        return Vec::new();
    }
    let clean = comment.bytes().take(MAX_COMMENT).map(|b| {
        if b == b'"' || b == b'\\' || !(b' '..0x7f).contains(&b) {
            b'?'
        } else {
            b
        }
    });
    let len = comment.len().min(MAX_COMMENT) + 1;
    let head = [0, u8::try_from(len).unwrap_or(u8::MAX)];
    head.into_iter().chain(clean).chain([0]).collect()
}

/// An element that the kernel printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printed<'a>(pub(super) Attrs<'a>);

impl<'a> Printed<'a> {
    /// Writes it in our order, without what the kernel adds; answers how many bytes its key took.
    ///
    /// What others add is written too, so that it is no element of ours: one with a quota or a limit
    /// matches as long as that lasts, one with a time goes.
    pub(crate) fn write_normal(self, w: &mut Writer) -> usize {
        let start = w.len();
        let mut key_len = 0;
        for kind in [
            KEY,
            KEY_END,
            FLAGS,
            DATA,
            USERDATA,
            TIMEOUT,
            EXPR,
            OBJECT,
            EXPRESSIONS,
        ] {
            if kind == DATA {
                key_len = w.len() - start;
            }
            if let Some(attr) = self.0.get(kind) {
                w.attr(kind, attr.payload);
            }
        }
        key_len
    }

    /// The bytes of its key.
    pub(crate) fn key(self) -> Option<&'a [u8]> {
        self.value(KEY)
    }

    /// The bytes that it holds.
    pub(crate) fn data(self) -> Option<&'a [u8]> {
        self.value(DATA)
    }

    /// Timeout and remaining time. Unit: milliseconds.
    pub(crate) fn timeout(self) -> Option<(u64, u64)> {
        let number = |kind| self.0.get(kind)?.u64();
        Some((number(TIMEOUT)?, number(EXPIRATION)?))
    }

    /// An element that [`write_element`] wrote.
    pub(crate) const fn of(bytes: &'a [u8]) -> Self {
        Self(Attrs(bytes))
    }

    /// The last key of its range.
    pub(crate) fn last_key(self) -> Option<&'a [u8]> {
        self.value(KEY_END)
    }

    /// Whether its key is the first one after an interval.
    pub(crate) fn is_end(self) -> bool {
        self.0.u32(FLAGS) == Some(INTERVAL_END)
    }

    /// The verdict that it holds.
    pub(crate) fn verdict(self) -> Option<Verdict> {
        let verdict = self.0.inside(DATA).inside(DATA_VERDICT);
        let chain = || Some(verdict.str(VERDICT_CHAIN)?.to_owned().into());
        match verdict.u32(VERDICT_CODE)?.cast_signed() {
            libc::NF_DROP => Some(Verdict::Drop),
            libc::NF_ACCEPT => Some(Verdict::Accept),
            libc::NFT_JUMP => Some(Verdict::Jump(chain()?)),
            libc::NFT_GOTO => Some(Verdict::Goto(chain()?)),
            _ => None,
        }
    }

    /// Its comment.
    pub(crate) fn comment(self) -> Option<String> {
        // Type, length, text, closing zero.
        let comment = self.0.get(USERDATA)?.payload.get(2..)?;
        let text = comment.strip_suffix(&[0]).unwrap_or(comment);
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn value(self, kind: u16) -> Option<&'a [u8]> {
        Some(self.0.inside(kind).get(DATA_VALUE)?.payload)
    }
}

/// Writes an element with its timeout and remaining time, in milliseconds.
pub(crate) fn write_timed(
    w: &mut Writer,
    key: &[u8],
    data: &[u8],
    timeout: u64,
    left: u64,
) -> usize {
    let key_len = write_element(w, Key::Exact(key), Data::Bytes(data), "");
    w.attr_u64(TIMEOUT, timeout);
    w.attr_u64(EXPIRATION, left);
    key_len
}
