//! Waiting for a condition with a deadline: the only way tests wait.

use std::time::{Duration, Instant};

/// Calls `probe` until it gives a value; panics with the last reason when `within` has passed.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, probe: impl FnMut() -> Result<T, String>) -> T {
    match try_eventually(within, probe) {
        Ok(value) => value,
        Err(reason) => panic!("{what}: not within {within:?}: {reason}"),
    }
}

/// As [`eventually`], but hands the last reason back.
pub fn try_eventually<T>(
    within: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let reason = match probe() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if started.elapsed() >= within {
            return Err(reason);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// `Ok(())` when `holds`, else the reason: the usual body of a probe.
pub fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_or_the_last_reason() {
        let mut calls = 0;
        let value = eventually("three calls", Duration::from_secs(5), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err("too few".to_owned()) }
        });
        assert_eq!(value, 3);
        let gave_up = try_eventually(Duration::from_millis(5), || Err::<(), _>("never".to_owned()));
        assert_eq!(gave_up, Err("never".to_owned()));
    }
}
