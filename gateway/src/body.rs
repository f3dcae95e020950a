//! How long a request's body may take to arrive. Its size is bounded where it is read.

use std::io;
use std::time::Duration;

use actix_web::Error;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;

/// Longest time in which nothing of a body comes.
const PAUSE: Duration = Duration::from_secs(30);
/// Longest time until a body is whole: JSON, and an upload.
const WHOLE: Duration = Duration::from_secs(60);
const WHOLE_UPLOAD: Duration = Duration::from_secs(15 * 60);

/// The bounds of a server's bodies.
#[derive(Debug, Clone, Copy)]
pub struct BodyTimes {
    pub pause: Duration,
    pub whole: Duration,
    pub whole_upload: Duration,
}

impl Default for BodyTimes {
    fn default() -> Self {
        Self { pause: PAUSE, whole: WHOLE, whole_upload: WHOLE_UPLOAD }
    }
}

/// Which bound a body was over.
#[derive(Debug, thiserror::Error)]
enum Late {
    #[error("the body broke off: nothing of it came for {0:?}; send the request again")]
    Pause(Duration),
    #[error("the body was not whole after {0:?}; send a smaller one, or over a faster connection")]
    Whole(Duration),
}

/// Wraps every route: whoever reads a body has its bounds.
pub async fn in_time(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let times = request.app_data::<BodyTimes>().copied().unwrap_or_default();
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let whole = if kind.starts_with("multipart/") { times.whole_upload } else { times.whole };
    let payload = request.parts_mut().1.take();
    if !matches!(payload, Payload::None) {
        request.set_payload(Payload::Stream { payload: bounded(payload, times.pause, whole).boxed_local() });
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

/// The same bytes, or the error that they came too late. Time counts only while someone waits for them.
fn bounded(
    payload: Payload,
    pause: Duration,
    whole: Duration,
) -> impl Stream<Item = Result<Bytes, PayloadError>> + 'static {
    let bytes = futures::stream::unfold((Some(payload), None), move |(payload, deadline)| async move {
        let mut payload = payload?;
        let now = Instant::now();
        let deadline = deadline.unwrap_or(now + whole);
        let late = if now + pause < deadline { Late::Pause(pause) } else { Late::Whole(whole) };
        match timeout_at(deadline.min(now + pause), payload.next()).await {
            Ok(chunk) => Some((chunk?, (Some(payload), Some(deadline)))),
            Err(_) => Some((Err(PayloadError::Io(io::Error::new(io::ErrorKind::TimedOut, late))), (None, None))),
        }
    });
    // The reader of multipart bodies asks again after the end.
    bytes.fuse()
}

/// The answer to a body that came too late.
pub fn late(error: &PayloadError) -> Option<ApiError> {
    let PayloadError::Io(error) = error else { return None };
    let late = error.get_ref()?.downcast_ref::<Late>()?;
    Some(ApiError::new(StatusCode::REQUEST_TIMEOUT, late.to_string()).with_code("request_timeout"))
}

#[cfg(test)]
mod tests {
    use actix_web::middleware::from_fn;
    use actix_web::{App, HttpResponse, HttpServer, web};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::routes::unread;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(600);

    async fn echo(body: Result<Bytes, Error>) -> Result<HttpResponse, ApiError> {
        Ok(HttpResponse::Ok().body(body.map_err(|error| unread(&error))?))
    }

    /// A server with these bounds; sends it a head and pieces of a body, and reads until it hangs up.
    async fn answered(pause: Duration, whole: Duration, pieces: &[&str]) -> String {
        let times = BodyTimes { pause, whole, whole_upload: LONG };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let app = move || App::new().app_data(times).wrap(from_fn(in_time)).default_service(web::to(echo));
        let server = HttpServer::new(app).workers(1).disable_signals().listen(listener).unwrap().run();
        let handle = server.handle();
        tokio::spawn(server);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(SHORT / 10).await;
        }
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        handle.stop(false).await;
        reply
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_that_stops_coming_is_408_and_the_connection_is_closed() {
        for pieces in [&[][..], &["{"][..]] {
            let reply = answered(SHORT, LONG, pieces).await;
            assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("connection: close"), "{reply}");
            assert!(reply.contains("nothing of it came for 50ms") && reply.contains("\"error\""), "{reply}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_that_trickles_has_an_end_too() {
        let reply = answered(LONG, SHORT, &["{"]).await;
        assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("not whole after 50ms"), "{reply}");
    }
}
