//! Tasks that are named, owned and cancelled: the one place that may call `tokio::spawn`.

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A family of tasks with one cancellation token. Cloning gives another handle on the same family.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    name: &'static str,
    token: CancellationToken,
    tracker: TaskTracker,
}

impl TaskGroup {
    /// A family with its own token.
    pub fn new(name: &'static str) -> Self {
        Self { name, token: CancellationToken::new(), tracker: TaskTracker::new() }
    }

    /// Cancelled when the family must end. Every wait inside a task selects on it.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a task of this family. A panic in it is reported by the panic hook and ends the task alone.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(task))
    }

    /// As [`TaskGroup::spawn`] for blocking work: the family has not ended before it has, even when nobody awaits it.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tracker.spawn_blocking(work)
    }

    /// Cancels and waits for all tasks, at most `deadline`. False when some were still running then.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        if !ended {
            tracing::warn!(group = self.name, tasks = self.tracker.len(), "tasks did not end in time");
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_cancels_and_waits() {
        let group = TaskGroup::new("test");
        let token = group.token().clone();
        let task = group.spawn(async move {
            token.cancelled().await;
            7
        });
        assert!(group.shutdown(Duration::from_secs(5)).await);
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn blocking_work_that_nobody_awaits_is_waited_for() {
        let group = TaskGroup::new("test");
        let (go, wait) = std::sync::mpsc::channel::<()>();
        drop(group.spawn_blocking(move || wait.recv()));
        assert!(!group.shutdown(Duration::from_millis(10)).await);
        go.send(()).unwrap();
        assert!(group.shutdown(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn a_task_that_ignores_its_token_is_reported() {
        let group = TaskGroup::new("test");
        group.spawn(std::future::pending::<()>());
        assert!(!group.shutdown(Duration::from_millis(10)).await);
    }
}
