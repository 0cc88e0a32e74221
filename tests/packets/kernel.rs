//! The packet code in the kernel: the committed object, loaded and run packet by packet.
//!
//! Nothing is attached. The programs are loaded once, as the verifier takes its time; each test has them alone,
//! with tables that hold nothing but its own. Invariant: every packet claims to be on the loopback interface, the only one that
//! the kernel gives to test runs at XDP; what the table says of that interface is what the test wants of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use proxy_common::{
    Address, BITMAP_WORDS, Flow, FlowKey, FrontendKey, Interface, Reason, Settings, SourceRangeKey,
};
use proxy_ebpf::Verdict;
use proxy_tests::ebpf::object;
use zerocopy::IntoBytes as _;

use crate::frame::ETHERNET;
use crate::node::{Hook, Node, Outcome};
use crate::world::{Family, World};

/// By which program packets arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Tc,
    Xdp,
}

/// A node whose programs are in the kernel.
pub(crate) struct Kernel {
    arrival: Arrival,
    loaded: MutexGuard<'static, Option<Ebpf>>,
    interfaces: Vec<(u32, Interface)>,
    /// What former tests counted, by reason.
    counted_before: Vec<u64>,
}

static LOADED: Mutex<Option<Ebpf>> = Mutex::new(None);

/// The tables of a test are small.
const ENTRIES: u32 = 4096;
const TABLES: &[&str] = &[
    "flows4",
    "frontends4",
    "services4",
    "records4",
    "slots4",
    "backends4",
    "ranges4",
    "local4",
    "flows6",
    "frontends6",
    "services6",
    "records6",
    "slots6",
    "backends6",
    "ranges6",
    "local6",
];
const LOOPBACK: u32 = 1;
/// `TC_ACT_SHOT`, `TC_ACT_REDIRECT` and what lets the next program decide.
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
const NEXT: u32 = u32::MAX;
/// `XDP_DROP`, `XDP_PASS` and `XDP_TX`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// `offsetof(struct __sk_buff, …)` in bytes, and its size.
const MARK: usize = 8;
const INGRESS_INTERFACE: usize = 36;
const INTERFACE: usize = 40;
const CONTEXT: usize = 192;

impl Kernel {
    pub(crate) fn new(world: &World, arrival: Arrival) -> Self {
        // A test that failed leaves tables that are emptied as well.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.get_or_insert_with(load);
        let mut kernel = Self {
            arrival,
            loaded,
            interfaces: world.interfaces.clone(),
            counted_before: Vec::new(),
        };
        kernel.array("bitmap", &vec![0_u64; BITMAP_WORDS as usize]);
        kernel.array("marked", &vec![[0_u8; 64]; BITMAP_WORDS as usize]);
        kernel.empty::<1>("4");
        kernel.empty::<4>("6");
        kernel.fill("4", &world.v4);
        kernel.fill("6", &world.v6);
        let counted = Reason::ALL.iter().map(|reason| kernel.sum(*reason));
        kernel.counted_before = counted.collect();
        kernel
    }

    /// Removes what a former test left in the tables that are looked up by key.
    fn empty<const WORDS: usize>(&mut self, suffix: &str)
    where
        Address<WORDS>: Pod,
        Flow<WORDS>: Pod,
        FlowKey<WORDS>: Pod,
        FrontendKey<WORDS>: Pod,
        SourceRangeKey<WORDS>: Pod,
    {
        let name = |table: &str| format!("{table}{suffix}");
        let mut flows = self.flows::<WORDS>(&name("flows"));
        for key in sorted(flows.keys()) {
            flows.remove(&key).expect("it is there");
        }
        let mut frontends: HashMap<_, FrontendKey<WORDS>, proxy_common::Frontend> =
            self.map(&name("frontends")).try_into().expect("a hash map");
        for key in sorted(frontends.keys()) {
            frontends.remove(&key).expect("it is there");
        }
        let mut local: HashMap<_, Address<WORDS>, proxy_common::LocalAddress> =
            self.map(&name("local")).try_into().expect("a hash map");
        for key in sorted(local.keys()) {
            local.remove(&key).expect("it is there");
        }
        let mut ranges: LpmTrie<_, SourceRangeKey<WORDS>, u32> =
            self.map(&name("ranges")).try_into().expect("a trie");
        let keys: Vec<_> = ranges.keys().collect();
        for key in keys {
            ranges.remove(&key.expect("a key")).expect("it is there");
        }
    }

