//! How is it measured: connections timed one by one, many at a time, and in a loop that sees changes arrive.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use proxy_tests::lab::stats::{median, ms};
use proxy_tests::netns::Netns;

use proxy_tests::world::many::{GENERATIONS, Size};

/// Ends a connection with a reset, so that neither side keeps its port in `TIME_WAIT`.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    drop(setsockopt(&stream.as_fd(), sockopt::Linger, &linger).map_err(|e| e.to_string()));
}

/// Waits for the server's word, so that no connection is behind us in its queue, and ends the connection.
fn finish(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut word = [0; 64];
    let _: usize = stream
        .read(&mut word)
        .context("a connection without an answer")?;
    reset(&stream);
    Ok(())
}

/// The median time of `connect()`. Unit: microseconds.
pub(crate) fn connect_us(client: &Netns, to: SocketAddr, n: usize) -> Result<f64> {
    client.enter(|| {
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            let start = Instant::now();
            let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
            finish(stream)?;
        }
        Ok(median(&times))
    })
}

/// New connections per second with 16 in flight.
pub(crate) fn connections_per_second(
    client: &Netns,
    to: SocketAddr,
    time: Duration,
) -> Result<f64> {
    const IN_FLIGHT: usize = 16;
    let (made, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..IN_FLIGHT)
            .map(|_| {
                scope.spawn(|| {
                    client.enter(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let stream = TcpStream::connect(to)
                                .with_context(|| format!("connect to {to}"))?;
                            finish(stream)?;
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok::<_, anyhow::Error>(())
                    })
                })
            })
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker does not panic"))
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    Ok(made.into_inner() as f64 / start.elapsed().as_secs_f64())
}

/// The median time of a request and its answer on one open UDP flow. Unit: microseconds.
pub(crate) fn round_trip_us(client: &Netns, to: SocketAddr, n: usize) -> Result<f64> {
    client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut datagram = [7; 64];
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            let start = Instant::now();
            socket.send(&datagram)?;
            let _: usize = socket
                .recv(&mut datagram)
                .with_context(|| format!("no answer from {to}"))?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(&times))
    })
}

/// Which generation of endpoints a new connection reaches; nothing if none answers.
pub(crate) fn generation(size: Size, to: SocketAddr) -> Option<u32> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut text = [0; 64];
    let length = stream.read(&mut text).ok()?;
    reset(&stream);
    let address: Ipv4Addr = std::str::from_utf8(&text[..length])
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(size.generation_of(address))
}

/// The generation that the newest connection of the loop met.
pub(crate) struct Latest(AtomicU32);

impl Latest {
    /// Waits until a connection has met `generation`; whether one did in time.
    pub(crate) fn wait_for(&self, generation: u32, limit: Duration) -> bool {
        let start = Instant::now();
        while self.0.load(Ordering::Relaxed) != Size::turn(generation) {
            if start.elapsed() > limit {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// The results of a loop of connections while changes were made.
pub(crate) struct Watched {
    /// When each connection began, and which generation it reached.
    seen: Vec<(Instant, Option<u32>)>,
}

impl Watched {
    /// Connects again and again while `change` runs, and a moment longer.
    pub(crate) fn during<T>(
        client: &Netns,
        size: Size,
        to: SocketAddr,
        pause: Duration,
        change: impl FnOnce(&Latest) -> T,
    ) -> (Self, T) {
        let stop = AtomicBool::new(false);
        let latest = Latest(AtomicU32::new(u32::MAX));
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                client.enter(|| {
                    let mut seen = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        let met = generation(size, to);
                        latest.0.store(met.unwrap_or(u32::MAX), Ordering::Relaxed);
                        seen.push((start, met));
                        if !pause.is_zero() {
                            thread::sleep(pause);
                        }
                    }
                    seen
                })
            });
            let value = change(&latest);
            stop.store(true, Ordering::Relaxed);
            (
                Self {
                    seen: watcher.join().expect("the watcher does not panic"),
                },
                value,
            )
        })
    }

    /// From each change to the start of the first connection that met it, or a later one made by then;
    /// infinite if none did. Unit: milliseconds.
    pub(crate) fn latencies(&self, changes: &[(Instant, u32)]) -> Vec<f64> {
        let of = |n: usize| {
            let (at, _) = changes[n];
            // Turns come round: the change before this one has that of the last one left out.
            let candidates = changes[n..].iter().take(GENERATIONS as usize - 1);
            self.seen
                .iter()
                .skip(self.seen.partition_point(|(start, _)| *start < at))
                .find(|(start, met)| {
                    let by_then = candidates.clone().take_while(|(at, _)| at <= start);
                    by_then
                        .into_iter()
                        .any(|(_, g)| *met == Some(Size::turn(*g)))
                })
                .map_or(f64::INFINITY, |(start, _)| ms(start.duration_since(at)))
        };
        (0..changes.len()).map(of).collect()
    }

    /// Connections that were not answered.
    pub(crate) fn n_failed(&self) -> usize {
        self.seen.iter().filter(|(_, met)| met.is_none()).count()
    }
}
