//! Does the store follow the directory, and does nothing half-written reach it?

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::changes::Changes;
use super::directory::Directory;
use super::{Manifests, ManifestsError};
use crate::model::ServiceName;
use crate::watch::{Shared, Store};

/// A directory that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("pd-{}-manifests-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// Writes a file the way careful tools do: beside, then renamed.
    fn put(&self, name: &str, text: &str) {
        let beside = self.0.join(format!(".{name}.new"));
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.0.join(name)).expect("renamed");
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
    }
}

fn service(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{last}}}\n---\n"
    )
}

fn cluster_ip(store: &Store, name: &str) -> Option<String> {
    let service = store.service(&ServiceName::new("default", name))?;
    service.cluster_ip_v4.map(|address| address.to_string())
}

fn faults(shared: &Shared) -> Vec<String> {
    let current = shared.diagnostics().current();
    current.iter().map(ToString::to_string).collect()
}

/// Runs a test beside a source that follows the directory.
fn follow<T: Future<Output = ()>>(path: &Path, test: impl FnOnce(Arc<Shared>) -> T) {
    let shared = Arc::new(Shared::default());
    let source = Manifests::open(path, "n".into()).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            stopped = source.run(Arc::clone(&shared)) => panic!("{stopped:?}"),
            () = test(Arc::clone(&shared)) => {}
        }
    });
}

/// Waits until the store looks like this.
async fn until(shared: &Shared, what: &str, holds: impl Fn(&Store) -> bool) {
    let mut bell = shared.subscribe();
    let wait = async {
        while !shared.with(|store| holds(store)) {
            bell.changed().await.expect("a bell");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(waited.is_ok(), "never: {what}: {:?}", faults(shared));
}

/// Waits until a state of the directory was read.
async fn until_token(directory: &Temporary, shared: &Shared, token: &str) {
    directory.put(".token", &format!("{token}\n"));
    until(shared, token, |store| store.source_token() == Some(token)).await;
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = Manifests::open("/nonexistent/manifests", "n".into()).err();
    assert!(
        matches!(&error, Some(ManifestsError::Read { path, .. }) if path.starts_with("/nonexistent"))
    );
    let file = Temporary::new();
    file.put("x", "");
    let error = Manifests::open(file.0.join("x"), "n".into()).err();
    assert!(matches!(error, Some(ManifestsError::Read { .. })));
}

#[test]
fn an_empty_directory_is_a_complete_list_of_nothing() {
    let directory = Temporary::new();
    follow(&directory.0, async |shared| {
        until(&shared, "complete", Store::is_complete).await;
        shared.with(|store| assert_eq!(store.service_names().count(), 0));
    });
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let directory = Temporary::new();
    directory.put("a.yaml", &service("a", 1));
    directory.put("ignored.txt", &service("x", 9));
    directory.put(".hidden.yaml", &service("x", 9));
    follow(&directory.0, async |shared| {
        until(&shared, "a", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.1")
        })
        .await;
        directory.put(
            "b.json",
            r#"{"kind":"Service","metadata":{"name":"b"},"spec":{"clusterIP":"10.96.0.2"}}"#,
        );
        until(&shared, "b", |s| cluster_ip(s, "b").is_some()).await;
        directory.put("a.yaml", &service("a", 3));
        until(&shared, "a changed", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.3")
        })
        .await;
        fs::rename(directory.0.join("a.yaml"), directory.0.join("c.yml")).expect("renamed");
        fs::remove_file(directory.0.join("b.json")).expect("removed");
        until_token(&directory, &shared, "end").await;
        until(&shared, "b gone", |s| cluster_ip(s, "b").is_none()).await;
        shared.with(|store| {
            assert_eq!(cluster_ip(store, "a").as_deref(), Some("10.96.0.3"));
            assert_eq!(store.service_names().count(), 1);
        });
        assert_eq!(faults(&shared), Vec::<String>::new());
    });
}

