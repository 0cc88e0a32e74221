//! A UDP client that never stops, and an endpoint that never answers.
//!
//! Invariant: a sender keeps its socket and with it its source port, so that its datagrams are one flow; each holds the sender's name.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::Netns;

/// How often a sender sends.
const PACE: Duration = Duration::from_millis(5);

/// What came of a sender's datagrams so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Handed to the kernel, also those that it refused: a datagram that its output rules drop fails.
    pub n_sent: usize,
    /// Refused by ICMP port unreachable.
    pub n_refused: usize,
    /// Answers, by the name of the server.
    pub answers: BTreeMap<String, usize>,
}

impl Tally {
    /// How many answers this server gave.
    pub fn n_answers(&self, server: &str) -> usize {
        self.answers.get(server).copied().unwrap_or(0)
    }
}

/// Sends to one destination from one source port until it is dropped.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sender {
    /// Starts one in a namespace; its datagrams hold this number.
    pub fn start(ns: &Netns, from: SocketAddr, to: SocketAddr, number: u32) -> Self {
        let socket = ns.enter(|| {
            let socket = UdpSocket::bind(from).expect("the port is free");
            // Where there is no route yet, the next attempt may find one.
            drop(socket.connect(to));
            socket
        });
        socket.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (told, counts) = (Arc::clone(&stop), Arc::clone(&tally));
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                step(&socket, to, number, &counts);
                thread::sleep(PACE);
            }
        });
        Self {
            stop,
            tally,
            thread: Some(thread),
        }
    }

    /// What came of it so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }
}

fn step(socket: &UdpSocket, to: SocketAddr, number: u32, tally: &Mutex<Tally>) {
    let sent = socket.send(&number.to_be_bytes());
    let mut tally = tally.lock().unwrap();
    tally.n_sent += 1;
    match sent {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => tally.n_refused += 1,
        Err(error) if error.kind() == ErrorKind::NotConnected => drop(socket.connect(to)),
        // What other ICMP errors say passes.
        Ok(_) | Err(_) => {}
    }
    let mut buffer = [0; 512];
    loop {
        match socket.recv(&mut buffer) {
            Ok(n) => {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let name = text.split(' ').next().unwrap_or_default().to_owned();
                *tally.answers.entry(name).or_default() += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => tally.n_refused += 1,
            Err(_) => {}
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Receives datagrams and does not answer.
#[derive(Debug)]
pub struct Sink(UdpSocket);

impl Sink {
    /// Opens one in a namespace that owns the address.
    pub fn open(ns: &Netns, at: SocketAddr) -> Self {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match ns.enter(|| UdpSocket::bind(at)) {
                Ok(socket) => {
                    socket.set_nonblocking(true).unwrap();
                    return Self(socket);
                }
                // A program that is just being started may still hold the former one.
                Err(error) => assert!(Instant::now() < deadline, "{at}: {error}"),
            }
            thread::sleep(PACE);
        }
    }

    /// How often each sender was heard since the last call.
    pub fn heard(&self) -> BTreeMap<u32, usize> {
        let mut heard = BTreeMap::new();
        let mut buffer = [0; 4];
        while self.0.recv(&mut buffer).is_ok() {
            *heard.entry(u32::from_be_bytes(buffer)).or_default() += 1;
        }
        heard
    }
}
