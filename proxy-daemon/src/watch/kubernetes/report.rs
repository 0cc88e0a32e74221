//! What is a person told when the API server does not do what we ask?
//!
//! Invariants: a failure is told once when it begins and its end once, however often it is repeated;
//! what only a person can mend says how.

use std::error::Error;
use std::fmt::Write as _;

use http::StatusCode;

use super::client::Failure;

/// What was told about one kind.
#[derive(Debug)]
pub(super) struct Reports {
    plural: &'static str,
    /// What was told last, if it has not ended.
    told: Option<String>,
}

impl Reports {
    /// Nothing yet about this kind.
    pub(super) fn new(plural: &'static str) -> Self {
        Self { plural, told: None }
    }

    /// Tells of something that is part of ordinary life.
    pub(super) fn note(&self, failure: &Failure) {
        tracing::debug!(kind = self.plural, "{failure}; going on otherwise");
    }

    /// Tells of a failure, unless it was told already.
    pub(super) fn failure(&mut self, failure: &Failure) {
        let text = sentence(failure, self.plural);
        if self.told.as_ref() == Some(&text) {
            tracing::debug!(kind = self.plural, "{text}");
        } else {
            tracing::warn!(kind = self.plural, "{text}");
            self.told = Some(text);
        }
    }

    /// Tells that it works again.
    pub(super) fn success(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(kind = self.plural, "the API server can be followed again");
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
    let what_to_do = match failure {
        Failure::Refused { status, .. } if *status == StatusCode::FORBIDDEN => format!(
            "; allow our user the verbs list and watch on {plural}, with a ClusterRole \
             and a ClusterRoleBinding; what does not need them is served meanwhile"
        ),
        Failure::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => {
            "; the token or certificate of the kubeconfig or service account is wrong or has expired"
                .to_owned()
        }
        Failure::Refused { status, .. } if *status == StatusCode::NOT_FOUND => {
            format!("; it has no {plural}: what needs them stays off until it has")
        }
        Failure::Refused { .. }
        | Failure::Gone
        | Failure::Connection(_)
        | Failure::Silence(_)
        | Failure::Cut
        | Failure::Garbled(_) => "; the last state stays, and we ask again".to_owned(),
    };
    text.push_str(&what_to_do);
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
        let told = reports.told.clone();
        assert!(told.is_some());
        reports.failure(&refused(StatusCode::FORBIDDEN));
        assert_eq!(reports.told, told);
        reports.success();
        assert_eq!(reports.told, None);
    }
}
