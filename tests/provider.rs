//! The provider to rehearse with, over sockets, as an HTTP client sees it.

#[path = "../examples/provider/provider.rs"]
mod provider;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use provider::Provider;
use provider::dialect::Dialect;
use provider::limits::{Limits, Quota};
use provider::report::Report;
use provider::settings::{Mode, Outage, Settings};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::HeaderMap;

const MINUTE: Duration = Duration::from_mins(1);

/// What a client has got.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn tokens(&self) -> u64 {
        self.body["usage"]["total_tokens"].as_u64().unwrap()
    }
}

fn client() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .into()
}

fn got(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Got {
    let mut response = response.unwrap();
    let body = response.body_mut().read_to_string().unwrap();
    Got {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_str(&body).unwrap_or(Value::Null),
    }
}

fn post(provider: &Provider, path: &str, body: &Value) -> Got {
    let url = format!("http://{}{path}", provider.address());
    got(client().post(url).send(body.to_string()))
}

fn ask_by(agent: &Agent, provider: &Provider, prompt: &str) -> Got {
    let body = json!({
        "model": "m",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 20,
    });
    got(agent.post(provider.url()).send(body.to_string()))
}

fn ask(provider: &Provider) -> Got {
    ask_by(&client(), provider, "Count to three.")
}

fn requests(limit: u64, window: Duration) -> Settings {
    Settings {
        limits: Limits {
            requests: Some(Quota::new(limit, window)),
            ..Limits::default()
        },
        ..Settings::default()
    }
}

#[test]
fn the_first_request_over_the_limit_is_refused_and_only_that() {
    let provider = Provider::start(requests(5, MINUTE));
    for _ in 0..5 {
        let got = ask(&provider);
        assert_eq!(got.status, 200);
        let usage = &got.body["usage"];
        let sum =
            usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
        assert_eq!(got.tokens(), sum);
        assert_eq!(usage["prompt_tokens"], 5 + 1);
    }
    for _ in 0..3 {
        let refused = ask(&provider);
        assert_eq!(refused.status, 429);
        assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded");
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        assert!((55..=60).contains(&wait), "{wait}");
    }
    let report = provider.report();
    assert_eq!((report.accepted, report.refused.requests), (5, 3));
    assert_eq!(provider.audit(), []);
}

#[test]
fn the_first_token_over_the_limit_is_refused() {
    let unlimited = Provider::start(Settings::default());
    let used = ask(&unlimited).tokens();
    for (limit, accepted) in [(3 * used, 3), (3 * used - 1, 2), (used - 1, 0)] {
        let provider = Provider::start(Settings {
            limits: Limits {
                tokens: Some(Quota::new(limit, MINUTE)),
                ..Limits::default()
            },
            ..Settings::default()
        });
        let got: Vec<Got> = (0..4).map(|_| ask(&provider)).collect();
        let statuses: Vec<u16> = got.iter().map(|got| got.status).collect();
        let expected: Vec<u16> = (0..4)
            .map(|number| if number < accepted { 200 } else { 429 })
            .collect();
        assert_eq!(statuses, expected);
        assert_eq!(got[3].body["error"]["type"], "tokens");
        // Who asks for more than there ever is need not come back.
        assert_eq!(got[3].headers.contains_key("retry-after"), accepted > 0);
        assert_eq!(provider.report().accepted_tokens, accepted * used);
    }
}

#[test]
fn who_waits_as_told_is_accepted() {
    let provider = Provider::start(Settings {
        retry_after_ms: true,
        ..requests(2, Duration::from_millis(400))
    });
    for _ in 0..3 {
        let refused = loop {
            let got = ask(&provider);
            if got.status != 200 {
                break got;
            }
        };
        let wait: u64 = refused.header("retry-after-ms").parse().unwrap();
        assert!(wait <= 400);
        assert_eq!(refused.header("retry-after"), "1");
        thread::sleep(Duration::from_millis(wait));
        assert_eq!(ask(&provider).status, 200);
    }
    assert_eq!(provider.audit(), []);
}

fn in_dialect(dialect: Dialect) -> (Provider, Got, Got) {
    let provider = Provider::start(Settings {
        dialect,
        limits: Limits {
            requests: Some(Quota::new(1, MINUTE)),
            tokens: Some(Quota::new(1_000, 2 * MINUTE)),
            concurrency: None,
        },
        ..Settings::default()
    });
    let accepted = ask(&provider);
    let refused = ask(&provider);
    assert_eq!((accepted.status, refused.status), (200, 429));
    (provider, accepted, refused)
}

/// Of `1h2m3.5s` and `120ms`, in seconds.
fn read_terse(text: &str) -> f64 {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(char::is_alphabetic).unwrap();
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(tail.len());
        let unit = match &tail[..end] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            other => panic!("{other:?} in {text:?}"),
        };
        seconds += number.parse::<f64>().unwrap() * unit;
        rest = &tail[end..];
    }
    seconds
}

