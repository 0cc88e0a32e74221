//! The packet code on the host, with tables in memory.

use std::collections::BTreeMap;

use proxy_common::{
    Address, Backend, Flow, FlowKey, Frontend, FrontendKey, Interface, LocalAddress, Reason,
    Record, Settings,
};
use proxy_ebpf::{
    Checksum, Family as _, Packet, Part, Scratch, Sum, Tables, Unwritten, V4, V6, Verdict, egress,
    ingress,
};

use crate::frame::ETHERNET;
use crate::node::{Hook, Node, Outcome};
use crate::world::{Family, World};

/// A node in memory.
pub(crate) struct Host {
    v4: Memory<1>,
    v6: Memory<4>,
}

impl Host {
    pub(crate) fn new(world: &World, seed: u32) -> Self {
        Self {
            v4: Memory::new(&world.v4, world, seed),
            v6: Memory::new(&world.v6, world, seed),
        }
    }

    /// Lets another CPU have the same IPv4 packet just before the nth entry from now on is added.
    pub(crate) fn interrupt(&mut self, nth: usize, run: Interrupt<1>) {
        self.v4.interrupt = Some((nth, run));
    }

    /// The tables of IPv4.
    pub(crate) fn v4(&mut self) -> &mut Memory<1> {
        &mut self.v4
    }
}

impl Node for Host {
    fn pass(&mut self, hook: Hook, interface: u32, mark: u32, bytes: &[u8]) -> Outcome {
        let mut packet = Buffer::new(bytes, interface, mark);
        let ether_type = u16::from_be_bytes([bytes[12], bytes[13]]);
        let l3 = ETHERNET as u32;
        let (mut v4, mut v6) = (Scratch::EMPTY, Scratch::EMPTY);
        let verdict = match (ether_type, hook) {
            (V4::ETHER_TYPE, Hook::In) => {
                ingress::<V4, _, _, 1>(&mut packet, &mut self.v4, &mut v4, l3)
            }
            (V4::ETHER_TYPE, Hook::Out) => {
                egress::<V4, _, _, 1>(&mut packet, &mut self.v4, &mut v4, l3)
            }
            (V6::ETHER_TYPE, Hook::In) => {
                ingress::<V6, _, _, 4>(&mut packet, &mut self.v6, &mut v6, l3)
            }
            (V6::ETHER_TYPE, Hook::Out) => {
                egress::<V6, _, _, 4>(&mut packet, &mut self.v6, &mut v6, l3)
            }
            _ => Verdict::Pass,
        };
        Outcome {
            verdict,
            bytes: packet.bytes().to_vec(),
            mark: packet.mark,
        }
    }

    fn shortest(&self) -> usize {
        ETHERNET
    }

    fn forget(&mut self, nth: usize) -> bool {
        self.v4.forget(nth) | self.v6.forget(nth)
    }

    fn age(&mut self) {
        self.v4.now += 1;
        self.v6.now += 1;
    }

    fn counted(&mut self, reason: Reason) -> u64 {
        let of =
            |counted: &BTreeMap<Reason, u64>| counted.get(&reason).copied().unwrap_or_default();
        of(&self.v4.counted) + of(&self.v6.counted)
    }
}

/// What another CPU does.
type Interrupt<const WORDS: usize> = fn(&mut Memory<WORDS>);

/// The tables of one family in memory.
pub(crate) struct Memory<const WORDS: usize> {
    family: Family<WORDS>,
    interfaces: BTreeMap<u32, Interface>,
    flows: BTreeMap<FlowKey<WORDS>, Flow<WORDS>>,
    of_concern: Vec<Address<WORDS>>,
    counted: BTreeMap<Reason, u64>,
    random: u32,
    now: u32,
    /// What another CPU does just before the nth entry from now on is added.
    interrupt: Option<(usize, Interrupt<WORDS>)>,
}

impl<const WORDS: usize> Memory<WORDS> {
    fn new(family: &Family<WORDS>, world: &World, seed: u32) -> Self {
        Self {
            family: family.clone(),
            interfaces: world.interfaces.iter().copied().collect(),
            flows: BTreeMap::new(),
            of_concern: family.of_concern().collect(),
            counted: BTreeMap::new(),
            random: seed | 1,
            now: 1,
            interrupt: None,
        }
    }

    /// A packet that arrives at an interface.
    pub(crate) fn arrives(&mut self, interface: u32, bytes: &[u8])
    where
        Self: Tables<1>,
    {
        let mut packet = Buffer::new(bytes, interface, 0);
        ingress::<V4, _, _, 1>(&mut packet, self, &mut { Scratch::EMPTY }, ETHERNET as u32);
    }

    /// How many entries of flows there are.
    pub(crate) fn n_flows(&self) -> usize {
        self.flows.len()
    }

    fn forget(&mut self, nth: usize) -> bool {
        let key = self.flows.keys().nth(nth).copied();
        key.is_some_and(|key| self.flows.remove(&key).is_some())
    }
}

