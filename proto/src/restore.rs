//! A client's restore of a whole database: the point, then its pages, in as many requests as it takes.

use crate::pages::{Pages, PagesError, SPANS, point_of};
use crate::v1::restore_request::Target;
use crate::v1::{RestorePlan, RestoreRequest};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use tonic::transport::Channel;
use walhub_common::PageSet;
use walhub_common::restore::frames::Frames;
use walhub_common::restore::{Point, fill};

/// A point that the hub has looked up, and its pages on their way.
#[derive(Debug)]
pub struct Whole {
    /// What is to come of it.
    pub point: Point,
    /// The hub's plan.
    pub plan: RestorePlan,
    channel: Channel,
    request: RestoreRequest,
    verify: bool,
    now: Option<Pages>,
    rest: VecDeque<Vec<RangeInclusive<u32>>>,
}

impl Whole {
    /// Asks for it. With `verify` the hub reads every file whole before it sends a page of it: after an answer that gave another
    /// database than the source's.
    pub async fn open(
        channel: Channel,
        mut request: RestoreRequest,
        verify: bool,
    ) -> Result<Whole, PagesError> {
        // The pages begin to come with the plan: mostly all of them are wanted.
        let (plan, pages) = Pages::open(channel.clone(), request.clone(), &[], verify).await?;
        let point = point_of(&plan)?;
        // Later requests are for exactly this point.
        request.target = Some(Target::Txid(point.txid.get()));
        Ok(Whole { point, plan, channel, request, verify, now: Some(pages), rest: VecDeque::new() })
    }

    /// Leaves out pages that are `present` here.
    pub fn without(mut self, present: &PageSet) -> Whole {
        if !present.is_empty() {
            let gaps: Vec<_> = present.gaps().collect();
            self.rest = gaps.chunks(SPANS).map(<[_]>::to_vec).collect();
            self.now = None;
        }
        self
    }
}

impl fill::Pages for Whole {
    type Error = PagesError;

    async fn next(&mut self) -> Result<Option<Frames>, PagesError> {
        loop {
            if let Some(pages) = &mut self.now {
                match pages.next().await? {
                    Some(frames) => return Ok(Some(frames)),
                    None => self.now = None,
                }
            }
            let Some(runs) = self.rest.pop_front() else { return Ok(None) };
            let opened = Pages::open(self.channel.clone(), self.request.clone(), &runs, self.verify).await;
            self.now = Some(opened?.1);
        }
    }
}
