//! Ends a process whose capture is stuck: a thread that hangs inside a call while it holds SQLite's locks would keep the
//! application from checkpointing, or from writing, for ever. The kernel drops the locks of a dead process at once, and the
//! service manager starts the next one, which finds its place again.
//!
//! Threads at work on a database [`watch`] their work and [`beat`] whenever they get on: with every read of a file, with every
//! page that a checkpoint copies, with every look up from a link that is slow. A look at all of them every [`Limits::tick`]
//! counts the looks without a beat.
//!
//! Invariants
//! - Looks are counted, not time: a process that was stopped (SIGSTOP, a frozen container, a starved machine) did not look
//!   either. A look that comes late counts nothing and forgets what was counted.
//! - Work that waits for the network says so by beating while it waits; it holds nothing that writers need.
//! - Nothing here takes a lock that a stuck thread may hold for long.
//!
//! Non-goals: a process that is stopped cannot end itself; that is the service manager's to see.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a last word may take to be written before the process ends.
const LAST_WORD: Duration = Duration::from_millis(500);

/// When work counts as stuck.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Between two looks.
    pub tick: Duration,
    /// Looks without a beat. A single call may take long on a slow disk: an fsync of a whole WAL on a memory card.
    pub ticks: u32,
    /// The same while the writer lock is held.
    pub ticks_with_writer_lock: u32,
}

impl Limits {
    /// Of the product.
    pub const USUAL: Limits = Limits { tick: Duration::from_secs(3), ticks: 20, ticks_with_writer_lock: 5 };
}

/// What one thread is at.
#[derive(Debug, Default)]
struct Slot {
    at_work: AtomicBool,
    writer_lock: AtomicBool,
    beats: AtomicU64,
    what: Mutex<Option<Arc<str>>>,
}

static SLOTS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

thread_local! {
    static MINE: OnceCell<Arc<Slot>> = const { OnceCell::new() };
}