#[test]
fn openai_headers_and_errors_are_readable() {
    let (_provider, accepted, refused) = in_dialect(Dialect::OpenAi);
    let left = (1_000 - accepted.tokens()).to_string();
    for got in [&accepted, &refused] {
        assert_eq!(got.header("x-ratelimit-limit-requests"), "1");
        assert_eq!(got.header("x-ratelimit-remaining-requests"), "0");
        assert_eq!(got.header("x-ratelimit-limit-tokens"), "1000");
        assert_eq!(got.header("x-ratelimit-remaining-tokens"), left);
        let reset = read_terse(got.header("x-ratelimit-reset-requests"));
        assert!((50.0..=60.0).contains(&reset), "{reset}");
        let reset = read_terse(got.header("x-ratelimit-reset-tokens"));
        assert!((110.0..=120.0).contains(&reset), "{reset}");
    }
    assert_eq!(accepted.header("x-ratelimit-reset-requests"), "1m0s");
    assert_eq!(refused.body["error"]["type"], "requests");
}

#[test]
fn anthropic_headers_and_errors_are_readable() {
    let (_provider, accepted, refused) = in_dialect(Dialect::Anthropic);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let left = (1_000 - accepted.tokens()).to_string();
    for got in [&accepted, &refused] {
        assert_eq!(got.header("anthropic-ratelimit-requests-limit"), "1");
        assert_eq!(got.header("anthropic-ratelimit-requests-remaining"), "0");
        assert_eq!(got.header("anthropic-ratelimit-tokens-limit"), "1000");
        assert_eq!(got.header("anthropic-ratelimit-tokens-remaining"), left);
        for (name, after) in [("requests", 60), ("tokens", 120)] {
            let reset = got.header(&format!("anthropic-ratelimit-{name}-reset"));
            let reset = chrono::DateTime::parse_from_rfc3339(reset).unwrap();
            let reset = reset.timestamp().unsigned_abs();
            assert!(
                (now + after - 10..=now + after + 1).contains(&reset),
                "{reset} at {now}"
            );
        }
    }
    assert_eq!(refused.body["type"], "error");
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
}

/// The members of a list of strings with whole numbers as parameters.
fn read_list(text: &str) -> Vec<(String, Vec<(String, u64)>)> {
    let member = |member: &str| {
        let mut parts = member.trim().split(';');
        let name = parts.next().unwrap();
        let name = name.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let parameters = parts.map(|part| {
            let (key, value) = part.trim().split_once('=').unwrap();
            (key.to_owned(), value.parse().unwrap())
        });
        (name.to_owned(), parameters.collect())
    };
    text.split(',').map(member).collect()
}

#[test]
fn ietf_headers_and_errors_are_readable() {
    let (_provider, accepted, refused) = in_dialect(Dialect::Ietf);
    let left = 1_000 - accepted.tokens();
    for got in [&accepted, &refused] {
        let parameters = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
            list.iter()
                .map(|(key, value)| ((*key).to_owned(), *value))
                .collect()
        };
        let policy = read_list(got.header("ratelimit-policy"));
        let expected = [
            ("requests".to_owned(), parameters(&[("q", 1), ("w", 60)])),
            ("tokens".to_owned(), parameters(&[("q", 1_000), ("w", 120)])),
        ];
        assert_eq!(policy, expected);
        let now = read_list(got.header("ratelimit"));
        for ((name, told), (wanted, remaining, window)) in
            now.iter().zip([("requests", 0, 60), ("tokens", left, 120)])
        {
            assert_eq!(name, wanted);
            assert_eq!(told[0], ("r".to_owned(), remaining));
            assert_eq!(told[1].0, "t");
            assert!((window - 10..=window).contains(&told[1].1));
        }
        assert_eq!(now.len(), 2);
    }
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert_eq!(refused.body["violated-policies"], json!(["requests"]));
}

