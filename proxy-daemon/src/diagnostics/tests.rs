//! What is kept, what is forgotten and what is logged.

use super::*;
use crate::model::ServiceName;

fn fault(object: &str) -> Diagnostic {
    Diagnostic {
        object: object.to_owned(),
        field: "spec".to_owned(),
        message: "is bad".to_owned(),
    }
}

fn service(name: &str) -> ServiceName {
    ServiceName::new("ns", name)
}

fn unnamed(name: &str) -> About {
    About::Unnamed(ObjectKind::Service, name.to_owned())
}

/// One of each kind of group. A new kind must be added here, and to [`kind`].
fn every_kind() -> Vec<About> {
    let kinds = vec![
        About::Source("test"),
        About::Object(ObjectKey::Service(service("web"))),
        About::Object(ObjectKey::Node("node".into())),
        unnamed("Service \"-\""),
        About::Compiled(Subject::Service(service("web"))),
    ];
    let all: BTreeSet<_> = kinds.iter().map(kind).collect();
    assert_eq!(all.len(), 4, "each kind is in the list");
    kinds
}

/// Fails to compile when there is a new kind.
fn kind(about: &About) -> &'static str {
    match about {
        About::Source(_) => "source",
        About::Object(_) => "object",
        About::Unnamed(..) => "unnamed",
        About::Compiled(_) => "compiled",
    }
}

#[test]
fn every_kind_goes_with_its_cause_and_is_logged_again_when_it_comes_back() {
    let now = SystemClock.now();
    let line = || vec![Line::Fault(fault("a"))];
    for about in every_kind() {
        let diagnostics = Diagnostics::default();
        diagnostics.with(|inner| {
            let mut set = |faults| inner.set(about.clone(), faults, now);
            assert_eq!(set(vec![fault("a"), fault("a")]), line(), "{about:?}");
            assert_eq!(set(vec![fault("a")]), [], "{about:?}");
            assert_eq!(set(vec![]), [], "{about:?}");
            assert!(inner.is_empty(), "{about:?}");
            assert_eq!(inner.set(about.clone(), vec![fault("a")], now), line());
        });
        assert_eq!(diagnostics.current(), [fault("a")]);
    }
}

#[test]
fn life_4_a_list_forgets_what_it_has_not() {
    let gone = [
        About::Object(ObjectKey::Service(service("gone"))),
        unnamed("gone"),
    ];
    let stays = [
        About::Object(ObjectKey::Service(service("stays"))),
        unnamed("stays"),
        About::Object(ObjectKey::Node("node".into())),
        About::Unnamed(ObjectKind::Node, "gone".to_owned()),
        About::Source("test"),
        About::Compiled(Subject::Service(service("gone"))),
    ];
    let diagnostics = Diagnostics::default();
    for about in gone.iter().chain(&stays) {
        diagnostics.set(about.clone(), vec![fault("a")]);
    }
    let seen = BTreeSet::from([ObjectKey::Service(service("stays"))]);
    let named = BTreeSet::from(["stays".to_owned()]);
    diagnostics.keep_listed(ObjectKind::Service, &seen, &named);
    let kept = diagnostics.with(|inner| inner.groups.keys().cloned().collect::<BTreeSet<_>>());
    assert_eq!(kept, BTreeSet::from(stays));
}

#[test]
fn what_is_kept_is_bounded_and_the_rest_is_counted() {
    let diagnostics = Diagnostics::default();
    for i in 0..MAX_GROUPS + 7 {
        let name = i.to_string();
        diagnostics.set(unnamed(&name), vec![fault(&name)]);
    }
    let current = diagnostics.current();
    assert_eq!(current.len(), MAX_GROUPS + 1);
    let last = current.last().unwrap().to_string();
    assert_eq!(last, "7 further objects: have faults that are not listed");
    // Those that were not kept go with their cause too.
    for i in 0..MAX_GROUPS + 7 {
        diagnostics.set(unnamed(&i.to_string()), vec![]);
    }
    assert_eq!(diagnostics.current(), []);

    for i in 0..MAX_GROUPS + MAX_FURTHER + 7 {
        let name = i.to_string();
        diagnostics.set(unnamed(&name), vec![fault(&name)]);
    }
    let n_kept = diagnostics.with(|inner| (inner.groups.len(), inner.further.len()));
    assert_eq!(n_kept, (MAX_GROUPS, MAX_FURTHER));

    let diagnostics = Diagnostics::default();
    let many = (0..2 * MAX_OF_A_GROUP).map(|i| fault(&i.to_string()));
    diagnostics.set(About::Source("test"), many.collect());
    assert_eq!(diagnostics.current().len(), MAX_OF_A_GROUP + 1);
}

#[test]
fn what_is_logged_is_limited_and_the_rest_is_counted() {
    let diagnostics = Diagnostics::default();
    let start = SystemClock.now();
    diagnostics.with(|inner| {
        let mut lines = Vec::new();
        for i in 0..1000 {
            let name = i.to_string();
            lines.extend(inner.set(unnamed(&name), vec![fault(&name)], start));
        }
        assert_eq!(lines.len(), usize::try_from(BURST).unwrap());
        let told = inner.told_of_suppressed(start);
        assert_eq!(told, Some(Line::Suppressed(1000 - u64::from(BURST))));
        assert_eq!(inner.told_of_suppressed(start + SUMMARY), None);
        // The limit holds for whatever comes, however long.
        let flood = |inner: &mut Inner, second: u32| {
            let now = start + EACH * second;
            let name = second.to_string();
            let again = inner.set(
                unnamed(&name),
                vec![fault(&name), fault("b"), fault("c")],
                now,
            );
            again.len() + usize::from(inner.told_of_suppressed(now).is_some())
        };
        let n: usize = (1000..1100).map(|second| flood(inner, second)).sum();
        assert!((100..=140).contains(&n), "{n}");
    });
}