#[test]
fn the_token_names_a_state_that_is_in_the_store() {
    let directory = Temporary::new();
    follow(&directory.0, async |shared| {
        for round in 1..=50_u8 {
            directory.put("a.yaml", &service("a", round));
            directory.put(".token", &round.to_string());
            let token = round.to_string();
            until(&shared, &token, |store| {
                store.source_token() == Some(&token)
            })
            .await;
            shared.with(|store| {
                assert_eq!(cluster_ip(store, "a"), Some(format!("10.96.0.{round}")));
                assert_eq!(store.drain().source_token.as_deref(), Some(token.as_str()));
            });
        }
    });
}

#[test]
fn a_token_that_is_replaced_after_it_was_read_is_read_again() {
    let directory = Temporary::new();
    let mut changes = Changes::of(&directory.0).expect("a watch");
    // Whoever waits for nothing is told at once.
    let (stop, other_end) = std::os::unix::net::UnixStream::pair().expect("a pair");
    drop(other_end);
    let none = || Ok(BTreeSet::new());
    changes.take_due(none).expect("the files");
    assert!(changes.wait(false, &stop).is_err(), "nothing is due");
    directory.put(".token", "one");
    changes.take_token();
    directory.put("service.yaml", "");
    directory.put(".token", "two");
    let due = changes.take_due(none).expect("the files");
    assert_eq!(due.into_iter().collect::<Vec<_>>(), ["service.yaml"]);
    assert!(changes.wait(false, &stop).is_ok(), "the token is due");
    changes.take_token();
    changes.take_due(none).expect("the files");
    assert!(changes.wait(false, &stop).is_err(), "nothing is due");
}

#[test]
fn an_unreadable_document_keeps_its_last_good_state_and_its_neighbours_follow() {
    let directory = Temporary::new();
    let three =
        |middle: &str, last: u8| format!("{}{middle}{}", service("a", last), service("c", last));
    directory.put("x.yaml", &three(&service("b", 1), 1));
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        directory.put("x.yaml", &three("kind: [\n---\n", 2));
        until_token(&directory, &shared, "2").await;
        shared.with(|store| {
            assert_eq!(cluster_ip(store, "a").as_deref(), Some("10.96.0.2"));
            assert_eq!(cluster_ip(store, "b").as_deref(), Some("10.96.0.1"));
            assert_eq!(cluster_ip(store, "c").as_deref(), Some("10.96.0.2"));
        });
        let told = faults(&shared);
        assert!(
            told[0].starts_with("x.yaml:") && told[0].ends_with("its last good state stays"),
            "{told:?}"
        );
        // With one document less nobody knows which one is meant: the file stays as it was.
        directory.put("x.yaml", "kind: [\n");
        until_token(&directory, &shared, "3").await;
        shared.with(|store| assert_eq!(store.service_names().count(), 3));
        directory.put("x.yaml", &three("", 4));
        until_token(&directory, &shared, "4").await;
        shared.with(|store| {
            assert_eq!(cluster_ip(store, "b"), None);
            assert_eq!(cluster_ip(store, "c").as_deref(), Some("10.96.0.4"));
        });
        assert_eq!(faults(&shared), Vec::<String>::new());
    });
}

#[test]
fn the_first_of_two_objects_of_one_name_counts() {
    let directory = Temporary::new();
    directory.put("b.yaml", &service("x", 2));
    directory.put("c.yaml", &service("x", 3));
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        shared.with(|store| assert_eq!(cluster_ip(store, "x").as_deref(), Some("10.96.0.2")));
        assert_eq!(
            faults(&shared),
            ["c.yaml Service default/x: is in b.yaml already; this one is ignored"]
        );
        directory.put("a.yaml", &service("x", 1));
        until_token(&directory, &shared, "2").await;
        shared.with(|store| assert_eq!(cluster_ip(store, "x").as_deref(), Some("10.96.0.1")));
        for file in ["a.yaml", "b.yaml"] {
            fs::remove_file(directory.0.join(file)).expect("removed");
        }
        until_token(&directory, &shared, "3").await;
        shared.with(|store| assert_eq!(cluster_ip(store, "x").as_deref(), Some("10.96.0.3")));
    });
}

