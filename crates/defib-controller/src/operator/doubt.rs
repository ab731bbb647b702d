//! Answers that no leader has confirmed: in an outage what a replica knows is better than nothing, if it says how old
//! that may be.

use defib_rpc::UNCONFIRMED;
use tonic::{Code, Response, Status, metadata::MetadataValue};

use super::OperatorService;
use crate::who::Who;

/// Why an answer may be old, if it may.
#[derive(Debug, Clone)]
pub(super) struct Doubt(Option<String>);

impl Doubt {
    pub(super) const NONE: Self = Self(None);

    /// The answer, with the doubt beside it.
    pub(super) fn mark<T>(&self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        if let Some(why) = &self.0 {
            // Texts of other programs may be among it, and a header takes plain letters only.
            let plain: String =
                why.chars().map(|letter| if matches!(letter, ' '..='~') { letter } else { '?' }).collect();
            if let Ok(value) = MetadataValue::try_from(plain) {
                response.metadata_mut().insert(UNCONFIRMED, value);
            }
        }
        response
    }

    /// That something is not there.
    pub(super) fn not_found(&self, what: String) -> Status {
        Status::not_found(match &self.0 {
            Some(why) => format!("{what}, as far as is known: {why}"),
            None => what,
        })
    }

    pub(super) fn why(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl OperatorService {
    /// What to think of what every replica has alike.
    pub(super) async fn doubt_unless_led(&self, who: &Who) -> Result<Doubt, Status> {
        match self.read(|view| view.role.leader).await? {
            Some(_) => Ok(Doubt::NONE),
            None => self.doubt(who, Status::unavailable("there is no leader now")).await,
        }
    }

    /// What to think of this replica's own answer, where the leader could not be asked.
    ///
    /// # Errors
    /// When this is the leader's answer and has to be passed on, or somebody else asks on an operator's behalf.
    pub(super) async fn doubt(&self, who: &Who, status: Status) -> Result<Doubt, Status> {
        let unanswered = matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
        );
        if who.forwarded || !unanswered {
            return Err(status);
        }
        let (leader, unled_for) =
            self.read(|view| (view.role.leader, view.unled_since.map(|since| view.now.since(since)))).await?;
        let me = self.me;
        Ok(Doubt(Some(match (leader, unled_for) {
            (None, Some(span)) => format!(
                "not confirmed by a leader: replica {me} has known none for {} s and answers from what it knew by then; \
                 nothing is decided before a majority of replicas reach each other",
                span.0 / 1000
            ),
            (Some(leader), _) if leader != me => format!(
                "replica {leader} leads and can't be asked ({}): this is what replica {me} knows, not confirmed by a leader, and \
                 it may be old",
                status.message()
            ),
            _ => format!(
                "not confirmed by a leader: it has just changed, and replica {me} answers from what it knows"
            ),
        })))
    }
}
