//! The steps of an in-place restore that need the capture: how the live database differs, the state asked for
//! as a file, and the replacement itself.

use super::desk::{Done, Refused};
use super::drive::{Driver, End, failed};
use crate::capture::Wanted;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

/// The outer result ends the stretch of work, the inner one is the answer.
type Answer = Result<Result<Done, Refused>, End>;

impl Driver<'_> {
    /// Compares and pins.
    pub(super) async fn survey(&mut self, wanted: &Arc<Wanted>) -> Answer {
        let _turn = self.turn().await;
        let wanted = wanted.clone();
        let surveyed = self.blocking(move |f| f.capture.survey(&wanted)).await?.map_err(failed)?;
        Ok(surveyed.map(Done::Surveyed).map_err(|why| {
            let advice = "stop the application and use `hubctl restore --replace`, or on the node `walhub-agent restore --force`";
            Refused::new(
                "not-in-place",
                format!("{} cannot be brought back in place: {why}", self.db.name),
                advice,
            )
        }))
    }

    /// Writes the state into a file of the caller's.
    pub(super) async fn assemble(&mut self, wanted: &Arc<Wanted>, to: &Arc<File>) -> Answer {
        let _turn = self.turn().await;
        let (wanted, to) = (wanted.clone(), to.clone());
        let assembled = self.blocking(move |f| f.capture.assemble(&wanted, &to)).await?.map_err(failed)?;
        Ok(Ok(Done::Assembled(assembled)))
    }

    /// One try.
    pub(super) async fn replace(&mut self, wanted: &Arc<Wanted>, wait: Duration) -> Answer {
        let wanted = wanted.clone();
        let replaced = self.blocking(move |f| f.capture.replace(&wanted, wait)).await?.map_err(failed)?;
        self.account();
        Ok(Ok(Done::Replaced(replaced)))
    }
}
