//! A provider of completions that is strict about its limits, to rehearse with.
//!
//! It is a program (see `main.rs`), and a module for tests, which include this file by its path. It uses
//! nothing of the library that it judges. Its windows roll and are exact, a request counts from the
//! instant at which its body has been read, and all limits are checked and charged at that instant, under
//! one lock, or none is. The tokens charged are those that the usage in the answer tells.
#![allow(dead_code, reason = "each program uses a part of it")]

pub mod audit;
pub mod chat;
pub mod desk;
pub mod dialect;
pub mod limits;
pub mod report;
mod server;
pub mod settings;
pub mod windows;

use std::future::IntoFuture;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use audit::Overrun;
use limits::Limits;
use report::Report;
use server::{Front, router};
use settings::{Outage, Settings};

/// A provider that answers until it is dropped. Whoever still waits for an answer then is hung up on.
#[derive(Debug)]
pub struct Provider {
    address: SocketAddr,
    front: Arc<Front>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl Provider {
    /// Starts on a free port of the loopback address.
    pub fn start(settings: Settings) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), settings).expect("a free port")
    }

    /// Starts with a thread of its own, so that callers need not be asynchronous.
    pub fn start_at(address: SocketAddr, settings: Settings) -> io::Result<Self> {
        let front = Arc::new(Front::new(settings));
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let shared = Arc::clone(&front);
        let server = thread::Builder::new()
            .name("provider".into())
            .spawn(move || serve(address, shared, &tell, stopped))?;
        let address = told.recv().map_err(io::Error::other)??;
        Ok(Self {
            address,
            front,
            stop: Some(stop),
            server: Some(server),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where completions are asked for.
    pub fn url(&self) -> String {
        format!("http://{}/v1/chat/completions", self.address)
    }

    pub fn report(&self) -> Report {
        self.front.now(|desk, at| desk.report(at))
    }

    /// Windows that held more than they may, added up afresh from everything that was accepted.
    pub fn audit(&self) -> Vec<Overrun> {
        self.front.desk().audit()
    }

    pub fn outage(&self, outage: impl Into<Outage>) {
        let outage = outage.into();
        self.front.now(|desk, at| desk.set_outage(at, outage));
    }

    /// Other limits from now on. What was charged before counts in them.
    pub fn set_limits(&self, limits: Limits) {
        self.front.now(|desk, at| desk.set_limits(at, limits));
    }

    /// Forgets every request but those in flight. The limits and the outage stay what they are.
    pub fn reset(&self) {
        self.front.now(desk::Desk::reset);
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            // A panic of the server has been printed, and a second one here would end the process.
            let _ = server.join();
        }
    }
}

fn serve(
    address: SocketAddr,
    front: Arc<Front>,
    tell: &mpsc::Sender<io::Result<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(tell.send(Err(error))),
    };
    runtime.block_on(async {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => return drop(tell.send(Err(error))),
        };
        drop(tell.send(listener.local_addr()));
        tokio::spawn(axum::serve(listener, router(front)).into_future());
        // The sender is dropped when it is time to stop.
        let _ = stopped.await;
    });
}
