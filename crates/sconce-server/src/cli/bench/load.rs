//! [`Load`]: requests that reach a server at their times, and what becomes of them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::Answer;
use super::client::Client;
use super::random::Random;
use crate::cli::progress::Counter;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Requests a second on average; infinite: all at once.
    pub(super) request_rate: f64,
    /// Most requests that are under way; others wait.
    pub(super) max_concurrency: Option<usize>,
}

/// What became of all requests.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) answers: Vec<Answer>,
    pub(super) num_failed: usize,
    pub(super) first_error: Option<String>,
    /// From the first request to the last answer.
    pub(super) elapsed_s: f64,
}

impl Load {
    /// Sends every body and waits for all answers. A request's time begins when it may be sent.
    pub(super) async fn run(
        self,
        client: &Client,
        bodies: Vec<Bytes>,
        random: &mut Random,
        counter: &Counter,
    ) -> Outcome {
        let permits = Arc::new(Semaphore::new(
            self.max_concurrency.map_or(Semaphore::MAX_PERMITS, |most| most.min(Semaphore::MAX_PERMITS)),
        ));
        let (mut tasks, mut outcome) = (JoinSet::new(), Outcome::default());
        let start = Instant::now();
        let mut send_at = tokio::time::Instant::now();
        for body in bodies {
            tokio::time::sleep_until(send_at).await;
            send_at += random.pause(self.request_rate);
            let (client, permits) = (client.clone(), permits.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire().await.map_err(|e| e.to_string())?;
                Answer::fetch(&client, body).await
            });
            while let Some(answer) = tasks.try_join_next() {
                outcome.add(answer.map_err(|e| e.to_string()).flatten(), counter);
            }
        }
        while let Some(answer) = tasks.join_next().await {
            outcome.add(answer.map_err(|e| e.to_string()).flatten(), counter);
        }
        outcome.elapsed_s = start.elapsed().as_secs_f64();
        outcome
    }
}

impl Outcome {
    fn add(&mut self, answer: Result<Answer, String>, counter: &Counter) {
        counter.advance();
        match answer {
            Ok(answer) => self.answers.push(answer),
            Err(error) => {
                self.num_failed += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    /// The sum of a count over all answers.
    pub(super) fn sum(&self, count: impl Fn(&Answer) -> u64) -> u64 {
        self.answers.iter().map(count).sum()
    }
}
