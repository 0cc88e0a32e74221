//! The fake API server as a program: for the demo, for measurements, and for a person with kubectl.
//!
//! It serves a directory of manifests, followed as it changes, or generated objects. `GET /control/…` on the control address makes
//! things go wrong.
#![expect(clippy::print_stdout, reason = "a program for people and scripts")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Parser;
use proxy_daemon::watch::ObjectKind;
use proxy_tests::fake_api::{FakeApi, Fault, RequestKind, Streaming, read_directory};
use proxy_tests::world::many::Size;

/// A scripted Kubernetes API server with Services, EndpointSlices, Nodes and ServiceCIDRs.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// Where to listen for commands.
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Serve the manifests of this directory, and follow it.
    #[arg(long)]
    manifests: Option<PathBuf>,
    /// Generate so many Services.
    #[arg(long, default_value_t = 0)]
    services: u32,
    /// Give each generated Service so many endpoints.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// The name of the generated Node.
    #[arg(long, default_value = "node-0")]
    node: String,
    /// Write a kubeconfig here.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listen = arguments.listen;
    let api = FakeApi::start_at(move |address| TcpListener::bind(address.unwrap_or(listen)))?;
    if arguments.services > 0 {
        let size = Size {
            services: arguments.services,
            endpoints: arguments.endpoints,
        };
        api.put_all(size.objects(&arguments.node));
    }
    if let Some(directory) = &arguments.manifests {
        api.replace_all(read_directory(directory)?);
    }
    if let Some(path) = &arguments.write_kubeconfig {
        api.write_kubeconfig(path)?;
    }
    println!("listening on {}", api.url());
    let api = std::sync::Arc::new(api);
    if let Some(address) = arguments.control {
        let listener = TcpListener::bind(address).context("the control address cannot be used")?;
        println!("control on http://{}/control/help", listener.local_addr()?);
        let api = std::sync::Arc::clone(&api);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // An unknown command is reported to its sender.
                drop(command(&api, stream));
            }
        });
    }
    let mut last = None;
    loop {
        thread::sleep(Duration::from_millis(200));
        if let Some(directory) = &arguments.manifests {
            let now = newest(directory);
            if last.replace(now) != Some(now)
                && let Ok(objects) = read_directory(directory)
            {
                api.replace_all(objects);
            }
        }
    }
}

/// The objects that change when a file of the directory does.
fn newest(directory: &PathBuf) -> (usize, Option<SystemTime>, u64) {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let metadata: Vec<_> = files
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .collect();
    let newest = metadata.iter().filter_map(|m| m.modified().ok()).max();
    (
        metadata.len(),
        newest,
        metadata.iter().map(std::fs::Metadata::len).sum(),
    )
}

const HELP: &str = "\
/control/cut                      break every connection
/control/down  /control/up        refuse connections, accept them again
/control/compact                  forget what happened: watches end with 410
/control/bookmark                 send a bookmark on every watch
/control/streaming/on|refused|ignored
/control/fault/KIND/ASK/STATUS/TIMES   KIND services…, ASK list|page|watch|streaming, both or any; TIMES 0 is for ever
/control/clear                    no faults any more
/control/requests                 what was asked so far
";

fn command(api: &FakeApi, mut stream: TcpStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (code, text) = match obey(api, path) {
        Ok(text) => ("200 OK", text),
        Err(error) => ("400 Bad Request", format!("{error:#}\n{HELP}")),
    };
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )?;
    Ok(())
}

fn obey(api: &FakeApi, path: &str) -> Result<String> {
    let words: Vec<_> = path.trim_matches('/').split('/').collect();
    match words.as_slice() {
        ["control", "help"] => return Ok(HELP.to_owned()),
        ["control", "cut"] => api.cut(),
        ["control", "down"] => api.down(),
        ["control", "up"] => api.up(),
        ["control", "compact"] => api.compact(),
        ["control", "bookmark"] => api.bookmark(),
        ["control", "clear"] => api.clear_faults(),
        ["control", "streaming", mode] => api.set_streaming(match *mode {
            "on" => Streaming::On,
            "refused" => Streaming::Refused,
            "ignored" => Streaming::Ignored,
            other => bail!("{other} is no mode of streaming lists"),
        }),
        ["control", "fault", kind, ask, status, times] => {
            let kind = match *kind {
                "any" => None,
                "services" => Some(ObjectKind::Service),
                "endpointslices" => Some(ObjectKind::EndpointSlice),
                "nodes" => Some(ObjectKind::Node),
                "servicecidrs" => Some(ObjectKind::ServiceCidr),
                other => bail!("{other} is no kind"),
            };
            let ask = match *ask {
                "any" => None,
                "list" => Some(RequestKind::List),
                "page" => Some(RequestKind::Page),
                "watch" => Some(RequestKind::Watch),
                "streaming" => Some(RequestKind::StreamingList),
                other => bail!("{other} can not be asked"),
            };
            let times = match times.parse().context("TIMES is a number")? {
                0 => u32::MAX,
                times => times,
            };
            let status = status.parse().context("STATUS is a number")?;
            api.faults(kind, ask, Fault::Status(status, None), times);
        }
        ["control", "requests"] => {
            let lines = api.requests().into_iter().map(|request| {
                let query: Vec<_> = request
                    .query
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect();
                format!("{} {}?{}\n", request.method, request.path, query.join("&"))
            });
            return Ok(lines.collect());
        }
        _ => bail!("{path} is no command"),
    }
    Ok("done\n".to_owned())
}
