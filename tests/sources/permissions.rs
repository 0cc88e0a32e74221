//! Refused permissions, and kubeconfig files.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use proxy_daemon::watch::ObjectKind;
use proxy_daemon::watch::kubernetes::{ApiServer, ConnectError, Kubernetes, Timing};
use proxy_tests::daemon::Directory;
use proxy_tests::fake_api::{FakeApi, Fault, RequestKind};
use proxy_tests::world::service_cidr;

use crate::follow::{
    Followed, NODE, by_kubeconfig, is_at, run, service, small, timing, until_asked,
};

#[test]
fn api_3_a_missing_permission_on_nodes_does_not_hold_up_services() {
    run(async {
        let api = small();
        api.faults(ObjectKind::Node, None, Fault::Status(403, None), u32::MAX);
        let followed = Followed::whole(&api, timing()).await;
        api.put(service("a", 9));
        followed.until("a", |store| is_at(store, "a", 9)).await;
        until_asked(&api, "Nodes again", |api| {
            api.n_requests(ObjectKind::Node, RequestKind::StreamingList) > 2
        })
        .await;
        followed
            .shared
            .with(|store| assert!(store.node().is_none()));
        api.clear_faults();
        followed
            .until("the Node", |store| store.node().is_some())
            .await;
    });
}

#[test]
fn api_3_refusals_of_every_sort_are_outlasted() {
    run(async {
        for code in [400, 401, 403, 404, 422, 429, 500, 503, 504] {
            let api = small();
            for ask in [
                RequestKind::List,
                RequestKind::StreamingList,
                RequestKind::Watch,
            ] {
                api.faults(None, ask, Fault::Status(code, None), 3);
            }
            let followed = Followed::whole(&api, timing()).await;
            api.cut();
            api.put(service("a", 9));
            followed
                .until(&code.to_string(), |store| is_at(store, "a", 9))
                .await;
        }
    });
}

#[test]
fn api_4_retry_after_is_honoured() {
    run(async {
        let api = small();
        api.fault(
            ObjectKind::Service,
            RequestKind::StreamingList,
            Fault::Status(429, Some(1)),
        );
        let began = Instant::now();
        let _followed = Followed::whole(&api, timing()).await;
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(
            api.n_requests(ObjectKind::Service, RequestKind::StreamingList),
            2
        );
    });
}

#[test]
fn rej_7_service_cidrs_are_found_in_the_older_version() {
    run(async {
        let api = small();
        api.set_absent(ObjectKind::ServiceCidr, "v1");
        let followed = Followed::start(&api).await;
        followed
            .until("the ServiceCIDR", |s| s.service_cidr_names().count() == 1)
            .await;
    });
}

#[test]
fn rej_7_absent_service_cidrs_hold_up_nothing_and_are_found_later() {
    run(async {
        let api = small();
        api.set_absent(ObjectKind::ServiceCidr, "v1");
        api.set_absent(ObjectKind::ServiceCidr, "v1beta1");
        let followed = Followed::whole(&api, timing()).await;
        api.clear_absent();
        api.put(service_cidr("second", &["10.97.0.0/16"]));
        followed
            .until("ServiceCIDRs", |s| s.service_cidr_names().count() == 2)
            .await;
        api.delete(ObjectKind::ServiceCidr, "kubernetes");
        followed
            .until("one less", |s| s.service_cidr_names().count() == 1)
            .await;
    });
}

#[test]
fn rej_7_service_cidrs_that_are_refused_for_a_moment_are_there_soon() {
    run(async {
        let api = small();
        api.faults(ObjectKind::ServiceCidr, None, Fault::Status(403, None), 2);
        let followed = Followed::start_with(&api, Timing::default()).await;
        let listed = followed.until("the ServiceCIDR", |s| s.service_cidr_names().count() == 1);
        let listed = tokio::time::timeout(Duration::from_secs(8), listed).await;
        assert!(listed.is_ok());
    });
}

#[test]
fn api_1_a_kubeconfig_leads_to_the_server_and_master_is_stronger() {
    run(async {
        let (api, other) = (small(), FakeApi::start().expect("a server"));
        let (server, _directory) = by_kubeconfig(&api, api.address());
        let followed = Followed::start_at(&server, timing()).await;
        followed.until("a", |store| is_at(store, "a", 1)).await;
        other.put(service("other", 5));
        let server = ApiServer {
            master: Some(other.url()),
            ..server
        };
        let followed = Followed::start_at(&server, timing()).await;
        followed
            .until("other", |store| is_at(store, "other", 5))
            .await;
        followed.shared.with(|store| assert!(!is_at(store, "a", 1)));
    });
}

#[test]
fn api_1_a_kubeconfig_that_is_none_is_an_error() {
    run(async {
        let directory = Directory::new().expect("a directory");
        let path = directory.path().join("kubeconfig");
        for text in ["", "kind: [", "clusters: []\n", "a: b\n"] {
            std::fs::write(&path, text).expect("written");
            let server = ApiServer {
                kubeconfig: Some(path.clone()),
                master: None,
            };
            let error = Kubernetes::open(server, NODE.into(), timing()).await.err();
            assert!(
                matches!(error, Some(ConnectError::Kubeconfig { .. })),
                "{text}: {error:?}"
            );
        }
    });
}

#[test]
fn api_1_a_kubeconfig_that_changes_while_the_server_cannot_be_reached_is_read_again() {
    run(async {
        let (gone, api) = (FakeApi::start_tls().expect("a server"), small());
        let hangs_up = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = hangs_up.local_addr().expect("an address");
        let (server, _directory) = by_kubeconfig(&gone, address);
        let followed = Followed::start_at(&server, timing()).await;
        for _ in 0..3 {
            drop(hangs_up.accept().await.expect("an attempt"));
        }
        let path = server.kubeconfig.expect("a path");
        api.write_kubeconfig(&path).expect("written");
        drop(hangs_up);
        followed.complete().await;
    });
}
