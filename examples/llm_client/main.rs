//! Six processes that call an LLM provider through one file of limits: real prompts, a strict provider on loopback, and three
//! stories about it, each with what has to come of it.
//!
//! `cargo run --release --example llm_client --features http,retry` tells all of them in about a minute; `-- --long` makes ten
//! times as many calls; `-- steady`, `learning` or `outage` tells one.

#[path = "../provider/provider.rs"]
mod provider;
mod story;
mod worker;

use std::process::ExitCode;

use story::{Size, Story};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "worker") {
        worker::work(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let size = if arguments.iter().any(|argument| argument == "--long") {
        Size::Long
    } else {
        Size::Short
    };
    let is_wanted = |story: &Story| {
        let mut named = arguments
            .iter()
            .filter(|name| !name.starts_with("--"))
            .peekable();
        named.peek().is_none() || named.any(|name| name == story.name())
    };
    let stories = [Story::Steady, Story::Learning, Story::Outage];
    let mut is_well = true;
    for story in stories.into_iter().filter(is_wanted) {
        println!("\n{}: {}", story.name(), story.plot());
        for line in story.tell(size) {
            println!("  {line}");
            is_well &= line.is_well();
        }
    }
    if is_well {
        ExitCode::SUCCESS
    } else {
        println!("\nsomething did not come out as it has to");
        ExitCode::FAILURE
    }
}