#[test]
fn selectors_hold_as_on_the_server() {
    let directory = Temporary::new();
    let labelled = service("hidden", 1).replace(
        "{name: hidden}",
        "{name: hidden, labels: {service.kubernetes.io/service-proxy-name: other}}",
    );
    let node =
        |name: &str| format!("kind: Node\napiVersion: v1\nmetadata: {{name: {name}}}\n---\n");
    directory.put(
        "a.yaml",
        &format!("{labelled}{}{}", node("other"), node("another")),
    );
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        shared.with(|store| {
            assert_eq!(store.service_names().count(), 0);
            assert_eq!(store.node(), None);
        });
        assert!(faults(&shared)[0].starts_with("Node n: is not among the 2 Nodes"));
        directory.put("n.yaml", &node("n"));
        until_token(&directory, &shared, "2").await;
        shared.with(|store| assert!(store.node().is_some()));
        assert_eq!(faults(&shared), Vec::<String>::new());
        // HZ-5: the last copy of a Node stays.
        fs::remove_file(directory.0.join("n.yaml")).expect("removed");
        until_token(&directory, &shared, "3").await;
        shared.with(|store| assert!(store.node().is_some()));
    });
}

#[test]
fn a_file_that_is_being_written_is_not_looked_at() {
    let directory = Temporary::new();
    directory.put("a.yaml", &format!("{}{}", service("a", 1), service("b", 1)));
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        let mut file = fs::File::create(directory.0.join("a.yaml")).expect("a file");
        file.write_all(service("a", 2).as_bytes()).expect("written");
        // Something else asks for a look while half of the file is there.
        directory.put("z.yaml", &service("z", 1));
        until(&shared, "z", |store| cluster_ip(store, "z").is_some()).await;
        shared.with(|store| {
            assert_eq!(cluster_ip(store, "a").as_deref(), Some("10.96.0.1"));
            assert_eq!(cluster_ip(store, "b").as_deref(), Some("10.96.0.1"));
        });
        file.write_all(service("b", 2).as_bytes()).expect("written");
        drop(file);
        until(&shared, "a", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.2")
        })
        .await;
        shared.with(|store| assert_eq!(cluster_ip(store, "b").as_deref(), Some("10.96.0.2")));
    });
}

#[test]
fn a_directory_mounted_from_a_config_map_is_followed() {
    let directory = Temporary::new();
    let version = |name: &str, last: u8| {
        let path = directory.0.join(name);
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("a.yaml"), service("a", last)).expect("written");
    };
    let point = |name: &str| {
        let beside = directory.0.join("..data_tmp");
        std::os::unix::fs::symlink(name, &beside).expect("a link");
        fs::rename(beside, directory.0.join("..data")).expect("renamed");
    };
    version("..1", 1);
    point("..1");
    std::os::unix::fs::symlink("..data/a.yaml", directory.0.join("a.yaml")).expect("a link");
    follow(&directory.0, async |shared| {
        until(&shared, "1", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.1")
        })
        .await;
        version("..2", 2);
        point("..2");
        until(&shared, "2", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.2")
        })
        .await;
    });
}

#[test]
fn a_directory_that_is_replaced_is_found_again() {
    let parent = Temporary::new();
    let path = parent.0.join("manifests");
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("a.yaml"), service("a", 1)).expect("written");
    follow(&path, async |shared| {
        until(&shared, "1", |s| cluster_ip(s, "a").is_some()).await;
        fs::rename(&path, parent.0.join("old")).expect("renamed");
        fs::create_dir(parent.0.join("new")).expect("a directory");
        fs::write(parent.0.join("new/a.yaml"), service("a", 2)).expect("written");
        shared.with(|store| assert!(cluster_ip(store, "a").is_some()));
        fs::rename(parent.0.join("new"), &path).expect("renamed");
        until(&shared, "2", |s| {
            cluster_ip(s, "a").as_deref() == Some("10.96.0.2")
        })
        .await;
    });
}