fn concurrency(most: usize, latency: Duration) -> Settings {
    Settings {
        limits: Limits {
            concurrency: Some(most),
            ..Limits::default()
        },
        latency,
        ..Settings::default()
    }
}

#[test]
fn slots_are_held_while_an_answer_takes() {
    let provider = Provider::start(concurrency(3, Duration::from_millis(800)));
    let barrier = Barrier::new(5);
    let started = Instant::now();
    let mut statuses: Vec<u16> = thread::scope(|scope| {
        let one = || {
            barrier.wait();
            ask(&provider).status
        };
        let threads: Vec<_> = (0..5).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|one| one.join().unwrap()).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert!(started.elapsed() >= Duration::from_millis(800));
    let report = provider.report();
    assert_eq!((report.max_in_flight, report.in_flight), (3, 0));
    assert_eq!(report.refused.concurrency, 2);
    assert_eq!(ask(&provider).status, 200);
}

#[test]
fn a_client_that_hangs_up_gives_its_slot_back_unless_the_provider_finishes() {
    for finish_abandoned in [false, true] {
        let provider = Provider::start(Settings {
            finish_abandoned,
            ..concurrency(1, Duration::from_secs(20))
        });
        let body = json!({"model": "m", "messages": [{"content": "Hello!"}]}).to_string();
        let mut stream = TcpStream::connect(provider.address()).unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {}",
            body.len()
        );
        write!(stream, "{head}\r\n\r\n{body}").unwrap();
        eventually(|| provider.report().in_flight == 1);
        drop(stream);
        if finish_abandoned {
            thread::sleep(Duration::from_millis(300));
            assert_eq!(ask(&provider).status, 429);
        } else {
            eventually(|| provider.report().in_flight == 0);
        }
    }
}

fn eventually(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not in time");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn outages_turn_everybody_away_and_charge_nobody() {
    let provider = Provider::start(requests(2, MINUTE));
    let switch = |told: Value| post(&provider, "/control/outage", &told);

    assert_eq!(
        switch(json!({"mode": "down", "retry_after_s": 7})).status,
        200
    );
    let down = ask(&provider);
    assert_eq!((down.status, down.header("retry-after")), (503, "7"));
    assert_eq!(down.header("x-ratelimit-remaining-requests"), "2");
    assert_eq!(down.body["error"]["type"], "server_error");

    provider.outage(Mode::RateLimited);
    let limited = ask(&provider);
    assert_eq!(limited.status, 429);
    assert!(!limited.headers.contains_key("retry-after"));
    provider.outage(Outage {
        mode: Mode::RateLimited,
        retry_after_s: Some(3),
    });
    assert_eq!(ask(&provider).header("retry-after"), "3");

    assert_eq!(switch(json!({"mode": "up"})).status, 200);
    assert_eq!(ask(&provider).status, 200);
    assert_eq!(switch(json!({"mode": "gone"})).status, 400);
    assert_eq!(switch(json!({"mode": "up", "often": 1})).status, 400);

    let report = provider.report();
    assert_eq!((report.refused.outage, report.accepted), (3, 1));
    assert_eq!(
        (report.in_outage.down, report.in_outage.rate_limited),
        (1, 2)
    );
}

#[test]
fn slow_is_ten_times_slower() {
    let provider = Provider::start(Settings {
        latency: Duration::from_millis(30),
        ..Settings::default()
    });
    provider.outage(Mode::Slow);
    let started = Instant::now();
    assert_eq!(ask(&provider).status, 200);
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(provider.report().in_outage.slow, 1);
}

#[test]
fn limits_move_while_it_runs() {
    let provider = Provider::start(requests(2, MINUTE));
    assert_eq!(ask(&provider).status, 200);
    let told = json!({"requests": "1/1m", "concurrency": 3});
    assert_eq!(post(&provider, "/control/limits", &told).status, 200);
    assert_eq!(ask(&provider).status, 429);
    let told = json!({"requests": "3/1m"});
    assert_eq!(post(&provider, "/control/limits", &told).status, 200);
    assert_eq!(ask(&provider).header("x-ratelimit-remaining-requests"), "1");
    provider.set_limits(Limits::default());
    let unlimited = ask(&provider);
    assert_eq!(unlimited.status, 200);
    assert!(!unlimited.headers.contains_key("x-ratelimit-limit-requests"));
    for wrong in [
        json!({"requests": "3"}),
        json!({"request": "3/s"}),
        json!([1]),
    ] {
        assert_eq!(post(&provider, "/control/limits", &wrong).status, 400);
    }
    assert_eq!(provider.audit(), []);
}

