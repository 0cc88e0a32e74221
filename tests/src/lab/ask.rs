//! The client: one request to an address, and the name of the server that answered.
//!
//! The calling thread must be inside the client's namespace (`Netns::enter`).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The server of this name answered, and saw this source address.
    Answered {
        /// The server's name.
        by: String,
        /// The source address it saw.
        saw: String,
    },
    /// An error came back at once.
    Refused,
    /// Nothing came back.
    Silence,
    /// Something else went wrong.
    Failed(String),
}

impl Outcome {
    fn of(answer: &str) -> Self {
        let line = answer.lines().last().unwrap_or_default();
        match line.split_once(' ') {
            Some((by, saw)) => Self::Answered {
                by: by.into(),
                saw: saw.trim().into(),
            },
            None => Self::Failed(format!("an answer that says nothing: {answer:?}")),
        }
    }

    fn failed(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silence,
            _ => Self::Failed(error.to_string()),
        }
    }

    /// The name of the server that answered.
    pub fn by(&self) -> Option<&str> {
        match self {
            Self::Answered { by, .. } => Some(by),
            Self::Refused | Self::Silence | Self::Failed(_) => None,
        }
    }
}

/// One TCP connection with one request.
pub fn tcp(to: SocketAddr) -> Outcome {
    tcp_exchange(to).map_or_else(|e| Outcome::failed(&e), |answer| Outcome::of(&answer))
}

fn tcp_exchange(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One datagram from a new port, and its answer.
pub fn udp(to: SocketAddr) -> Outcome {
    udp_exchange(to).map_or_else(|e| Outcome::failed(&e), |answer| Outcome::of(&answer))
}

fn udp_exchange(to: SocketAddr) -> std::io::Result<String> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .expect("a literal address");
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"hello\n")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Asks until `wanted` answers, without a pause; how long that took, or nothing at the deadline.
pub fn until(
    deadline: Duration,
    mut ask: impl FnMut() -> Outcome,
    wanted: &str,
) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < deadline {
        if ask().by() == Some(wanted) {
            return Some(start.elapsed());
        }
    }
    None
}
