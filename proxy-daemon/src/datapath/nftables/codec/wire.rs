//! How are netlink messages and attributes laid out in bytes?
//!
//! Invariants: numbers inside attributes are in network byte order, headers in host byte order; every
//! attribute is padded to four bytes with zeros; nested attributes carry no `NLA_F_NESTED`, so that
//! what we write has the very bytes that the kernel prints back.

/// Bytes that a netlink message header and the nfnetlink header after it take.
pub(super) const HEADERS: usize = 20;
/// `nlmsg_type`: the kernel's answer to one message.
pub(super) const NLMSG_ERROR: u16 = 2;
/// `nlmsg_type`: the end of a dump.
pub(super) const NLMSG_DONE: u16 = 3;
/// `nlmsg_flags`: to the kernel.
pub(super) const NLM_F_REQUEST: u16 = 0x1;
/// `nlmsg_flags`: answer also when all went well.
pub(super) const NLM_F_ACK: u16 = 0x4;
/// `nlmsg_flags`: the objects changed while they were dumped.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
/// `nlmsg_flags` of a request: all objects of the kind.
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// `nlmsg_flags` of a new object: fail if it exists.
pub(super) const NLM_F_EXCL: u16 = 0x200;
/// `nlmsg_flags` of a new object: create it.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// `nlmsg_flags` of a new rule: behind the others.
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// The first message of a transaction.
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
/// The last message of a transaction.
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of `nlmsg_type`.
pub(super) const NFTABLES: u16 = 10;

/// Appends attributes to a byte string.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// What was written so far.
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// What was written.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends attributes that were written elsewhere.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// How many bytes were written.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends an attribute. A payload above 65,531 bytes cannot be said and is cut to nothing.
    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        let payload = if payload.len() > 65_531 { &[] } else { payload };
        let len = u16::try_from(payload.len() + 4).unwrap_or(4);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    /// Appends a string with its closing zero.
    pub(crate) fn attr_str(&mut self, kind: u16, text: &str) {
        self.nest(kind, |w| {
            w.bytes.extend_from_slice(text.as_bytes());
            w.bytes.push(0);
        });
    }

    /// Appends a number of 32 bits.
    pub(crate) fn attr_u32(&mut self, kind: u16, number: u32) {
        self.attr(kind, &number.to_be_bytes());
    }

    /// Appends a number of 64 bits.
    pub(crate) fn attr_u64(&mut self, kind: u16, number: u64) {
        self.attr(kind, &number.to_be_bytes());
    }

    /// Appends an attribute whose payload `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind);
        fill(self);
        self.close(start);
    }

    /// Begins an attribute; answers what [`Writer::close`] wants to know.
    pub(super) fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Ends an attribute: its length is now known.
    pub(super) fn close(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 2) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
        self.pad();
    }

    /// Begins a message; answers what [`Writer::close_message`] wants to know.
    pub(super) fn open_message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        id: u16,
    ) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&id.to_be_bytes());
        start
    }

    /// Ends a message: its length is now known.
    pub(super) fn close_message(&mut self, start: usize) {
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 4) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Adds flags to a message that was written already.
    pub(super) fn add_flags(&mut self, message: usize, flags: u16) {
        if let Some([low, high]) = self.bytes.get_mut(message + 6..message + 8) {
            let old = u16::from_ne_bytes([*low, *high]);
            [*low, *high] = (old | flags).to_ne_bytes();
        }
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One attribute that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attr<'a> {
    /// Its type, without the flag for nested ones.
    pub(crate) kind: u16,
    /// Its payload.
    pub(crate) payload: &'a [u8],
}

impl Attr<'_> {
    /// The payload as a number of 32 bits.
    pub(crate) fn u32(self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }

    /// The payload as a number of 64 bits.
    pub(crate) fn u64(self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_be_bytes)
    }

    /// The payload as text without its closing zero.
    pub(crate) fn str(self) -> Option<String> {
        let text = self.payload.strip_suffix(&[0]).unwrap_or(self.payload);
        String::from_utf8(text.to_vec()).ok()
    }
}

/// Reads a run of attributes; stops at the first that makes no sense.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of this type.
    pub(crate) fn get(self, kind: u16) -> Option<Attr<'a>> {
        let mut attrs = self;
        attrs.find(|attr| attr.kind == kind)
    }
}

#[expect(
    clippy::copy_iterator,
    reason = "a view; each look begins at the start"
)]
impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attr { kind, payload })
    }
}

/// One message that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_flags`.
    pub(super) flags: u16,
    /// `nlmsg_seq`.
    pub(super) seq: u32,
    /// All after the netlink header.
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after the nfnetlink header.
    pub(super) fn attrs(self) -> Attrs<'a> {
        Attrs(self.body.get(4..).unwrap_or(&[]))
    }
}

/// Reads a run of messages; stops at the first that makes no sense.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let field = |at: usize| -> Option<[u8; 4]> { self.0.get(at..at + 4)?.try_into().ok() };
        let len = usize::try_from(u32::from_ne_bytes(field(0)?)).ok()?;
        let [k0, k1, f0, f1] = field(4)?;
        let seq = u32::from_ne_bytes(field(8)?);
        let body = self.0.get(16..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq,
            body,
        })
    }
}