#[test]
fn unchanged_objects_of_a_changed_file_are_not_dirty() {
    let directory = Temporary::new();
    directory.put("a.yaml", &format!("{}{}", service("a", 1), service("b", 1)));
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        shared.with(Store::drain);
        directory.put("a.yaml", &format!("{}{}", service("a", 1), service("b", 2)));
        until_token(&directory, &shared, "2").await;
        let drained = shared.with(Store::drain);
        let names: Vec<_> = drained.services.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["default/b"]);
    });
}

#[test]
fn what_is_no_file_makes_nobody_wait_and_no_name_forges_a_log_line() {
    let directory = Temporary::new();
    let fifo = |name: &str| {
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&directory.0.join(name), mode).expect("a pipe");
    };
    fifo(".token");
    fifo("pipe.yaml");
    fs::create_dir(directory.0.join("directory.yaml")).expect("a directory");
    directory.put("\u{1b}[31m\nforged.yaml", "kind: [");
    directory.put("z.yaml", &service("z", 1));
    follow(&directory.0, async |shared| {
        until(&shared, "z", |s| cluster_ip(s, "z").is_some()).await;
        let faults = faults(&shared);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(!faults[0].contains(char::is_control), "{faults:?}");
    });
}

#[test]
fn a_file_that_was_just_opened_to_be_written_anew_keeps_its_objects() {
    let directory = Temporary::new();
    let path = directory.0.join("a.yaml");
    fs::write(&path, service("web", 1)).expect("written");
    let shared = Arc::new(Shared::default());
    let mut reader = Directory::new(directory.0.clone(), "n".into());
    let mut changes = Changes::of(&directory.0).expect("a watch");
    let mut look = |changes: &mut Changes| {
        let look = reader.scan(changes).expect("read");
        reader.apply(look, &shared);
        shared.with(|store| cluster_ip(store, "web"))
    };
    assert_eq!(look(&mut changes).as_deref(), Some("10.96.0.1"));
    // The kernel has emptied the file, and its event was not taken yet.
    let mut file = fs::File::create(&path).expect("truncated");
    assert_eq!(look(&mut changes).as_deref(), Some("10.96.0.1"));
    file.write_all(service("web", 2).as_bytes())
        .expect("written");
    drop(file);
    assert_eq!(look(&mut changes).as_deref(), Some("10.96.0.2"));
    // Who empties a file and closes it means it.
    drop(fs::File::create(&path).expect("truncated"));
    assert_eq!(look(&mut changes), None);
}

/// Files with one fault each, and the same files without.
fn faulty_files() -> Vec<(&'static str, String, String)> {
    let at = |text: &str, bad: &str| ("b.yaml", text.replace("VALUE", bad), text.to_owned());
    let good = service("a", 1);
    let port = "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.96.0.2, ports: [{port: VALUE}]}\n";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: p, port: 80}]\nendpoints: [{addresses: [VALUE]}]\n";
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: VALUE}\n";
    let cidr = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: c}\nspec: {cidrs: [VALUE]}\n";
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}}"#;
    let mend = |(name, bad, text): (&'static str, String, String), value: &str| {
        (name, bad, text.replace("VALUE", value))
    };
    vec![
        ("b.yaml", good.clone(), service("b", 2)),
        ("b.yaml", "][".to_owned(), service("b", 2)),
        ("b.yaml", service("-b", 2), service("b", 2)),
        mend(at(port, "0"), "80"),
        mend(at(slice, "nowhere"), "10.244.1.1"),
        mend(at(node, "other"), "n"),
        mend(at(cidr, "nonsense"), "10.97.0.0/16"),
        ("b.json", "{".to_owned(), json.to_owned()),
    ]
}

