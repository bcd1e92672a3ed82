//! Where the programs under test lie: beside the running test executable, as cargo puts them.

use std::path::PathBuf;

/// Path of a program of this workspace. `WALHUB_TEST_BIN_DIR` names another folder.
pub fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(
        path.is_file(),
        "{} does not exist: run `cargo build --workspace --bins` first (or `tests/run`, which does)",
        path.display()
    );
    path
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("WALHUB_TEST_BIN_DIR") {
        return folder.into();
    }
    let mut folder = std::env::current_exe().expect("path of the test executable");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder
}

/// Root of the source tree.
pub fn source_root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests crate lies in the workspace").to_path_buf()
}
