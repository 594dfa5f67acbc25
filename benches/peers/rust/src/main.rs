//! Workers for the peers that are called from Rust. The driver, `../run`, starts them.

mod governor;
mod quotalite;
mod raw;
mod redis;
mod worker;

use worker::Task;

fn main() {
    let task = Task::from_args();
    match task.peer.as_str() {
        "raw" => worker::run(vec![raw::caller(&task)]),
        "quotalite" => worker::run(vec![quotalite::caller(&task)]),
        "redis" => worker::run(vec![redis::caller(&task)]),
        "governor" => governor::run(&task),
        peer => panic!("no peer named {peer}"),
    }
}
