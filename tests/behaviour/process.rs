//! LIFE: what the process must not wait for, and what it may take from the machine.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use proxy_tests::address::{P1, P2, R, R2, Site, VIP};
use proxy_tests::case;
use proxy_tests::daemon::http;
use proxy_tests::flow::{flow, kept};
use proxy_tests::matrix::{Case, Test};

use crate::common::{run, web, works};

/// Where the node answers whoever asks.
const HEALTHZ: &str = "127.0.0.1:10256";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(life_18_a_log_that_nobody_reads_holds_up_nothing)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_18_the_last_lines_are_written_before_the_end)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
    ]
}

/// Has the daemon log into a pipe that is full from the start and that nobody reads.
fn unread_log(t: &mut Test) -> PipeReader {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer
        .write_all(&vec![b'x'; usize::try_from(size).unwrap()])
        .unwrap();
    t.bed_mut().daemon.log_to(File::from(OwnedFd::from(writer)));
    reader
}

fn life_18_a_log_that_nobody_reads_holds_up_nothing(t: &mut Test) {
    let mut log = unread_log(t);
    web(t);
    t.check(works());
    for host in [R, R2, P2] {
        t.endpoints("web").clear().ready(host);
        t.check([flow(P1, VIP, 80).reaches([kept(host)])]);
    }
    let (code, _) = http(t.node_ns(), HEALTHZ, "/livez").unwrap();
    assert_eq!(code, 200);
    let started = Instant::now();
    let status = t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < Duration::from_secs(5));
    t.observe(works());
    // What was not lost is still to be read by one who comes late, up to the end of the pipe.
    t.bed_mut().daemon.log_to(None);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("xxx"), "{text}");
}

fn life_18_the_last_lines_are_written_before_the_end(t: &mut Test) {
    web(t);
    t.check(works());
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    let log = t.bed().daemon.log();
    assert!(
        log.trim_end().ends_with("ending, Services keep working"),
        "{log}"
    );
    // And why it did not start, through a pipe that is full as well.
    let (code, text) = run(t, &["--hostname-override=node-n", "--mode=surprise"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("surprise"), "{text}");
    for arguments in [&["--mode=surprise"], &["--surprise"]] {
        let _unread = unread_log(t);
        t.bed_mut().daemon.set_flags(arguments);
        let bed = t.bed_mut();
        bed.daemon.start(bed.topology.site(Site::N)).unwrap();
        let daemon = &mut bed.daemon;
        let deadline = Instant::now() + Duration::from_secs(10);
        while daemon.ended().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it waits for the reader");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
