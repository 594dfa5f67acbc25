//! A provider of completions to rehearse with, strict about its limits: see `--help`.
//!
//! ```sh
//! cargo run --release --example provider -- --port 8080 --requests 10/s --tokens 5000/10s --concurrency 4
//! curl -i localhost:8080/v1/chat/completions -d '{"model": "m", "messages": [{"content": "Hello!"}]}'
//! curl localhost:8080/control/report
//! ```

// Tests include the same file by its path, and then its own modules are beside it.
#[path = "provider.rs"]
mod provider;

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use lexopt::ValueExt;
use provider::Provider;
use provider::settings::Settings;

const HELP: &str = "\
A provider of completions to rehearse with. It never lets a window hold more than its quota.

usage: cargo run --release --example provider -- [options]

  --port N             of the loopback address (defaults to 0: any that is free)
  --requests N/TIME    the most requests in any stretch of so long: 10/s, 600/1m, 20/500ms
  --tokens N/TIME      the most tokens: those of the prompt and of the completion, charged on arrival
  --concurrency N      the most requests in flight
  --dialect NAME       of headers and errors: openai, anthropic, ietf (defaults to openai)
  --charge-refused     requests that a limit refuses count as requests, too
  --retry-after-ms     refusals have a retry-after-ms beside their Retry-After
  --finish-abandoned   a slot is held until the answer is ready, although the client hung up
  --latency-ms N       what an answer takes at least (defaults to 0)
  --jitter-ms N        what chance adds to it at most (defaults to 0)
  --seed N             of what is left to chance (defaults to 0)
  --seconds N          stop after so long, and print the report (defaults to never)
  --help               this text

The first line that it prints is its address. It answers
  POST /v1/chat/completions  {\"model\": \"m\", \"messages\": [{\"content\": \"Hello!\"}], \"max_tokens\": 50}
  POST /control/outage       {\"mode\": \"down\", \"retry_after_s\": 2}: or rate_limited, slow, up
  POST /control/limits       {\"requests\": \"10/s\", \"tokens\": null, \"concurrency\": 4}: what is not named is not limited
  POST /control/reset        forgets what has been, but not the limits and the outage
  GET  /control/report       what has been
  GET  /control/audit        windows that held too much: there are none
";

type Failure = Box<dyn Error + Send + Sync>;

struct Options {
    port: u16,
    seconds: Option<u64>,
    settings: Settings,
}

fn main() -> ExitCode {
    let outcome = parse_options().and_then(|options| options.map_or(Ok(()), |told| serve(&told)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("provider: {error}");
            ExitCode::from(2)
        }
    }
}

fn parse_options() -> Result<Option<Options>, Failure> {
    use lexopt::Arg::Long;
    let mut options = Options {
        port: 0,
        seconds: None,
        settings: Settings::default(),
    };
    let settings = &mut options.settings;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("port") => options.port = parser.value()?.parse()?,
            Long("requests") => settings.limits.requests = Some(parser.value()?.parse()?),
            Long("tokens") => settings.limits.tokens = Some(parser.value()?.parse()?),
            Long("concurrency") => settings.limits.concurrency = Some(parser.value()?.parse()?),
            Long("dialect") => settings.dialect = parser.value()?.parse()?,
            Long("charge-refused") => settings.charge_refused = true,
            Long("retry-after-ms") => settings.retry_after_ms = true,
            Long("finish-abandoned") => settings.finish_abandoned = true,
            Long("latency-ms") => settings.latency = milliseconds(&mut parser)?,
            Long("jitter-ms") => settings.jitter = milliseconds(&mut parser)?,
            Long("seed") => settings.seed = parser.value()?.parse()?,
            Long("seconds") => options.seconds = Some(parser.value()?.parse()?),
            Long("help") | lexopt::Arg::Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            _ => return Err(format!("{}; see --help", argument.unexpected()).into()),
        }
    }
    Ok(Some(options))
}

fn milliseconds(parser: &mut lexopt::Parser) -> Result<Duration, Failure> {
    let count: u32 = parser.value()?.parse()?;
    Ok(Duration::from_millis(count.into()))
}

fn serve(options: &Options) -> Result<(), Failure> {
    let address = (Ipv4Addr::LOCALHOST, options.port).into();
    let provider = Provider::start_at(address, options.settings)?;
    println!("{}", provider.address());
    match options.seconds {
        Some(seconds) => {
            thread::sleep(Duration::from_secs(seconds));
            println!("{}", serde_json::to_string(&provider.report())?);
            Ok(())
        }
        None => loop {
            thread::park();
        },
    }
}
