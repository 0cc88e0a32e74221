//! What can an API server do wrong?
//!
//! Invariant: when a function returns, the server is well again.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use proxy_tests::fake_api::{Ahead, Fault as Wrong, RequestKind, Streaming};

use crate::faults::{Fault, fault};
use crate::run::{LIFE_3, Scene};

/// How an API server may go silent for good before anybody must have noticed: its bookmarks come every second.
const SILENCE_NOTICED: Duration = Duration::from_secs(60);

pub(crate) fn all() -> Vec<Fault> {
    vec![
        fault("watches cut", LIFE_3, watches_cut),
        fault("history forgotten", LIFE_3, history_forgotten),
        fault("history rewritten", LIFE_3, history_rewritten),
        fault("watches told 410", LIFE_3, watches_told_410),
        fault("watches end after a bookmark", LIFE_3, watches_end),
        fault("requests refused", LIFE_3, refused),
        fault("no answers", LIFE_3, no_answers),
        fault("watches silent", LIFE_3, watches_silent),
        fault("slow answers", LIFE_3, slow_answers),
        fault("garbage", LIFE_3, garbage),
        fault("answers break off", LIFE_3, break_off),
        fault("API server down", LIFE_3, down),
        fault("another API server", LIFE_3, another),
        fault("watches silent for good", SILENCE_NOTICED, silent_for_good).rare(),
    ]
}

/// Makes every answer of a kind go wrong for a while; all connections begin anew before and after it.
fn for_a_while(scene: &mut Scene<'_>, asks: &[RequestKind], wrong: &Wrong) {
    scene.say(&format!("{asks:?}: {wrong:?}"));
    for ask in asks {
        scene.api.faults(None, *ask, wrong.clone(), u32::MAX);
    }
    scene.api.cut();
    scene.pass(1000, 4000);
    scene.api.clear_faults();
    scene.api.cut();
}

const ALL: [RequestKind; 4] = [
    RequestKind::List,
    RequestKind::Page,
    RequestKind::Watch,
    RequestKind::StreamingList,
];
const WATCHES: [RequestKind; 2] = [RequestKind::Watch, RequestKind::StreamingList];

fn watches_cut(scene: &mut Scene<'_>) -> Result<()> {
    for _ in 0..scene.dice.below(8) {
        scene.api.cut();
        scene.pass(0, 400);
    }
    scene.api.cut();
    Ok(())
}

fn history_forgotten(scene: &mut Scene<'_>) -> Result<()> {
    scene.api.compact();
    scene.api.cut();
    Ok(())
}

fn history_rewritten(scene: &mut Scene<'_>) -> Result<()> {
    let n_versions = 100 + scene.dice.below(2000) as u64;
    let ahead = [Ahead::Refused, Ahead::Accepted, Ahead::Silent][scene.dice.below(3)];
    scene.api.down();
    let version = scene.api.version().saturating_sub(n_versions).max(1);
    scene.api.rewind(version, ahead);
    scene.api.up();
    Ok(())
}

fn watches_told_410(scene: &mut Scene<'_>) -> Result<()> {
    for_a_while(scene, &[RequestKind::Watch], &Wrong::ErrorEvent(410));
    Ok(())
}

fn watches_end(scene: &mut Scene<'_>) -> Result<()> {
    for_a_while(scene, &[RequestKind::Watch], &Wrong::OneBookmark);
    Ok(())
}

fn refused(scene: &mut Scene<'_>) -> Result<()> {
    let code = scene.dice.pick(&[403, 429, 500, 503]);
    let retry_after = scene.dice.pick(&[None, Some(1), Some(3600)]);
    for_a_while(scene, &ALL, &Wrong::Status(code, retry_after));
    Ok(())
}

fn no_answers(scene: &mut Scene<'_>) -> Result<()> {
    for_a_while(scene, &ALL, &Wrong::Withhold);
    Ok(())
}

fn watches_silent(scene: &mut Scene<'_>) -> Result<()> {
    for_a_while(scene, &WATCHES, &Wrong::Silent);
    Ok(())
}

fn slow_answers(scene: &mut Scene<'_>) -> Result<()> {
    let n_bytes = 1 + scene.dice.below(400);
    let pause = scene.dice.millis(1, 30);
    for_a_while(scene, &ALL, &Wrong::Slow(n_bytes, pause));
    Ok(())
}

fn garbage(scene: &mut Scene<'_>) -> Result<()> {
    let text = scene.dice.pick(&[
        "",
        "null\n",
        "<html>busy</html>",
        "{\"type\":\"ADDED\"",
        "{\"type\":\"ADDED\",\"object\":{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":[]}}\n",
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"code\":500}\n",
        "\u{0}\u{1b}[2J\n",
    ]);
    let wrong = if scene.dice.percent(50) {
        Wrong::Instead(text.to_owned())
    } else {
        Wrong::Before(text.to_owned())
    };
    for_a_while(scene, &ALL, &wrong);
    Ok(())
}

fn break_off(scene: &mut Scene<'_>) -> Result<()> {
    let n_bytes = scene.dice.below(20_000);
    for_a_while(scene, &ALL, &Wrong::Cut(n_bytes));
    Ok(())
}

fn down(scene: &mut Scene<'_>) -> Result<()> {
    scene.api.down();
    scene.pass(500, 4000);
    scene.api.up();
    Ok(())
}

/// One of another release in its place.
fn another(scene: &mut Scene<'_>) -> Result<()> {
    let streaming = [Streaming::On, Streaming::Refused, Streaming::Ignored];
    scene.api.down();
    scene.api.set_streaming(scene.dice.pick(&streaming));
    scene.api.compact();
    thread::sleep(scene.dice.millis(0, 200));
    scene.api.up();
    Ok(())
}

fn silent_for_good(scene: &mut Scene<'_>) -> Result<()> {
    for ask in WATCHES {
        scene.api.faults(None, ask, Wrong::Silent, 4);
    }
    scene.api.cut();
    scene.pass(1000, 2000);
    scene.api.clear_faults();
    Ok(())
}
