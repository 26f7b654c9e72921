use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A nats-server that answers at once, and the slots of one worker.
struct Queue {
    now: Instant,
    lanes: Lanes,
    waiting: [VecDeque<u32>; 4],
    standing: [bool; 4],
    free: u32,
    /// Jobs in the order in which they were taken.
    taken: Vec<(u8, u32)>,
    rounds: usize,
}

impl Queue {
    fn new(free: u32) -> Self {
        Self {
            now: Instant::now(),
            lanes: Lanes::new(),
            waiting: Default::default(),
            standing: [false; 4],
            free,
            taken: Vec::new(),
            rounds: 0,
        }
    }

    fn publish(&mut self, lane: usize, job: u32) {
        self.waiting[lane].push_back(job);
        self.serve_standing(lane);
    }

    /// Asks and answers until there is nothing more to ask.
    fn settle(&mut self) {
        loop {
            let asks = self.lanes.ask(self.free, self.now);
            if asks.is_empty() {
                return;
            }
            self.rounds += 1;
            let total: u32 =
                asks.iter().map(|(_, ask)| if let PullRequest::Waiting(n) = ask { *n } else { 0 }).sum();
            assert!(total <= self.free, "{total} for {} slots", self.free);
            for (lane, ask) in asks {
                match ask {
                    PullRequest::Waiting(share) => self.serve(lane, share),
                    PullRequest::Next => {
                        assert!(!self.standing[lane.index()], "two requests stand on {lane:?}");
                        self.standing[lane.index()] = true;
                        self.serve_standing(lane.index());
                    }
                }
            }
        }
    }

    fn serve(&mut self, lane: Lane, share: u32) {
        for _ in 0..share {
            match self.waiting[lane.index()].pop_front() {
                Some(job) => self.deliver(lane, job),
                None => return self.lanes.ended(lane),
            }
        }
    }

    fn serve_standing(&mut self, lane: usize) {
        if self.standing[lane]
            && let Some(job) = self.waiting[lane].pop_front()
        {
            self.standing[lane] = false;
            self.deliver(Lane::ALL[lane], job);
        }
    }

    fn deliver(&mut self, lane: Lane, job: u32) {
        self.lanes.delivered(lane);
        if self.free == 0 {
            // Given back.
            return self.waiting[lane.index()].push_back(job);
        }
        self.free -= 1;
        self.taken.push((lane.into(), job));
    }

    fn expire(&mut self) {
        for lane in Lane::ALL {
            if std::mem::take(&mut self.standing[lane.index()]) {
                self.lanes.ended(lane);
            }
        }
    }

    fn lanes_taken(&self) -> Vec<u8> {
        self.taken.iter().map(|(lane, _)| *lane).collect()
    }
}

#[test]
fn one_slot_takes_jobs_in_turns() {
    let mut queue = Queue::new(0);
    (0..40).for_each(|job| (0..4).for_each(|lane| queue.publish(lane, job)));
    for _ in 0..16 {
        queue.free = 1;
        queue.settle();
    }
    assert_eq!(queue.lanes_taken(), [0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0, 3]);
}

#[test]
fn a_single_job_of_the_first_lane_waits_for_no_more_than_one_other() {
    for waiting in 0..8 {
        let mut queue = Queue::new(0);
        (0..40).for_each(|job| (1..4).for_each(|lane| queue.publish(lane, job)));
        for _ in 0..waiting {
            queue.free = 1;
            queue.settle();
        }
        queue.publish(0, 99);
        for _ in 0..2 {
            queue.free = 1;
            queue.settle();
        }
        assert!(queue.taken[waiting..].contains(&(0, 99)), "{:?}", queue.taken);
    }
}

#[test]
fn many_slots_are_filled_in_few_rounds_and_by_turns() {
    let mut queue = Queue::new(64);
    (0..100).for_each(|job| (0..4).for_each(|lane| queue.publish(lane, job)));
    queue.settle();
    assert_eq!((queue.taken.len(), queue.rounds), (64, 1));
    let of = |wanted| queue.lanes_taken().iter().filter(|lane| **lane == wanted).count();
    assert_eq!([of(0), of(1), of(2), of(3)], [32, 16, 8, 8]);

    let mut queue = Queue::new(64);
    (0..100).for_each(|job| queue.publish(3, job));
    queue.settle();
    assert_eq!((queue.taken.len(), queue.rounds), (64, 2));
}

#[test]
fn a_lane_that_was_empty_is_asked_again_though_slots_never_run_out() {
    let mut queue = Queue::new(4);
    (0..1000).for_each(|job| queue.publish(3, job));
    for job in 0..50 {
        // Slots become free while a round is under way.
        let asks = queue.lanes.ask(queue.free, queue.now);
        queue.free += 2;
        for (lane, ask) in asks {
            let PullRequest::Waiting(share) = ask else { panic!("{lane:?} is not known to be empty") };
            queue.serve(lane, share);
        }
        if job == 20 {
            queue.publish(0, 7);
        }
    }
    let before = queue.taken.iter().filter(|(lane, _)| *lane == 0);
    assert_eq!(before.count(), 1, "{:?}", queue.taken);
}

#[test]
fn silence_is_noticed_and_only_where_something_was_asked() {
    let mut lanes = Lanes::new();
    let now = Instant::now();
    assert_eq!(lanes.overdue(), None);
    assert_eq!(lanes.ask(1, now), [(Lane::ALL[0], PullRequest::Waiting(1))]);
    assert_eq!(lanes.overdue(), Some(now + ANSWER_TIMEOUT));
    lanes.delivered(Lane::ALL[0]);
    assert_eq!(lanes.overdue(), None);
    assert_eq!(lanes.ask(0, now), []);
    let mut queue = Queue::new(3);
    queue.settle();
    assert_eq!(queue.lanes.overdue(), Some(queue.now + STANDS + ANSWER_TIMEOUT));
}

#[derive(Debug, Clone)]
enum QueueStep {
    Publish(usize),
    End,
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<QueueStep>> {
    let step = prop_oneof![
        3 => (0..4_usize).prop_map(QueueStep::Publish),
        2 => Just(QueueStep::End),
        1 => Just(QueueStep::Expire),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// No job waits while a slot is free, none is lost or taken twice, and a worker without work has
    /// a request standing on each lane.
    #[test]
    fn no_job_waits_while_a_slot_is_free(slots in 1..5_u32, steps in steps()) {
        let mut queue = Queue::new(slots);
        queue.settle();
        let mut published = 0;
        for step in steps {
            match step {
                QueueStep::Publish(lane) => {
                    queue.publish(lane, published);
                    published += 1;
                }
                QueueStep::End => queue.free = (queue.free + 1).min(slots),
                QueueStep::Expire => queue.expire(),
            }
            queue.settle();
            let waiting: usize = queue.waiting.iter().map(VecDeque::len).sum();
            if queue.free > 0 {
                prop_assert_eq!(waiting, 0);
                prop_assert_eq!(queue.standing, [true; 4]);
            }
            prop_assert_eq!(queue.taken.len() + waiting, published as usize);
        }
        let mut jobs: Vec<u32> = queue.taken.iter().map(|(_, job)| *job).collect();
        jobs.extend(queue.waiting.iter().flatten());
        jobs.sort_unstable();
        prop_assert!(jobs.into_iter().eq(0..published));
    }
}