fn mine<T>(with: impl FnOnce(&Slot) -> T) -> T {
    MINE.with(|mine| {
        with(mine.get_or_init(|| {
            let slot = Arc::new(Slot::default());
            let mut slots = lock(&SLOTS);
            slots.retain(|slot| slot.strong_count() > 0);
            slots.push(Arc::downgrade(&slot));
            slot
        }))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a flag back on every way out.
struct Flag<'a>(&'a AtomicBool);

impl<'a> Flag<'a> {
    fn raise(flag: &'a AtomicBool) -> Flag<'a> {
        flag.store(true, Ordering::Relaxed);
        Flag(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Does work on a database that must get on.
pub fn watch<T>(what: &Arc<str>, work: impl FnOnce() -> T) -> T {
    mine(|slot| {
        *lock(&slot.what) = Some(what.clone());
        slot.beats.fetch_add(1, Ordering::Relaxed);
        let _at_work = Flag::raise(&slot.at_work);
        work()
    })
}

/// As [`watch`], for the part of it during which writers of the application are kept out.
pub fn with_writer_lock<T>(work: impl FnOnce() -> T) -> T {
    mine(|slot| {
        slot.beats.fetch_add(1, Ordering::Relaxed);
        let _writer_lock = Flag::raise(&slot.writer_lock);
        work()
    })
}

/// Waits, within watched work, for somebody who need not get on: the network.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    mine(|slot| {
        let at_work = slot.at_work.swap(false, Ordering::Relaxed);
        let waited = wait();
        slot.beats.fetch_add(1, Ordering::Relaxed);
        slot.at_work.store(at_work, Ordering::Relaxed);
        waited
    })
}

/// The work gets on. Costs next to nothing.
pub fn beat() {
    mine(|slot| slot.beats.fetch_add(1, Ordering::Relaxed));
}

/// Starts to look, on a thread of its own, for as long as the process lives.
pub fn start(limits: Limits) -> std::io::Result<()> {
    let looks = move || {
        let mut counts = Counts::default();
        loop {
            let begun = Instant::now();
            std::thread::sleep(limits.tick);
            let late = begun.elapsed() > 2 * limits.tick;
            let slots: Vec<Arc<Slot>> = lock(&SLOTS).iter().filter_map(Weak::upgrade).collect();
            if let Some(stuck) = counts.look(&slots, late, &limits) {
                end(&stuck, &limits);
            }
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(looks).map(|_| ())
}

/// Beats and looks without a new one, for each thread.
#[derive(Debug, Default)]
struct Counts(HashMap<*const Slot, (u64, u32)>);

impl Counts {
    /// One look; the slot that is stuck.
    fn look(&mut self, slots: &[Arc<Slot>], late: bool, limits: &Limits) -> Option<Arc<Slot>> {
        if late {
            self.0.clear();
            return None;
        }
        let mut seen = HashMap::new();
        let mut stuck = None;
        for slot in slots.iter().filter(|slot| slot.at_work.load(Ordering::Relaxed)) {
            let beats = slot.beats.load(Ordering::Relaxed);
            let key = Arc::as_ptr(slot);
            let ticks = match self.0.get(&key) {
                Some((before, ticks)) if *before == beats => ticks + 1,
                _ => 0,
            };
            let most = match slot.writer_lock.load(Ordering::Relaxed) {
                true => limits.ticks_with_writer_lock,
                false => limits.ticks,
            };
            if ticks >= most {
                stuck = Some(slot.clone());
            }
            seen.insert(key, (beats, ticks));
        }
        self.0 = seen;
        stuck
    }
}

/// The kernel takes the locks back.
fn end(stuck: &Slot, limits: &Limits) -> ! {
    let database = lock(&stuck.what).clone().unwrap_or_default();
    let writer_lock = stuck.writer_lock.load(Ordering::Relaxed);
    let tick = limits.tick;
    // A log that cannot be written must not keep the process alive.
    let word = std::thread::Builder::new().spawn(move || {
        tracing::error!(%database, writer_lock, ?tick, "capture is stuck while it holds SQLite's locks; this process ends itself so that the application goes on");
    });
    if word.is_ok() {
        std::thread::sleep(LAST_WORD);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tick: Duration::from_millis(1), ticks: 5, ticks_with_writer_lock: 2 };

    fn slots(at_work: bool, writer_lock: bool) -> Vec<Arc<Slot>> {
        let slot = Slot::default();
        slot.at_work.store(at_work, Ordering::Relaxed);
        slot.writer_lock.store(writer_lock, Ordering::Relaxed);
        vec![Arc::new(slot)]
    }

    /// Looks until something is stuck.
    fn looks(slots: &[Arc<Slot>], mut each: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut counts = Counts::default();
        (1..50).find(|n| counts.look(slots, each(*n), &LIMITS).is_some())
    }

    #[test]
    fn silence_is_counted_and_shorter_while_writers_wait() {
        assert_eq!(looks(&slots(true, false), |_| false), Some(6));
        assert_eq!(looks(&slots(true, true), |_| false), Some(3));
        assert_eq!(looks(&slots(false, false), |_| false), None, "nobody is at work");
    }

    #[test]
    fn a_beat_begins_the_count_anew() {
        let slots = slots(true, false);
        let beating = looks(&slots, |n| {
            if n % 4 == 0 {
                slots[0].beats.fetch_add(1, Ordering::Relaxed);
            }
            false
        });
        assert_eq!(beating, None);
    }

    #[test]
    fn a_process_that_slept_is_not_blamed_for_it() {
        // Every fourth look comes late, as after a stop.
        assert_eq!(looks(&slots(true, false), |n| n % 4 == 0), None);
        // Once awake it is counted from the beginning.
        assert_eq!(looks(&slots(true, false), |n| n == 5), Some(11));
    }

    #[test]
    fn work_is_watched_while_it_lasts_and_after_a_panic_no_more() {
        let what: Arc<str> = "app".into();
        let flags = || mine(|s| (s.at_work.load(Ordering::Relaxed), s.writer_lock.load(Ordering::Relaxed)));
        watch(&what, || {
            assert_eq!(flags(), (true, false));
            with_writer_lock(|| assert_eq!(flags(), (true, true)));
            assert_eq!(flags(), (true, false));
        });
        assert_eq!(flags(), (false, false));
        let died = std::panic::catch_unwind(|| watch(&what, || with_writer_lock(|| panic!("on purpose"))));
        assert!(died.is_err());
        assert_eq!(flags(), (false, false));
    }
}
