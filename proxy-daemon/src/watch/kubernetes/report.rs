//! What is logged when requests to the API server fail?
//!
//! Invariants: a failure is logged once when it begins and once when it ends, however often it repeats;
//! lines of one sort come at a limited rate, with the number of suppressed lines, whatever the server
//! sends; a failure that needs an operator says what to do.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::failure::Failure;

/// How long a sort of line is not written again: at first, and at most while it goes on.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// The state of the log lines about one kind.
#[derive(Debug, Default)]
pub(super) struct Reports {
    plural: &'static str,
    /// The last failure, if it has not ended.
    logged: Option<String>,
    failures: Limit,
    rewinds: Limit,
    throttles: Limit,
    deletions: Limit,
}

/// When a line of one sort may be written again.
#[derive(Debug, Default)]
struct Limit {
    /// When, and how long the pause before was.
    next: Option<(Instant, Duration)>,
    /// How many lines were left out since.
    n_unsaid: u32,
}

impl Limit {
    /// Whether a line may be written now, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let pause = match self.next {
            Some((at, _)) if now < at => {
                self.n_unsaid = self.n_unsaid.saturating_add(1);
                return None;
            }
            // After a quiet time the next pause is a short one again.
            Some((at, pause)) if now < at + pause => (pause * 2).min(PAUSE.1),
            Some(_) | None => PAUSE.0,
        };
        self.next = Some((now + pause, pause));
        Some(std::mem::take(&mut self.n_unsaid))
    }
}

impl Reports {
    /// Nothing yet about this kind.
    pub(super) fn new(plural: &'static str) -> Self {
        Self {
            plural,
            ..Self::default()
        }
    }

    /// Logs an expected failure.
    pub(super) fn note(&self, failure: &Failure) {
        tracing::debug!(kind = self.plural, "{failure}; trying another request");
    }

    /// Logs a failure, unless it was logged already.
    pub(super) fn failure(&mut self, failure: &Failure) {
        let text = sentence(failure, self.plural);
        if self.logged.as_ref() == Some(&text) {
            tracing::debug!(kind = self.plural, "{text}");
        } else if let Some(n_unsaid) = self.failures.take(Instant::now()) {
            tracing::warn!(kind = self.plural, n_unsaid, "{text}");
            self.logged = Some(text);
        } else {
            tracing::debug!(kind = self.plural, "{text}");
        }
    }

    /// Logs that it works again.
    pub(super) fn success(&mut self) {
        if self.logged.take().is_some() {
            tracing::info!(kind = self.plural, "watching the API server again");
        }
    }

    /// Logs that the server's state was replaced by an older one.
    pub(super) fn rewound(&mut self, failure: &Failure) {
        if let Some(n_unsaid) = self.rewinds.take(Instant::now()) {
            tracing::warn!(
                kind = self.plural,
                n_unsaid,
                "{failure}; listing all {} again and removing those that are gone",
                self.plural
            );
        }
    }

    /// Logs that our Node was deleted.
    pub(super) fn node_deleted(&mut self) {
        if let Some(n_unsaid) = self.deletions.take(Instant::now()) {
            tracing::warn!(
                n_unsaid,
                "our Node was deleted; its last state stays active"
            );
        }
    }

    /// Logs that the server makes us ask again and again without an error that was logged.
    pub(super) fn throttled(&mut self, now: Instant) {
        if self.logged.is_none()
            && let Some(n_unsaid) = self.throttles.take(now)
        {
            tracing::warn!(
                kind = self.plural,
                n_unsaid,
                "the API server ends lists and watches of {} soon after they began: asking less often, \
                 so that changes arrive some seconds late; check its log and the network in between",
                self.plural
            );
        }
    }
}

/// The whole chain of causes, and what can be done.
fn sentence(failure: &Failure, plural: &str) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let error_text = error.to_string();
        // Many errors repeat their cause in their own text.
        if !text.ends_with(&error_text) {
            write!(text, ": {error_text}").unwrap_or_default();
        }
        cause = error.source();
    }
    let advice = match failure {
        Failure::Refused { status, .. } if *status == StatusCode::FORBIDDEN => format!(
            "; allow our user the verbs list and watch on {plural}, with a ClusterRole \
             and a ClusterRoleBinding; everything else is served meanwhile"
        ),
        Failure::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => {
            "; the token or certificate of the kubeconfig or service account is wrong or has expired"
                .to_owned()
        }
        Failure::Refused { status, .. } if *status == StatusCode::NOT_FOUND => {
            format!("; it has no {plural}: features that need them are off until it has")
        }
        Failure::Refused { .. }
        | Failure::Gone
        | Failure::Rewound { .. }
        | Failure::Connection(_)
        | Failure::Silence(_)
        | Failure::PlainWatch
        | Failure::Cut
        | Failure::Garbled(_) => "; will retry, the last state stays active".to_owned(),
    };
    text.push_str(&advice);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: StatusCode) -> Failure {
        Failure::Refused {
            status,
            retry_after: None,
            message: "no".to_owned(),
        }
    }

    #[test]
    fn api_3_a_missing_permission_is_told_with_what_to_do() {
        let text = sentence(&refused(StatusCode::FORBIDDEN), "nodes");
        assert!(text.contains("403 Forbidden: no"), "{text}");
        assert!(
            text.contains("list and watch on nodes, with a ClusterRole"),
            "{text}"
        );
        let text = sentence(&refused(StatusCode::UNAUTHORIZED), "nodes");
        assert!(text.contains("token or certificate"), "{text}");
    }

    #[test]
    fn a_failure_is_told_once_until_it_ends() {
        let mut reports = Reports::new("nodes");
        reports.failure(&refused(StatusCode::FORBIDDEN));
        let logged = reports.logged.clone();
        assert!(logged.is_some());
        reports.failure(&refused(StatusCode::FORBIDDEN));
        assert_eq!(reports.logged, logged);
        reports.success();
        assert_eq!(reports.logged, None);
    }

    #[test]
    fn life_3_lines_come_at_a_limited_rate_whatever_they_say() {
        let mut reports = Reports::new("nodes");
        let garbled = |n: u32| Failure::Garbled(format!("text {n}"));
        reports.failure(&garbled(0));
        for n in 1..1000 {
            reports.failure(&garbled(n));
            reports.success();
        }
        assert_eq!(reports.failures.n_unsaid, 999);
    }

    #[test]
    fn a_limit_lets_lines_through_ever_more_seldom_and_recovers_when_it_is_quiet() {
        let began = Instant::now();
        let mut limit = Limit::default();
        let mut times = Vec::new();
        let mut n_unsaid = 0;
        for second in 0..3600 {
            if let Some(n) = limit.take(began + Duration::from_secs(second)) {
                times.push(second);
                n_unsaid += n;
            }
        }
        assert_eq!(times[..5], [0, 10, 30, 70, 150]);
        assert!(times.len() < 40, "{times:?}");
        let last = times.last().copied().unwrap_or_default();
        let n_lines = u32::try_from(times.len()).unwrap_or_default();
        let n_after = 3600 - 1 - u32::try_from(last).unwrap_or_default();
        assert_eq!(n_unsaid, 3600 - n_lines - n_after);
        let later = began + Duration::from_secs(7200);
        assert!(limit.take(later).is_some());
        assert!(limit.take(later + PAUSE.0).is_some());
    }
}
