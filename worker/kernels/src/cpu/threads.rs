//! Distributes the tasks of an operation among threads.
//!
//! A step is some hundreds of operations of a few microseconds each, so a thread that starts late, or
//! not at all, must not delay the others: threads take tasks one by one from a shared counter, the
//! calling thread first. Waking a sleeping thread takes longer than many operations. Rayon's threads
//! look for work for about 30 µs before they sleep, which bridges the gaps between the operations of a
//! step if the step itself runs on one of them (see [`run_step`]).

use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` with each number below `tasks`, on several threads if there is more than one task.
pub(crate) fn for_each(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(work);
        return;
    }
    let next = AtomicUsize::new(0);
    let take_tasks = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    spread(threads, &take_tasks);
}

/// Like [`for_each`], but on this thread alone if there are fewer than `many` tasks.
pub(crate) fn for_each_if_many(tasks: usize, many: usize, work: impl Fn(usize) + Sync) {
    if tasks < many {
        (0..tasks).for_each(work);
    } else {
        for_each(tasks, work);
    }
}

/// Runs `work` on up to `threads` threads, including this one.
fn spread(threads: usize, work: &(impl Fn() + Sync)) {
    if threads == 1 {
        return work();
    }
    rayon::join(|| spread(threads - threads / 2, work), || spread(threads / 2, work));
}

/// Runs a step on one of rayon's threads, where its operations on the CPU start fastest.
pub fn run_step<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| step())
}