#[test]
fn what_is_said_of_a_file_goes_with_its_cause_and_comes_back_with_it() {
    let directory = Temporary::new();
    directory.put("a.yaml", &service("a", 1));
    follow(&directory.0, async |shared| {
        let mut round = 0;
        let mut look = async |name: &str, text: Option<&str>| {
            round += 1;
            match text {
                Some(text) => directory.put(name, text),
                None => fs::remove_file(directory.0.join(name)).expect("removed"),
            }
            until_token(&directory, &shared, &format!("t{round}")).await;
            faults(&shared)
        };
        for (name, bad, good) in faulty_files() {
            let told = look(name, Some(&bad)).await;
            assert_eq!(told.len(), 1, "{bad}: {told:?}");
            assert_eq!(look(name, Some(&good)).await, [""; 0], "{bad}");
            assert_eq!(look(name, Some(&bad)).await.len(), 1, "{bad}");
            assert_eq!(look(name, None).await, [""; 0], "{bad}");
        }
    });
}

/// Reads a directory many times while somebody does something to it, and says how few objects there ever were.
fn least_seen(path: &Path, n_looks: usize, mut disturb: impl FnMut() + Send) -> usize {
    let shared = Arc::new(Shared::default());
    let mut reader = Directory::new(path.to_owned(), "n".into());
    let mut changes = Changes::of(path).expect("a watch");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = Over(&is_over);
        scope.spawn(|| {
            let _over = Over(&is_over);
            while !is_over.load(Ordering::Relaxed) {
                disturb();
            }
        });
        let mut least = usize::MAX;
        let mut n_read = 0;
        while n_read < n_looks && !is_over.load(Ordering::Relaxed) {
            // While the directory is away, its last state stays.
            if let Ok(look) = reader.scan(&mut changes) {
                reader.apply(look, &shared);
                least = least.min(shared.with(|store| store.service_names().count()));
                n_read += 1;
            }
        }
        drop(over);
        least
    })
}

/// Ends a thread when dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_directory_that_is_moved_or_exchanged_during_a_look_loses_nothing() {
    let parent = Temporary::new();
    let (path, other) = (parent.0.join("manifests"), parent.0.join("other"));
    let fill = |directory: &Path| {
        fs::create_dir(directory).expect("a directory");
        for n in 0..50_u8 {
            let name = format!("s{n}");
            fs::write(directory.join(format!("{name}.yaml")), service(&name, n)).expect("written");
        }
    };
    fill(&path);
    let least = least_seen(&path, 300, || {
        fs::rename(&path, &other).expect("moved");
        fs::rename(&other, &path).expect("moved back");
    });
    assert_eq!(least, 50);
    fill(&other);
    let link = parent.0.join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let mut is_other = false;
    let least = least_seen(&link, 300, || {
        let beside = parent.0.join("beside");
        is_other = !is_other;
        let target = if is_other { &other } else { &path };
        std::os::unix::fs::symlink(target, &beside).expect("a link");
        fs::rename(&beside, &link).expect("pointed elsewhere");
    });
    assert_eq!(least, 50);
}

#[test]
fn files_that_are_renamed_or_replaced_during_a_look_lose_nothing() {
    let directory = Temporary::new();
    for n in 0..50_u8 {
        let name = format!("s{n}");
        directory.put(&format!("{name}.yaml"), &service(&name, n));
    }
    let path = |name: &str| directory.0.join(name);
    let mut n = 0_u32;
    let least = least_seen(&directory.0, 300, || {
        // One goes to another name and back, and one is replaced.
        n += 1;
        let name = format!("s{}.yaml", n % 25);
        let beside = format!("z{n}.yml");
        fs::rename(path(&name), path(&beside)).expect("renamed");
        fs::rename(path(&beside), path(&name)).expect("renamed back");
        let number = u8::try_from(n % 25).expect("small") + 25;
        let name = format!("s{number}");
        directory.put(&format!("{name}.yaml"), &service(&name, number));
        std::thread::yield_now();
    });
    assert_eq!(least, 50);
}