impl<const WORDS: usize> Tables<WORDS> for Memory<WORDS> {
    fn flow(&mut self, key: &FlowKey<WORDS>) -> Option<&mut Flow<WORDS>> {
        self.flows.get_mut(key)
    }

    fn add_flow(&mut self, key: &FlowKey<WORDS>, flow: &Flow<WORDS>) -> Result<(), Unwritten> {
        match self.interrupt.take() {
            Some((0, run)) => run(self),
            Some((n, run)) => self.interrupt = Some((n - 1, run)),
            None => {}
        }
        if self.flows.contains_key(key) {
            return Err(Unwritten);
        }
        self.flows.insert(*key, *flow);
        Ok(())
    }

    fn replace_flow(&mut self, key: &FlowKey<WORDS>, flow: &Flow<WORDS>) -> Result<(), Unwritten> {
        *self.flows.get_mut(key).ok_or(Unwritten)? = *flow;
        Ok(())
    }

    fn remove_flow(&mut self, key: &FlowKey<WORDS>) {
        self.flows.remove(key);
    }

    fn frontend(&mut self, key: &FrontendKey<WORDS>) -> Option<Frontend> {
        let mut frontends = self.family.frontends.iter();
        frontends
            .find(|(candidate, _)| candidate == key)
            .map(|(_, frontend)| *frontend)
    }

    fn record(&mut self, service: u32) -> Option<&Record> {
        self.family.records.get(service as usize)
    }

    fn slot(&mut self, index: u32) -> Option<u32> {
        self.family.slots.get(index as usize).copied()
    }

    fn backend(&mut self, id: u32) -> Option<&Backend<WORDS>> {
        self.family.backends.get(id as usize)
    }

    fn is_in_source_ranges(&mut self, set: u32, address: &Address<WORDS>) -> bool {
        let bits = |address: &Address<WORDS>| {
            let bytes = address.0.iter().flat_map(|word| word.to_ne_bytes());
            bytes.fold(0_u128, |bits, byte| bits << 8 | u128::from(byte))
        };
        let mut ranges = self.family.source_ranges.iter();
        ranges.any(|(of, prefix, length)| {
            let beyond = WORDS as u32 * 32 - length;
            *of == set && bits(prefix) >> beyond == bits(address) >> beyond
        })
    }

    fn local_address(&mut self, address: &Address<WORDS>) -> Option<LocalAddress> {
        let mut local = self.family.local.iter();
        local
            .find(|(candidate, _)| candidate == address)
            .map(|(_, local)| *local)
    }

    fn may_concern(&mut self, address: &Address<WORDS>) -> bool {
        self.of_concern.contains(address)
    }

    fn concern(&mut self, address: &Address<WORDS>) {
        self.of_concern.push(*address);
    }

    fn may_refuse(&mut self) -> bool {
        true
    }

    fn settings(&mut self) -> Option<&Settings<WORDS>> {
        Some(&self.family.settings)
    }

    fn interface(&mut self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index)
    }

    fn random(&mut self) -> u32 {
        // xorshift: the same in each run with the same seed.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }

    fn now(&mut self) -> u32 {
        self.now
    }

    fn count(&mut self, reason: Reason) {
        *self.counted.entry(reason).or_default() += 1;
    }
}

/// A packet in memory, aligned as the kernel does it: the network header at a multiple of four.
struct Buffer {
    /// Words, for their alignment; the packet begins after two bytes.
    words: Vec<u32>,
    length: usize,
    interface: u32,
    mark: u32,
}

impl Buffer {
    const PADDING: usize = 2;

    fn new(bytes: &[u8], interface: u32, mark: u32) -> Self {
        let mut buffer = Self {
            words: vec![0; (bytes.len() + Self::PADDING).div_ceil(4)],
            length: bytes.len(),
            interface,
            mark,
        };
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    fn bytes(&self) -> &[u8] {
        let all = zerocopy::IntoBytes::as_bytes(self.words.as_slice());
        &all[Self::PADDING..Self::PADDING + self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let all = zerocopy::IntoBytes::as_mut_bytes(self.words.as_mut_slice());
        &mut all[Self::PADDING..Self::PADDING + self.length]
    }
}

impl Packet for Buffer {
    fn at<T: Part>(&mut self, offset: u32) -> Option<&mut T> {
        let rest = self.bytes_mut().get_mut(offset as usize..)?;
        let (part, _) = T::mut_from_prefix(rest).ok()?;
        Some(part)
    }

    fn fix_checksum(&mut self, checksum: Checksum, change: Sum) -> Option<()> {
        let bytes = self.at::<[u8; 2]>(checksum.offset)?;
        let mut sum = u16::from_ne_bytes(*bytes);
        checksum.apply(&mut sum, change);
        *bytes = sum.to_ne_bytes();
        Some(())
    }

    fn length(&self) -> u32 {
        self.length as u32
    }

    fn resize(&mut self, length: u32) -> Option<()> {
        self.words
            .resize((length as usize + Self::PADDING).div_ceil(4), 0);
        self.length = length as usize;
        Some(())
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn is_from_this_node(&self) -> bool {
        false
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
}