    fn programs(&mut self) -> &mut Ebpf {
        self.loaded.as_mut().expect("they are loaded")
    }

    /// How often a reason was counted since the programs were loaded.
    fn sum(&mut self, reason: Reason) -> u64 {
        let counters: PerCpuArray<&mut MapData, u64> =
            self.map("counters").try_into().expect("an array");
        let values = counters.get(&(reason as u32), 0).expect("a counter");
        values.iter().sum()
    }

    fn fill<const WORDS: usize>(&mut self, suffix: &str, family: &Family<WORDS>)
    where
        Address<WORDS>: Pod,
        FrontendKey<WORDS>: Pod,
        proxy_common::Backend<WORDS>: Pod,
        Settings<WORDS>: Pod,
        SourceRangeKey<WORDS>: Pod,
    {
        let name = |table: &str| format!("{table}{suffix}");
        self.array(&name("settings"), &[family.settings]);
        self.array(&name("records"), &family.records);
        let services: Vec<u32> = (0..family.records.len() as u32).collect();
        self.array(&name("services"), &services);
        self.array(&name("slots"), &family.slots);
        self.array(&name("backends"), &family.backends);
        let mut frontends: HashMap<_, FrontendKey<WORDS>, proxy_common::Frontend> =
            self.map(&name("frontends")).try_into().expect("a hash map");
        for (key, frontend) in &family.frontends {
            frontends.insert(key, frontend, 0).expect("room");
        }
        let mut local: HashMap<_, Address<WORDS>, proxy_common::LocalAddress> =
            self.map(&name("local")).try_into().expect("a hash map");
        for (address, what) in &family.local {
            local.insert(address, what, 0).expect("room");
        }
        let mut ranges: LpmTrie<_, SourceRangeKey<WORDS>, u32> =
            self.map(&name("ranges")).try_into().expect("a trie");
        for (set, address, length) in &family.source_ranges {
            let key = SourceRangeKey {
                raw_set: set.to_be(),
                address: *address,
            };
            ranges
                .insert(&Key::new(32 + length, key), 1, 0)
                .expect("room");
        }
        let mut bitmap: Array<_, u64> = self.map("bitmap").try_into().expect("an array");
        for address in family.of_concern() {
            let (word, bit) = address.bit();
            let bits = bitmap.get(&word, 0).expect("a word");
            bitmap.set(word, bits | 1 << bit, 0).expect("a word");
        }
    }

    fn map(&mut self, name: &str) -> &mut Map {
        self.programs().map_mut(name).expect(name)
    }

    fn array<T: Pod>(&mut self, name: &str, values: &[T]) {
        let mut array: Array<&mut MapData, T> = self.map(name).try_into().expect("an array");
        for (index, value) in (0..).zip(values) {
            array.set(index, *value, 0).expect("room");
        }
    }

    fn flows<const WORDS: usize>(
        &mut self,
        name: &str,
    ) -> HashMap<&mut MapData, FlowKey<WORDS>, Flow<WORDS>>
    where
        FlowKey<WORDS>: Pod,
        Flow<WORDS>: Pod,
    {
        self.map(name).try_into().expect("a hash map")
    }

