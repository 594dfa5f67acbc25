//! One process that makes calls: it knows the limits by their file alone.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use quotalite::{
    Answer, Estimator, Feedback, LimitSet, Limiter, Permit, Report, Request, RetryBudget,
    RetryPolicy, retry,
};
use serde::{Deserialize, Serialize};

pub const REQUESTS: &str = "provider:requests";
pub const TOKENS: &str = "provider:tokens";
pub const IN_FLIGHT: &str = "provider:in-flight";
pub const BREAKER: &str = "provider:breaker";

/// How many calls one process makes at the same time at most.
const THREADS: usize = 8;
const MAX_TOKENS: u64 = 32;

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub file: String,
    pub url: String,
    pub jobs: usize,
    /// Whether limits become what the provider says that it allows.
    pub learns: bool,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    pub jobs: usize,
    pub calls: usize,
    pub refused: usize,
    pub failed: usize,
    pub gave_up: usize,
}

impl Done {
    pub fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.calls += other.calls;
        self.refused += other.refused;
        self.failed += other.failed;
        self.gave_up += other.gave_up;
    }
}

/// Does its jobs, and says on its standard output what came of them.
pub fn work(arguments: &[String]) {
    let orders: Orders = serde_json::from_str(&arguments[0]).expect("orders");
    let limiter = Limiter::open(&orders.file).expect("the file of limits");
    let prompts = prompts();
    let next = AtomicUsize::new(0);
    let mut done = Done::default();
    thread::scope(|scope| {
        let hands: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| do_jobs(&orders, &limiter, &prompts, &next)))
            .collect();
        for hand in hands {
            done.add(hand.join().expect("a thread that works"));
        }
    });
    println!("{}", serde_json::to_string(&done).expect("numbers"));
}

fn prompts() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prompts.tsv");
    let text = std::fs::read_to_string(file).expect("the prompts");
    let prompts = text.lines().filter_map(|line| line.split_once('\t'));
    prompts.map(|(_, prompt)| prompt.to_owned()).collect()
}

fn do_jobs(orders: &Orders, limiter: &Limiter, prompts: &[String], next: &AtomicUsize) -> Done {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into();
    let mut done = Done::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= orders.jobs {
            return done;
        }
        let prompt = &prompts[number % prompts.len()];
        do_job(orders, limiter, &agent, prompt, &mut done);
    }
}

fn do_job(orders: &Orders, limiter: &Limiter, agent: &ureq::Agent, prompt: &str, done: &mut Done) {
    let estimator = Estimator::new(limiter, TOKENS);
    let estimate = estimator.estimate(prompt, MAX_TOKENS).expect("an estimate");
    let request = Request::new()
        .take(REQUESTS, 1)
        .take(TOKENS, estimate.amount())
        .take(IN_FLIGHT, 1)
        .take(BREAKER, 1);
    let mut set = LimitSet::new().requests(REQUESTS).tokens(TOKENS);
    if orders.learns {
        set = set.learning();
    }
    let body = serde_json::json!({
        "model": "sim-1",
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": MAX_TOKENS,
    });
    let call = |permit: &Permit| -> Result<(), Answer> {
        done.calls += 1;
        let begun = std::time::Instant::now();
        let answered = agent
            .post(&orders.url)
            .content_type("application/json")
            .send(body.to_string());
        let Ok(mut response) = answered else {
            done.failed += 1;
            permit
                .report(Report::failure())
                .expect("the file of limits");
            return Err(Answer::Transient);
        };
        let feedback = Feedback::of_response(
            response.status(),
            response.headers(),
            std::time::SystemTime::now(),
        );
        let answer = Answer::of(&feedback);
        let set = set.clone().asked_at(permit.at());
        limiter.heed(&set, feedback).expect("the file of limits");
        match answer {
            Answer::Success => {
                let text = response
                    .body_mut()
                    .read_to_string()
                    .map_err(|_| Answer::Transient)?;
                let answer: serde_json::Value =
                    serde_json::from_str(&text).map_err(|_| Answer::Fatal)?;
                let used = answer["usage"]["total_tokens"]
                    .as_u64()
                    .ok_or(Answer::Fatal)?;
                permit
                    .report(Report::success().took(begun.elapsed()))
                    .expect("the file of limits");
                estimator
                    .settle(permit, &estimate, used)
                    .expect("the file of limits");
                Ok(())
            }
            Answer::RateLimited { .. } => {
                done.refused += 1;
                Err(answer)
            }
            answer => {
                done.failed += 1;
                permit
                    .report(Report::failure())
                    .expect("the file of limits");
                Err(answer)
            }
        }
    };
    let outcome = retry(RetryPolicy::default().retries(8))
        .without_pausing()
        .budget("provider", RetryBudget::default().percent(40).at_least(60))
        .classify_errors(|answer: &Answer| *answer)
        .run_with(limiter, &request, call);
    match outcome {
        Ok(()) => done.jobs += 1,
        Err(_) => done.gave_up += 1,
    }
}
