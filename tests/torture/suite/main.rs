//! A minute of torture, the proof that it sees anything, and old versions of SQLite beside the agent.

mod old_sqlite;
mod shell;
mod torture;