    fn run(&mut self, hook: Hook, mark: u32, bytes: &[u8]) -> Outcome {
        let mut context = [0_u8; CONTEXT];
        context[MARK..MARK + 4].copy_from_slice(mark.as_bytes());
        context[INTERFACE..INTERFACE + 4].copy_from_slice(LOOPBACK.as_bytes());
        // It came from elsewhere.
        context[INGRESS_INTERFACE..INGRESS_INTERFACE + 4].copy_from_slice(LOOPBACK.as_bytes());
        let (mut context_out, mut data_out) = ([0_u8; CONTEXT], vec![0; 4096]);
        let is_xdp = hook == Hook::In && self.arrival == Arrival::Xdp;
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut data_out),
            ctx_in: (!is_xdp).then_some(&context[..]),
            ctx_out: (!is_xdp).then_some(&mut context_out[..]),
            ..TestRunOptions::default()
        };
        let name = match (hook, is_xdp) {
            (Hook::In, true) => "proxy_xdp",
            (Hook::In, false) => "proxy_in",
            (Hook::Out, _) => "proxy_out",
        };
        let program = self.programs().program(name).expect("the program");
        let result = if is_xdp {
            let program: &Xdp = program.try_into().expect("an XDP program");
            program.test_run(options)
        } else {
            let program: &SchedClassifier = program.try_into().expect("a TC program");
            program.test_run(options)
        };
        let result = result.expect("a test run");
        data_out.truncate(result.data_size_out as usize);
        let mut mark_out = [0; 4];
        mark_out.copy_from_slice(&context_out[MARK..MARK + 4]);
        Outcome {
            verdict: match (is_xdp, result.return_value) {
                (false, NEXT) | (true, XDP_PASS) => Verdict::Pass,
                (false, SHOT) | (true, XDP_DROP) => Verdict::Drop,
                (false, REDIRECT) | (true, XDP_TX) => Verdict::Bounce,
                (_, other) => panic!("{name} returned {other}"),
            },
            bytes: data_out,
            mark: u32::from_ne_bytes(mark_out),
        }
    }
}

impl Node for Kernel {
    fn pass(&mut self, hook: Hook, interface: u32, mark: u32, bytes: &[u8]) -> Outcome {
        let mut interfaces = self.interfaces.iter();
        let (_, facts) = *interfaces
            .find(|(index, _)| *index == interface)
            .expect("an interface");
        let mut table: Array<&mut MapData, Interface> =
            self.map("interfaces").try_into().expect("an array");
        table.set(LOOPBACK, facts, 0).expect("room");
        self.run(hook, mark, bytes)
    }

    fn shortest(&self) -> usize {
        // A test run takes nothing that ends in the network header.
        ETHERNET + 40
    }

    fn forget(&mut self, nth: usize) -> bool {
        let mut v4 = self.flows::<1>("flows4");
        let key = sorted(v4.keys()).get(nth).copied();
        let mut is_found = key.is_some_and(|key| v4.remove(&key).is_ok());
        let mut v6 = self.flows::<4>("flows6");
        let key = sorted(v6.keys()).get(nth).copied();
        is_found |= key.is_some_and(|key| v6.remove(&key).is_ok());
        is_found
    }

    fn age(&mut self) {
        // As if no packet had been seen for long: the clock is the kernel's.
        let mut v4 = self.flows::<1>("flows4");
        for key in sorted(v4.keys()) {
            let mut flow = v4.get(&key, 0).expect("the entry");
            flow.last_seen = flow.last_seen.wrapping_sub(1);
            v4.insert(key, flow, 0).expect("room");
        }
        let mut v6 = self.flows::<4>("flows6");
        for key in sorted(v6.keys()) {
            let mut flow = v6.get(&key, 0).expect("the entry");
            flow.last_seen = flow.last_seen.wrapping_sub(1);
            v6.insert(key, flow, 0).expect("room");
        }
    }

    fn counted(&mut self, reason: Reason) -> u64 {
        self.sum(reason) - self.counted_before[reason as usize]
    }
}

/// Loads the programs, with small tables.
fn load() -> Ebpf {
    let mut loader = EbpfLoader::new();
    for table in TABLES {
        loader.map_max_entries(table, ENTRIES);
    }
    let object = std::fs::read(object()).expect("the object");
    let mut programs = loader.load(&object).expect("the maps");
    for name in ["proxy_in", "proxy_out"] {
        let program = programs.program_mut(name).expect("the program");
        let program: &mut SchedClassifier = program.try_into().expect("a TC program");
        program.load().expect("the verifier accepts it");
    }
    let program = programs.program_mut("proxy_xdp").expect("the program");
    let program: &mut Xdp = program.try_into().expect("an XDP program");
    program.load().expect("the verifier accepts it");
    programs
}

/// The keys of a table, in their order.
fn sorted<K: Ord>(keys: impl Iterator<Item = Result<K, aya::maps::MapError>>) -> Vec<K> {
    let mut keys: Vec<K> = keys.map(|key| key.expect("a key")).collect();
    keys.sort();
    keys
}
