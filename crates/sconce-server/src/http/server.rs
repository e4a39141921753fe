//! The loop over connections, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::body::Body;
use super::drain::{Drain, Drained};

/// A head must arrive, and an idle connection be used again, within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// The longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// After the last answer, how long connections may take to write it out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Rest after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two warnings of it.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// How an HTTP/2 client introduces itself.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
const HTTP2_ANSWER: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Answers requests with `service` until `shutdown` resolves, and on until `drain` is empty; if that takes longer than
/// `drain_timeout`, `cut_short` is to end what is in flight. The service's future is dropped when its client goes away.
pub async fn run<S, F>(
    listener: TcpListener,
    drain: Arc<Drain>,
    drain_timeout: Duration,
    service: S,
    shutdown: impl Future<Output = ()>,
    cut_short: impl Future<Output = ()>,
) -> Drained
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Unpin + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let (close, closing) = watch::channel(false);
    let mut accept =
        Accept { listener: &listener, connections: &mut connections, service, closing, last_warning: None };
    accept.until(shutdown).await;
    drain.begin();
    // Whoever connects meanwhile is told that the server is ending.
    let drained = match tokio::time::timeout(drain_timeout, accept.until(drain.idle())).await {
        Ok(()) => Drained::Clean,
        Err(_) => Drained::TimedOut { num_in_flight: drain.num_in_flight() },
    };
    drop(listener);
    if drained != Drained::Clean {
        // Answers end with what there is of them, and with a last record where they are streams.
        cut_short.await;
        drop(tokio::time::timeout(FLUSH_TIMEOUT, drain.idle()).await);
    }
    close.send_replace(true);
    let flushed = async { while connections.join_next().await.is_some() {} };
    // A client that does not read its answer is not waited for.
    drop(tokio::time::timeout(FLUSH_TIMEOUT, flushed).await);
    drained
}

/// Takes connections.
struct Accept<'a, S> {
    listener: &'a TcpListener,
    connections: &'a mut JoinSet<()>,
    service: S,
    closing: watch::Receiver<bool>,
    /// When it was last said that connections cannot be taken.
    last_warning: Option<Instant>,
}

impl<S, F> Accept<'_, S>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Unpin + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    async fn until(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        self.connections.spawn(connection(stream, self.service.clone(), self.closing.clone()));
                    }
                    Err(e) => {
                        if self.last_warning.is_none_or(|last| last.elapsed() >= WARNING_PAUSE) {
                            let num_open = self.connections.len();
                            tracing::warn!("cannot accept connections, beside {num_open} open ones: {e}");
                            self.last_warning = Some(Instant::now());
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }
}

/// Serves one connection until its client closes it, or until `closing` and the answer in progress is sent.
async fn connection<S, F>(stream: TcpStream, service: S, mut closing: watch::Receiver<bool>)
where
    S: Fn(Request<Incoming>) -> F + Send + Unpin,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Tokens are small and must not wait for each other.
    drop(stream.set_nodelay(true));
    let service = service_fn(move |request| {
        let response = service(request);
        Box::pin(async move { Ok::<_, Infallible>(response.await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let is_closing = async { drop(closing.wait_for(|&closing| closing).await) };
    let ended = tokio::select! {
        result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(result),
        () = is_closing => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    let Parts { io, read_buf, .. } = connection.into_parts();
    finish(io.into_inner(), &read_buf, result).await;
}

/// Closes a connection; tells an HTTP/2 client that it is at the wrong address.
async fn finish(mut stream: TcpStream, unread: &[u8], result: hyper::Result<()>) {
    if let Err(e) = result {
        tracing::debug!("connection ended: {e}");
        if unread.starts_with(HTTP2_PREFACE) {
            drop(stream.write_all(HTTP2_ANSWER).await);
        }
    }
    drop(stream.shutdown().await);
}
