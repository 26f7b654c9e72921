//! Clients that disconnect are noticed and their jobs are cancelled; whoever stays is not disturbed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::event_logs;
use emberline_test_kit::random;
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::stack::Stack;
use emberline_test_kit::wait;
use futures::future::{join_all, try_join_all};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

const VANISHING: usize = 50;
const STAYING: usize = 6;
/// Words that take longer than any test waits.
const ENDLESS: usize = 20_000;

/// What one client asks for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    endpoint: Endpoint,
    stream: bool,
    words: usize,
}

impl Ask {
    fn draw(random: &mut StdRng, words: usize) -> Self {
        let endpoint = *Endpoint::ALL.choose(random).unwrap_or(&Endpoint::Chat);
        Self { endpoint, stream: random.random(), words }
    }

    /// Waits for the whole answer, which must be complete.
    async fn stay(self, stack: &Stack) -> Result<()> {
        let response = self.endpoint.ask(stack, self.words, self.stream, &[]).await?;
        let text = self.endpoint.read(response, self.stream).await?;
        ensure!(text == words(self.words), "{self:?}: {text}");
        Ok(())
    }

    /// Closes the connection after a while.
    async fn vanish(self, stack: &Stack, after: Duration) -> Result<()> {
        match tokio::time::timeout(after, self.stay(stack)).await {
            Ok(Ok(())) => anyhow::bail!("{self:?} was answered"),
            Ok(error) => error.with_context(|| format!("{self:?}")),
            Err(_) => Ok(()),
        }
    }
}

#[tokio::test]
async fn clients_that_vanish_in_mid_answer_free_their_slots() -> Result<()> {
    let mut random = random::generator()?;
    let stack = Stack::start_with(paced(20, 64, &[])).await?;
    let stay = (0..STAYING).map(|_| Ask::draw(&mut random, 320).stay(&stack)).collect::<Vec<_>>();
    let everybody = async {
        stack.heartbeat(|h| h.active as usize == VANISHING + STAYING).await?;
        anyhow::Ok(())
    };
    // All of them are answered before the first one goes.
    let vanish = (0..VANISHING).map(|_| {
        let ask = Ask::draw(&mut random, ENDLESS);
        ask.vanish(&stack, Duration::from_millis(random.random_range(4000..4500)))
    });
    let vanish = vanish.collect::<Vec<_>>();
    let gone = async {
        tokio::try_join!(everybody, try_join_all(vanish))?;
        let gone = Instant::now();
        // Those who stay are still being answered.
        stack.heartbeat(|h| h.active as usize == STAYING).await?;
        println!("the slots were free after {:?}", gone.elapsed());
        Ok(())
    };
    tokio::try_join!(try_join_all(stay), gone)?;
    stack.wait_for_empty_queue().await?;
    assert_eq!(event_logs::cancelled(&stack.nats).await?, VANISHING);
    Ok(())
}

#[tokio::test]
async fn clients_that_vanish_at_any_time_free_what_they_hold() -> Result<()> {
    let mut random = random::generator()?;
    // Most of them never get a slot.
    let stack = Stack::start_with(paced(20, 8, &[])).await?;
    let mut leave: Vec<bool> = [vec![true; VANISHING], vec![false; STAYING]].concat();
    leave.shuffle(&mut random);
    let (mut vanish, mut stay) = (Vec::new(), Vec::new());
    for leaves in leave {
        let begin = Duration::from_millis(random.random_range(0..1000));
        let patience = Duration::from_millis(random.random_range(0..4000));
        let ask = Ask::draw(&mut random, if leaves { ENDLESS } else { 360 });
        let stack = &stack;
        if leaves {
            vanish.push(async move {
                tokio::time::sleep(begin).await;
                ask.vanish(stack, patience).await
            });
        } else {
            stay.push(async move {
                tokio::time::sleep(begin).await;
                ask.stay(stack).await
            });
        }
    }
    let gone = async {
        join_all(vanish).await.into_iter().collect::<Result<()>>()?;
        let gone = Instant::now();
        wait::until("only the jobs of those who stay are left", async || {
            Ok(stack.jobs_pending().await? <= STAYING as u64)
        })
        .await?;
        println!("the queue was free after {:?}", gone.elapsed());
        Ok(())
    };
    tokio::try_join!(try_join_all(stay), gone)?;
    stack.wait_for_empty_queue().await
}

#[tokio::test]
async fn a_killed_function_frees_its_slots() -> Result<()> {
    let mut stack = Stack::start_with(paced(20, 8, &[])).await?;
    let client = Endpoint::Chat.ask(&stack, ENDLESS, true, &[]).await?;
    stack.heartbeat(|h| h.active == 1).await?;
    stack.kill_host();
    let killed = Instant::now();
    stack.heartbeat(|h| h.active == 0).await?;
    println!("the slot was free after {:?}", killed.elapsed());
    stack.wait_for_empty_queue().await?;
    assert_eq!(event_logs::cancelled(&stack.nats).await?, 1);
    drop(client);
    Ok(())
}
