//! The two listeners, and how they end.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::dev::{Server, Service};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::{Condition, from_fn};
use actix_web::{App, HttpServer, web};

use crate::state::Platform;
use crate::{body, routes};

/// A client has so long to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Connections at the same time, per worker thread; more wait in the system's queue.
const CONNECTIONS: usize = 8192;
/// Threads that speak HTTP: the engine's own threads do the work.
const WORKERS: usize = 2;
/// After a drain, responses that nobody reads are cut off.
const SHUTDOWN_S: u64 = 5;

/// The running servers.
pub struct Servers {
    platform: Arc<Platform>,
    api: Server,
    ops: Server,
}

/// Serves the API on one listener and the operators' endpoints on the other. Must be called within an actix or tokio runtime.
pub fn serve(platform: Arc<Platform>, api: TcpListener, ops: TcpListener) -> std::io::Result<Servers> {
    let data = web::Data::from(platform.clone());
    let api_data = data.clone();
    let cors = platform.cors;
    let api = HttpServer::new(move || {
        App::new()
            .app_data(api_data.clone())
            .wrap(from_fn(routes::readable))
            .wrap(from_fn(body::in_time))
            .wrap(Condition::new(cors, from_fn(crate::cors::open)))
            .wrap_fn(|request, service| {
                let answered = service.call(request);
                async move {
                    let mut response = answered.await?;
                    // Every response can be named in a report; one that ran has its request's id already.
                    let name = HeaderName::from_static("x-request-id");
                    if !response.headers().contains_key(&name) {
                        let id = platform::RequestId::fresh("req").to_string();
                        if let Ok(id) = HeaderValue::from_str(&id) {
                            response.headers_mut().insert(name, id);
                        }
                    }
                    Ok(response)
                }
            })
            .configure(routes::api)
    })
    .workers(WORKERS)
    .max_connections(CONNECTIONS)
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    // A token is a small packet: without this it waits up to 40 ms for the client's acknowledgement of the one before.
    .tcp_nodelay(true)
    // A client that closes its side has left: its request is dropped, and so cancelled, whole answers included.
    .h1_allow_half_closed(false)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(api)?
    .run();
    let ops = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .wrap(from_fn(routes::readable))
            .wrap(from_fn(body::in_time))
            .configure(routes::ops)
    })
    .workers(1)
    .client_request_timeout(HEAD_TIMEOUT)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(ops)?
    .run();
    Ok(Servers { platform, api, ops })
}

impl Servers {
    /// Serves until `stop` resolves; then lets running requests finish for `drain`, and ends the rest with an error.
    pub async fn run_until(self, stop: impl Future<Output = ()>, drain: Duration) -> std::io::Result<()> {
        let (api, ops) = (self.api.handle(), self.ops.handle());
        let running = tokio::spawn(async move { tokio::join!(self.api, self.ops) });
        stop.await;
        self.platform.ready.store(false, Ordering::Relaxed);
        self.platform.engine.drain(drain).await;
        tokio::join!(api.stop(true), ops.stop(true));
        match running.await {
            Ok((api, ops)) => api.and(ops),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}
