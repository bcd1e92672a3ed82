//! One clock for all streams of commits: every `pace` all databases that stream are read.
//!
//! A wake costs more than the reading of a small log, so databases that stream together share it, with all that comes after it:
//! what they send leaves in one write, and is acked together. The kernel keeps the time: a timer of the runtime would wake the
//! thread twice, once to look where in its wheel the timer lies, and once more when it is told of the next one.
//!
//! Invariants: the timer runs while somebody is a [`Member`], and never otherwise: a node on which nothing streams is not woken.
//! A beat that nobody waited for is not lost: the next wait ends at once.

use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See the module doc.
#[derive(Debug)]
pub struct Pulse {
    timer: AsyncFd<OwnedFd>,
    every: Duration,
    members: Mutex<usize>,
}

/// While it lives the pulse beats.
#[derive(Debug)]
pub struct Member(Arc<Pulse>);

impl Pulse {
    /// A pulse that does not beat yet. Call it within a tokio runtime.
    #[expect(
        deprecated,
        reason = "its successor is `unsafe`, for types that may change their descriptor: an OwnedFd never does"
    )]
    pub fn new(every: Duration) -> io::Result<Arc<Pulse>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Arc::new(Pulse { timer, every, members: Mutex::new(0) }))
    }

    /// Lets it beat for as long as the member lives: the first time after `every`, or when it beats for others.
    pub fn join(self: &Arc<Self>) -> Member {
        self.count(|members| {
            *members += 1;
            if *members == 1 {
                self.set(self.every);
            }
        });
        Member(self.clone())
    }

    /// Waits for the next beat; all who wait are woken by it. Where nobody waited then, it may have been a while ago.
    /// Cancel-safe.
    pub async fn beat(&self) {
        match self.timer.readable().await {
            Ok(mut beat) => {
                // The kernel goes on counting when this was read. Whoever comes second finds nothing, and was woken all the same.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                beat.clear_ready();
            }
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }

    fn count(&self, change: impl FnOnce(&mut usize)) {
        change(&mut self.members.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Beats after this time, and again and again; never when it is zero.
    fn set(&self, every: Duration) {
        let every = Timespec::try_from(every).expect("BUG: a pace of centuries");
        let times = Itimerspec { it_interval: every, it_value: every };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times).expect("BUG: a timer that is none");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Member(pulse) = self;
        pulse.count(|members| {
            *members -= 1;
            if *members == 0 {
                pulse.set(Duration::ZERO);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const EVERY: Duration = Duration::from_millis(20);

    async fn soon(beat: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(Duration::from_secs(30), beat).await.is_ok()
    }

    #[tokio::test]
    async fn it_beats_again_and_again_and_no_sooner_than_asked() {
        let pulse = Pulse::new(EVERY).unwrap();
        let begun = Instant::now();
        let _member = pulse.join();
        for n in 1..=5 {
            assert!(soon(pulse.beat()).await);
            assert!(begun.elapsed() >= EVERY * n, "beat {n} after {:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn everybody_who_waits_is_woken_by_one_beat() {
        let pulse = Pulse::new(EVERY).unwrap();
        let (one, two) = (pulse.join(), pulse.join());
        assert!(
            soon(async {
                tokio::join!(pulse.beat(), pulse.beat(), pulse.beat());
            })
            .await
        );
        // It goes on for the one who stays.
        drop(one);
        assert!(soon(pulse.beat()).await);
        drop(two);
    }

    #[tokio::test]
    async fn without_members_there_is_no_beat() {
        let pulse = Pulse::new(EVERY).unwrap();
        drop(pulse.join());
        let silence = tokio::time::timeout(EVERY * 10, pulse.beat()).await;
        assert!(silence.is_err(), "it beats for nobody");
        let _member = pulse.join();
        assert!(soon(pulse.beat()).await);
    }
}
