//! A Redis server that keeps a log of grants in a sorted set. Scripts run there one at a time, so one that looks and
//! then adds is atomic: <https://redis.io/docs/latest/develop/programmability/eval-intro/>. The client sends the
//! script's hash once the server knows the script.

use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo as _, Script};

use crate::worker::{Outcome, Task};

/// Windows are in microseconds, on the server's clock, the longest one last. Members only have to differ, so each
/// caller sends its process and a number.
const ACQUIRE: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local windows = (#ARGV - 1) / 2
    local longest = tonumber(ARGV[2 * windows])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - longest)
    for n = 1, windows do
        local used
        if n == windows then
            used = redis.call('ZCARD', KEYS[1])
        else
            used = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%d', now - ARGV[2 * n]), '+inf')
        end
        if used >= tonumber(ARGV[2 * n - 1]) then
            return 0
        end
    end
    redis.call('ZADD', KEYS[1], now, ARGV[#ARGV])
    redis.call('PEXPIRE', KEYS[1], longest / 1000)
    return 1
";

pub fn caller(task: &Task) -> impl FnMut() -> Outcome + Send + use<> {
    let server = task.place.as_str().into_connection_info().expect("a URL");
    let at_once = TcpSettings::default().set_nodelay(true);
    let client = Client::open(server.set_tcp_settings(at_once)).expect("a server's address");
    let mut connection = client.get_connection().expect("a server");
    let script = Script::new(ACQUIRE);
    let mut windows = vec![(task.per_second, 1_000_000_u32)];
    windows.extend(task.per_minute.map(|limit| (limit, 60_000_000)));
    let process = std::process::id();
    let mut number = 0_u64;
    move || {
        number += 1;
        let mut call = script.key("key");
        for (limit, window_us) in &windows {
            call.arg(limit).arg(window_us);
        }
        match call
            .arg(format!("{process}:{number}"))
            .invoke(&mut connection)
        {
            Ok(1) => Outcome::Granted,
            Ok(_) => Outcome::Refused,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}
