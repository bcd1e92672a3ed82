//! How long a failing destination, or a failing database there, is left alone.

use std::time::Duration;
use tokio::time::Instant;
use walhub_common::backoff::{Backoff, Class};

const TRANSIENT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
const THROTTLED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Only a person can mend it; it is tried again so that nothing has to be restarted afterwards.
const PERMANENT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Pauses after failures; each class has its own pace.
pub(super) struct Pauses {
    class: Class,
    backoff: Backoff,
    /// `None` while the next attempt is under way.
    pub(super) until: Option<Instant>,
}

impl Pauses {
    fn after(class: Class) -> Self {
        let (min, max) = match class {
            Class::Throttled => THROTTLED,
            Class::Permanent => PERMANENT,
            Class::Transient | Class::Unknown | Class::Cancelled => TRANSIENT,
        };
        let mut pauses = Self { class, backoff: Backoff::new(min, max), until: None };
        pauses.lengthen();
        pauses
    }

    fn lengthen(&mut self) {
        self.until = Some(Instant::now() + self.backoff.next_delay());
    }

    /// The next pause of a failure that goes on.
    pub(super) fn again(previous: Option<Pauses>, class: Class) -> Self {
        match previous {
            Some(mut pauses) if pauses.class == class => {
                pauses.lengthen();
                pauses
            }
            _ => Self::after(class),
        }
    }

    /// The next attempt may be made.
    pub(super) fn over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}
