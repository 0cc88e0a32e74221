//! The servers: they answer with their name and the client's address.
//!
//! TCP speaks enough HTTP for curl; UDP answers each datagram. A server lives until the process ends: its namespace goes with it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Answers TCP connections to `address` inside `ns` with `name` and the client's address.
///
/// # Errors
/// When the address cannot be bound.
pub fn tcp(ns: &Netns, address: SocketAddr, name: &str) -> Result<()> {
    let listener = ns
        .enter(|| TcpListener::bind(address))
        .with_context(|| format!("{name} cannot listen on {address}/tcp"))?;
    let name = name.to_owned();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // One after the other: a client that says nothing is given up soon.
            drop(answer(connection, &name));
        }
    });
    Ok(())
}

fn answer(mut connection: TcpStream, name: &str) -> std::io::Result<()> {
    let peer = connection.peer_addr()?;
    connection.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut request = [0; 1024];
    let _: usize = connection.read(&mut request)?;
    let body = format!("{name} {}\n", peer.ip().to_canonical());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(format!("{head}{body}").as_bytes())
}

/// Answers datagrams to `address` inside `ns` with `name` and the client's address.
///
/// # Errors
/// When the address cannot be bound.
pub fn udp(ns: &Netns, address: SocketAddr, name: &str) -> Result<()> {
    let socket = ns
        .enter(|| UdpSocket::bind(address))
        .with_context(|| format!("{name} cannot listen on {address}/udp"))?;
    let name = name.to_owned();
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((_, peer)) = socket.recv_from(&mut datagram) {
            let body = format!("{name} {}\n", peer.ip().to_canonical());
            drop(socket.send_to(body.as_bytes(), peer));
        }
    });
    Ok(())
}
