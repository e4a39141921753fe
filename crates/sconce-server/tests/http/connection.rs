//! What becomes of a request whose client leaves, whether it is answered at once or streamed.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Client, LIMIT};
use bytes::Bytes;
use futures_util::stream::{StreamExt, repeat_with};
use hyper::Response;
use sconce_server::http::{Body, Drain, Drained, InFlight, full, run, streamed};
use tokio::net::TcpListener;

/// Serves every request with `respond`, which is given a guard that counts as a request in flight.
async fn start<F>(respond: impl Fn(InFlight) -> F + Clone + Send + Unpin + 'static) -> (u16, Arc<Drain>)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let drain = Arc::new(Drain::default());
    let entered = drain.clone();
    let service = move |_| respond(entered.enter());
    tokio::spawn(run(listener, drain.clone(), Duration::ZERO, service, pending(), async {}));
    (port, drain)
}

async fn wait_for(drain: &Drain, num_in_flight: usize) {
    let reached = async {
        while drain.num_in_flight() != num_in_flight {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, reached).await.unwrap_or_else(|_| panic!("{} in flight", drain.num_in_flight()));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_unanswered_request() {
    let (port, drain) = start(|guard| async move {
        let _guard = guard;
        pending::<Response<Body>>().await
    })
    .await;
    let mut client = Client::connect(port).await;
    client.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await;
    wait_for(&drain, 1).await;
    drop(client);
    wait_for(&drain, 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream() {
    let (port, drain) = start(|guard| async move {
        let ticks = repeat_with(|| Bytes::from_static(b"tick")).then(move |tick| {
            let _ = &guard;
            async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                tick
            }
        });
        streamed("text/plain", ticks)
    })
    .await;
    let mut client = Client::connect(port).await;
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.header("transfer-encoding"), Some("chunked"));
    wait_for(&drain, 1).await;
    drop(client);
    wait_for(&drain, 0).await;
}

#[tokio::test]
async fn what_is_in_flight_is_answered_before_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let drain = Arc::new(Drain::default());
    let entered = drain.clone();
    let service = move |_| {
        let guard = entered.enter();
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(guard);
            Response::new(full("late"))
        }
    };
    let in_flight = drain.clone();
    let shutdown = async move { wait_for(&in_flight, 1).await };
    let server = tokio::spawn(run(listener, drain, LIMIT, service, shutdown, async {}));
    let mut client = Client::connect(port).await;
    let answer = client.ask("GET", "/", "", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "late"));
    assert_eq!(server.await.unwrap(), Drained::Clean);
}

/// Streams that are cut short still say so, and end.
#[tokio::test]
async fn what_takes_too_long_ends_as_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let drain = Arc::new(Drain::default());
    let entered = drain.clone();
    let (end, ended) = tokio::sync::watch::channel(false);
    let service = move |_| {
        let (guard, mut ended) = (entered.enter(), ended.clone());
        let last = async move {
            ended.wait_for(|&ended| ended).await.unwrap();
            drop(guard);
            Bytes::from_static(b"cut short")
        };
        async { streamed("text/plain", futures_util::stream::once(last)) }
    };
    let in_flight = drain.clone();
    let shutdown = async move { wait_for(&in_flight, 1).await };
    let cut_short = async move {
        end.send_replace(true);
    };
    let server = tokio::spawn(run(listener, drain, Duration::from_millis(20), service, shutdown, cut_short));
    let mut client = Client::connect(port).await;
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.rest().await, "9\r\ncut short\r\n0\r\n\r\n");
    assert_eq!(server.await.unwrap(), Drained::TimedOut { num_in_flight: 1 });
}