fn read_report(provider: &Provider) -> Report {
    let url = format!("http://{}/control/report", provider.address());
    serde_json::from_value(got(client().get(url).call()).body).unwrap()
}

#[test]
fn the_report_adds_up_and_is_emptied() {
    let provider = Provider::start(requests(4, MINUTE));
    assert_eq!(read_report(&provider).requests.available, None);
    let used: u64 = (0..3).map(|_| ask(&provider).tokens()).sum();
    thread::sleep(Duration::from_millis(1_050));
    assert_eq!(ask(&provider).status, 200);
    assert_eq!(ask(&provider).status, 429);
    let malformed = post(
        &provider,
        "/v1/chat/completions",
        &json!({"model": "m", "messages": []}),
    );
    assert_eq!(malformed.status, 400);
    assert_eq!(malformed.header("x-ratelimit-remaining-requests"), "0");
    provider.outage(Mode::Down);
    ask(&provider);

    let report = read_report(&provider);
    assert_eq!(
        (report.arrivals, report.accepted, report.malformed),
        (7, 4, 1)
    );
    assert_eq!((report.refused.requests, report.refused.outage), (1, 1));
    assert_eq!(report.accepted_tokens, used / 3 * 4);
    assert_eq!(report.requests.available, Some(4));
    assert_eq!(report.requests.used, Some(1.0));
    assert_eq!(report.tokens.available, None);
    let sums = report.per_second.iter().fold((0, 0, 0), |sums, second| {
        (
            sums.0 + second.arrivals,
            sums.1 + second.accepted,
            sums.2 + second.too_many_requests,
        )
    });
    assert_eq!(sums, (7, 4, 1));
    assert!(report.per_second.len() >= 2);
    assert!(report.seconds >= 1.05);

    assert_eq!(post(&provider, "/control/reset", &Value::Null).status, 200);
    let report = read_report(&provider);
    assert_eq!((report.arrivals, report.accepted_tokens), (0, 0));
    assert_eq!(report.per_second, []);
    assert_eq!(ask(&provider).status, 503);
    provider.outage(Mode::Up);
    assert_eq!(ask(&provider).header("x-ratelimit-remaining-requests"), "3");
}

#[test]
fn a_crowd_gets_all_there_is_and_no_more() {
    let provider = Provider::start(Settings {
        limits: Limits {
            requests: Some(Quota::new(20, Duration::from_millis(150))),
            tokens: Some(Quota::new(400, Duration::from_millis(200))),
            concurrency: Some(4),
        },
        jitter: Duration::from_millis(2),
        ..Settings::default()
    });
    thread::scope(|scope| {
        for number in 0..6 {
            let provider = &provider;
            scope.spawn(move || {
                let agent = client();
                for turn in 0..120 {
                    let got = ask_by(
                        &agent,
                        provider,
                        &format!("This is prompt {number}, {turn}."),
                    );
                    assert!(matches!(got.status, 200 | 429));
                }
            });
        }
    });
    let report = provider.report();
    let refused = report.refused;
    assert_eq!(report.arrivals, 720);
    assert_eq!(
        report.arrivals,
        report.accepted + refused.requests + refused.tokens + refused.concurrency
    );
    assert!(refused.requests + refused.tokens > 0);
    assert!(report.max_in_flight <= 4);
    assert_eq!(report.in_flight, 0);
    assert!(report.requests.used.unwrap() <= 1.0 && report.tokens.used.unwrap() <= 1.0);
    assert_eq!(provider.audit(), []);
    let url = format!("http://{}/control/audit", provider.address());
    assert_eq!(got(client().get(url).call()).body, json!({"overruns": []}));
}

#[test]
fn it_hangs_up_when_it_is_dropped() {
    let provider = Provider::start(concurrency(1, Duration::from_mins(1)));
    let address = provider.address();
    assert!(Provider::start_at(address, Settings::default()).is_err());
    let url = provider.url();
    let waiting = thread::spawn(move || {
        let body = json!({"model": "m", "messages": [{"content": "Hello!"}]});
        client().post(url).send(body.to_string()).is_err()
    });
    eventually(|| provider.report().in_flight == 1);
    let dropped = Instant::now();
    drop(provider);
    assert!(waiting.join().unwrap());
    assert!(dropped.elapsed() < Duration::from_secs(10));
}
