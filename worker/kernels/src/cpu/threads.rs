//! Sharing an operation among threads.
//!
//! A step is some hundreds of operations of a few microseconds each, so what counts is that a
//! thread which comes late, or not at all, delays nobody: tasks are taken one by one from a common
//! counter, by the calling thread first. Waking a sleeping thread takes longer than many of the
//! operations; rayon's threads go on looking for work for some 30 µs before they sleep, which
//! bridges the gaps within a step when the step itself runs on one of them (see [`run_step`]).

use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` for each of `tasks`, on several threads where there is more than one task.
pub(crate) fn each(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(work);
        return;
    }
    let next = AtomicUsize::new(0);
    let work_off = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    spread(threads, &work_off);
}

/// As [`each`], on this thread alone where there are fewer than `many` tasks.
pub(crate) fn each_of_many(tasks: usize, many: usize, work: impl Fn(usize) + Sync) {
    if tasks < many {
        (0..tasks).for_each(work);
    } else {
        each(tasks, work);
    }
}

/// Runs `work` on up to `threads` threads, this one among them.
fn spread(threads: usize, work: &(impl Fn() + Sync)) {
    if threads == 1 {
        return work();
    }
    rayon::join(|| spread(threads - threads / 2, work), || spread(threads / 2, work));
}

/// Runs a step's operations where they start fastest on the CPU: on one of rayon's threads.
pub fn run_step<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| step())
}
