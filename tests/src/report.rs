//! Numbers that a run should show beside "passed": printed, and kept in the file `WALHUB_TEST_REPORT` names.

use std::io::Write;

/// Rounds of kills this run wants: `WALHUB_TEST_ROUNDS`, 20 when it is not set.
pub fn rounds() -> u64 {
    match std::env::var("WALHUB_TEST_ROUNDS") {
        Ok(text) => text.parse().expect("WALHUB_TEST_ROUNDS is a number"),
        Err(_) => 20,
    }
}

/// Shows a piece of text under a title.
pub fn report(title: &str, text: &str) {
    let block = format!("-- {title}\n{}\n", text.trim_end());
    eprint!("{block}");
    if let Some(path) = std::env::var_os("WALHUB_TEST_REPORT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(block.as_bytes())).expect("report file");
    }
}