#[test]
fn what_is_missing_for_good_is_gone_also_among_much_traffic() {
    let directory = Temporary::new();
    directory.put("a.yaml", &service("a", 1));
    directory.put("b.yaml", &service("b", 1));
    follow(&directory.0, async |shared| {
        until(&shared, "b", |s| cluster_ip(s, "b").is_some()).await;
        fs::remove_file(directory.0.join("b.yaml")).expect("removed");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Over(&is_over);
        let (told, path) = (Arc::clone(&is_over), directory.0.clone());
        let thread = std::thread::spawn(move || {
            // Files come and go without a pause, and none of them is a manifest.
            while !told.load(Ordering::Relaxed) && fs::write(path.join("x.new"), "x").is_ok() {
                let _renamed = fs::rename(path.join("x.new"), path.join("x.old"));
            }
        });
        until(&shared, "b gone", |s| cluster_ip(s, "b").is_none()).await;
        drop(over);
        thread.join().expect("the thread");
    });
}

#[test]
fn a_directory_that_is_away_keeps_its_state_and_an_empty_one_has_none() {
    let parent = Temporary::new();
    let path = parent.0.join("manifests");
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("a.yaml"), service("a", 1)).expect("written");
    let shared = Arc::new(Shared::default());
    let mut reader = Directory::new(path.clone(), "n".into());
    let mut changes = Changes::of(&path).expect("a watch");
    let mut look = || {
        let look = reader
            .scan(&mut changes)
            .map(|look| reader.apply(look, &shared));
        let ip = shared.with(|store| cluster_ip(store, "a"));
        (look.is_ok(), ip.is_some())
    };
    assert_eq!(look(), (true, true));
    fs::rename(&path, parent.0.join("old")).expect("moved");
    assert_eq!(look(), (false, true));
    fs::create_dir(&path).expect("a directory");
    assert_eq!(look(), (true, false));
}

#[test]
fn a_link_that_leads_nowhere_for_a_moment_keeps_its_objects() {
    let (directory, elsewhere) = (Temporary::new(), Temporary::new());
    elsewhere.put("target", &service("a", 1));
    std::os::unix::fs::symlink(elsewhere.0.join("target"), directory.0.join("a.yaml"))
        .expect("a link");
    follow(&directory.0, async |shared| {
        until_token(&directory, &shared, "1").await;
        fs::remove_file(elsewhere.0.join("target")).expect("removed");
        until_token(&directory, &shared, "2").await;
        shared.with(|store| assert!(cluster_ip(store, "a").is_some()));
        fs::remove_file(directory.0.join("a.yaml")).expect("removed");
        until_token(&directory, &shared, "3").await;
        shared.with(|store| assert!(cluster_ip(store, "a").is_none()));
    });
}

/// Many Services, so that reading them takes a while.
fn many(prefix: &str, n_services: usize) -> String {
    (0..n_services)
        .map(|n| service(&format!("{prefix}{n}"), 9))
        .collect()
}

#[test]
fn a_file_that_is_rewritten_in_place_during_a_scan_was_read_in_part() {
    let directory = Temporary::new();
    let fill = |prefix: &str| {
        directory.put("0.yaml", &many(prefix, 4000));
        directory.put("z.yaml", &many(&format!("z{prefix}"), 4000));
    };
    fill("a");
    directory.put("a.yaml", &service("web", 1));
    let shared = Arc::new(Shared::default());
    let mut reader = Directory::new(directory.0.clone(), "n".into());
    let mut changes = Changes::of(&directory.0).expect("a watch");
    let began = tokio::time::Instant::now();
    let scan = reader.scan(&mut changes).expect("read");
    let took = began.elapsed();
    reader.apply(scan, &shared);
    fill("b");
    directory.put("a.yaml", &service("web", 1));
    let path = directory.0.join("a.yaml");
    let writer = std::thread::spawn(move || {
        std::thread::sleep(took / 5);
        let mut truncated = fs::File::create(&path).expect("truncated");
        std::thread::sleep(took / 2);
        truncated
            .write_all(service("web", 2).as_bytes())
            .expect("written");
    });
    let scan = reader.scan(&mut changes).expect("read");
    writer.join().expect("the writer");
    reader.apply(scan, &shared);
    assert!(shared.with(|store| cluster_ip(store, "web").is_some()));
    let scan = reader.scan(&mut changes).expect("read");
    reader.apply(scan, &shared);
    let now = shared.with(|store| cluster_ip(store, "web"));
    assert_eq!(now.as_deref(), Some("10.96.0.2"));
}

