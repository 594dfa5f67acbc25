//! Defines two limits in one file, asks for both at once, waits in line, and looks at the usage.

use std::time::Duration;

use quotalite::{Decision, Limit, Limiter, MINUTE, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let limiter = Limiter::open(directory.path().join("limits.db"))?;
    limiter.define(Limit::new("api:requests").per_second(5).per_minute(300))?;
    limiter.define(Limit::new("api:tokens").rate(90_000, MINUTE).unit("tokens"))?;

    let call = Request::new()
        .take("api:requests", 1)
        .take("api:tokens", 250);
    for number in 1..=6 {
        match limiter.try_acquire(&call)? {
            Decision::Granted(_) => println!("call {number}: granted"),
            Decision::Denied(denial) => println!("call {number}: denied, {denial}"),
        }
    }
    let permit = limiter.acquire_within(&call, Duration::from_secs(2))?;
    println!("call 7: waited in line for {:?}", permit.waited());

    for rate in limiter.usage("api:requests")?.rates() {
        println!("{}: {} used", rate.rate(), rate.used());
    }
    Ok(())
}
