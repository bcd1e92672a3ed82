//! A minute of torture, the proof that it sees anything, old versions of SQLite
//! and its own programs beside the agent.

mod old_sqlite;
mod programs;
mod shell;
mod torture;