#[test]
fn a_file_that_is_removed_while_another_keeps_changing_goes() {
    let directory = Temporary::new();
    let text = many("a", 300);
    directory.put("a.yaml", &text);
    directory.put("b.yaml", &service("b", 1));
    follow(&directory.0, async |shared| {
        until(&shared, "b", |store| cluster_ip(store, "b").is_some()).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Over(&is_over);
        let (told, path) = (Arc::clone(&is_over), directory.0.clone());
        let writer = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                fs::write(path.join(".a"), &text).expect("written");
                fs::rename(path.join(".a"), path.join("a.yaml")).expect("renamed");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::remove_file(directory.0.join("b.yaml")).expect("removed");
        until(&shared, "b gone", |store| cluster_ip(store, "b").is_none()).await;
        drop(over);
        writer.join().expect("the writer");
    });
}

#[test]
fn what_is_behind_a_link_is_read_again_in_a_busy_directory() {
    let (directory, elsewhere) = (Temporary::new(), Temporary::new());
    elsewhere.put("target", &service("a", 1));
    let link = directory.0.join("a.yaml");
    std::os::unix::fs::symlink(elsewhere.0.join("target"), link).expect("a link");
    follow(&directory.0, async |shared| {
        until(&shared, "a", |store| cluster_ip(store, "a").is_some()).await;
        elsewhere.put("target", &service("a", 2));
        let is_new = |store: &Store| cluster_ip(store, "a").as_deref() == Some("10.96.0.2");
        tokio::select! {
            () = until(&shared, "a changed", is_new) => {}
            () = async {
                for n in 0.. {
                    directory.put("other.yaml", &service("other", n));
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            } => {}
        }
    });
}

#[test]
fn a_path_that_leads_to_another_directory_is_read_as_a_whole() {
    let parent = Temporary::new();
    let [one, two, link, beside] = ["one", "two", "link", "beside"].map(|name| parent.0.join(name));
    for (path, name) in [(&one, "b"), (&two, "c")] {
        fs::create_dir(path).expect("a directory");
        fs::write(path.join("a.yaml"), service("a", 1)).expect("written");
        fs::write(path.join(format!("{name}.yaml")), service(name, 5)).expect("written");
    }
    std::os::unix::fs::symlink(&one, &link).expect("a link");
    let shared = Arc::new(Shared::default());
    let mut reader = Directory::new(link.clone(), "n".into());
    let mut changes = Changes::of(&link).expect("a watch");
    let mut names = || {
        let scan = reader.scan(&mut changes).expect("read");
        reader.apply(scan, &shared);
        shared.with(|store| ["a", "b", "c"].map(|name| cluster_ip(store, name).is_some()))
    };
    assert_eq!(names(), [true, true, false]);
    std::os::unix::fs::symlink(&two, &beside).expect("a link");
    fs::rename(&beside, &link).expect("renamed");
    fs::remove_file(one.join("a.yaml")).expect("removed");
    assert_eq!(names(), [true, false, true]);
    fs::write(two.join("b.yaml"), service("b", 5)).expect("written");
    assert_eq!(names(), [true, true, true]);
}

#[test]
fn a_socket_is_no_manifest_and_no_fault() {
    let directory = Temporary::new();
    let socket = std::os::unix::net::UnixListener::bind(directory.0.join("a.yaml"));
    follow(&directory.0, async |shared| {
        until(&shared, "complete", Store::is_complete).await;
        assert!(faults(&shared).is_empty(), "{:?}", faults(&shared));
    });
    drop(socket);
}
