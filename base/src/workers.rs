//! One single-threaded runtime per core, devices spread over them.
//!
//! A relay on the work-stealing runtime costs a quarter more than the same relay on a single-threaded
//! one (FACTS, section 1): tasks that wake each other stay on one core. So whatever belongs to one
//! device (its uplink, its streams, its recording) is spawned on the same worker.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::runtime::Handle;

/// Cheap to clone; the threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Workers {
    handles: Arc<[Handle]>,
    next: Arc<AtomicUsize>,
    _threads: Arc<Threads>,
}

struct Threads(Vec<(tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>)>);

impl Workers {
    /// Starts `count` workers; 0 means one per core.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize) -> std::io::Result<Workers> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            count => count,
        };
        let mut handles = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let (sender, ended) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                // Ends with the sender, and drops what the roles have left behind.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })?;
            threads.push((sender, thread));
        }
        Ok(Workers {
            handles: handles.into(),
            next: Arc::new(AtomicUsize::new(0)),
            _threads: Arc::new(Threads(threads)),
        })
    }

    /// Workers that are the runtime of the caller: for tests with paused time, and for programs that
    /// have one thread.
    pub fn current() -> Workers {
        Workers {
            handles: Arc::new([Handle::current()]),
            next: Arc::new(AtomicUsize::new(0)),
            _threads: Arc::new(Threads(Vec::new())),
        }
    }

    /// The next worker, in turn.
    pub fn next(&self) -> Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles[turn % self.handles.len()].clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (end, thread) in self.0.drain(..) {
            drop(end);
            // The last clone may be dropped by a task on one of the workers themselves.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_stay_on_their_worker_and_threads_end_with_the_last_clone() {
        let workers = Workers::start(2).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (first, second) = (workers.next(), workers.next());
        let name = |handle: &Handle| {
            let task = handle.spawn(async {
                tokio::task::yield_now().await;
                std::thread::current().name().map(str::to_owned)
            });
            runtime.block_on(task).unwrap().unwrap()
        };
        assert_eq!(name(&first), "worker-0");
        assert_eq!(name(&second), "worker-1");
        assert_eq!(name(&workers.next()), "worker-0");
        drop(workers);
        let after = first.spawn(async {});
        assert!(runtime.block_on(after).unwrap_err().is_cancelled());
    }
}
