//! Whatever is planned, every sequence is computed as if it were alone.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    /// A prompt with a block of one of three beginnings, so many common tokens, and its own.
    Submit {
        head: u32,
        common: usize,
        own: usize,
        choices: usize,
        length: usize,
        /// Logits are wanted from this position of the prompt on.
        scored: Option<usize>,
    },
    /// Cancels one of the requests so far.
    Cancel(prop::sample::Index),
    /// One choice ends early, as by a stop string.
    Stop(prop::sample::Index),
    Steps(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let choices = prop_oneof![3 => Just(1), 1 => 2..6_usize];
    let scored = prop::option::weighted(0.3, 0..60_usize);
    let submit = (0..3_u32, 0..50_usize, 0..25_usize, choices, 1..40_usize, scored);
    let submit = submit.prop_map(|(head, common, own, choices, length, scored)| Act::Submit {
        head,
        common,
        own,
        choices,
        length,
        scored,
    });
    prop_oneof![
        4 => submit,
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Act::Stop),
        4 => (1..12_usize).prop_map(Act::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// However requests come, go and crowd each other out, no block is lost or written by two, and
    /// every sequence says what it says alone.
    #[test]
    fn every_schedule_gives_solo_answers(
        acts in prop::collection::vec(act(), 1..50),
        sequences in 1..12_usize,
        prefill_budget in prop_oneof![1..8_usize, 8..80_usize],
        // The largest request needs 8 blocks.
        blocks in prop_oneof![8..14_usize, 14..100_usize],
        drafts in prop::option::of((any::<u64>(), 0..64_usize)),
    ) {
        let draft_budget = drafts.map_or(0, |(_, most)| most);
        let limits = SchedulerLimits { sequences, prefill_budget, draft_budget, blocks };
        let mut runs = Runs { drafts: drafts.map(|(seed, _)| seed), ..Runs::new(limits) };
        for (number, act) in (100..).zip(acts) {
            match act {
                Act::Submit { head, common, own, choices, length, scored } => {
                    let prompt = [vec![head; BLOCK_SIZE], text(common), vec![number; own]].concat();
                    match scored {
                        None => runs.submit(&prompt, choices, length),
                        Some(from) => runs.submit_scored(&prompt, from, choices, length),
                    };
                }
                Act::Cancel(which) if !runs.requests.is_empty() => {
                    runs.cancel(which.index(runs.requests.len()) as u64);
                }
                Act::Stop(which) => {
                    let decoding = runs.decoding();
                    if !decoding.is_empty() {
                        let id = decoding[which.index(decoding.len())];
                        runs.scheduler.finish(id);
                        let request = &mut runs.requests[id.request as usize];
                        // Checked as far as it came, like the other choices of its request.
                        request.cancelled = true;
                    }
                }
                Act::Cancel(_) => {}
                Act::Steps(steps) => (0..steps).for_each(|_| drop(runs.step())),
            }
        }
        runs.finish();
        runs.assert_answers();
    }
}
