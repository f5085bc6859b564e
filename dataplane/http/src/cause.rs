//! Why did the proxy answer by itself, or end an exchange? One code for each failure, in the log and in the `weir-cause` header.

macro_rules! causes {
    ($($(#[$doc:meta])* $cause:ident = $number:literal, $code:literal, $status:literal;)+) => {
        /// Why the proxy answered by itself or ended an exchange.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Cause { $($(#[$doc])* $cause = $number),+ }

        impl Cause {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$cause),+];

            /// The code, as the log and the header have it.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$cause => $code),+ }
            }

            /// The status that the client gets, where it still can; 0: none, the connection is closed.
            pub const fn status(self) -> u16 {
                match self { $(Self::$cause => $status),+ }
            }

            /// The cause of a number.
            pub fn from_u8(number: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|cause| *cause as u8 == number)
            }
        }
    };
}

causes! {
    /// The request is not HTTP/1.1 or not as RFC 9112 wants it.
    RequestMalformed = 1, "request-malformed", 400;
    /// The request's length is ambiguous: RFC 9112 §6.1, §6.3.
    RequestFraming = 2, "request-framing", 400;
    /// The chunked body is malformed.
    RequestChunk = 3, "request-chunk", 400;
    /// `Host` missing, repeated or invalid (RFC 9112 §3.2).
    RequestHost = 4, "request-host", 400;
    /// The URI is longer than the limit.
    UriTooLong = 5, "uri-too-long", 414;
    /// Headers are larger or more than the limits.
    HeaderTooLarge = 6, "header-too-large", 431;
    /// The body is larger than the limit.
    BodyTooLarge = 7, "body-too-large", 413;
    /// The version is not 1.0 or 1.1.
    VersionUnsupported = 8, "version-unsupported", 505;
    /// A transfer coding other than chunked (RFC 9112 §6.1).
    CodingUnsupported = 9, "coding-unsupported", 501;
    /// An expectation other than 100-continue (RFC 9110 §10.1.1).
    ExpectationUnsupported = 10, "expectation-unsupported", 417;
    /// CONNECT, or another method that the listener doesn't allow.
    MethodRefused = 11, "method-refused", 405;
    /// An upgrade that the listener doesn't allow.
    UpgradeRefused = 12, "upgrade-refused", 400;
    /// The request's head took too long.
    RequestHeaderTimeout = 13, "request-header-timeout", 408;
    /// The request's body stopped, or was slower than the least rate.
    RequestBodyTimeout = 14, "request-body-timeout", 408;
    /// The client closed or reset its connection within the exchange.
    ClientClosed = 15, "client-closed", 0;
    /// No route and no default pool.
    NoRoute = 16, "no-route", 404;
    /// A rate limit.
    RateLimited = 17, "rate-limited", 429;
    /// Too many connections of this client's address.
    ClientConnections = 18, "client-connections", 429;
    /// The worker's memory is at its ceiling.
    Memory = 19, "memory", 503;
    /// No backend of the pool may be used: down, or its breaker is open.
    NoBackend = 20, "no-backend", 503;
    /// All backends are at their limits, and the queue is full.
    QueueFull = 21, "queue-full", 503;
    /// All backends stayed at their limits.
    QueueTimeout = 22, "queue-timeout", 503;
    /// No connection to a backend: it refused.
    ConnectFailed = 23, "connect-failed", 502;
    /// No connection to a backend in time, or nobody has its address.
    ConnectTimeout = 24, "connect-timeout", 504;
    /// No source address and port is free towards the backend.
    SourceExhausted = 25, "source-exhausted", 503;
    /// The backend closed or reset its connection before its response.
    ResponseMissing = 26, "response-missing", 502;
    /// The backend's response is not HTTP.
    ResponseMalformed = 27, "response-malformed", 502;
    /// The backend's headers are larger than the limits.
    ResponseTooLarge = 28, "response-too-large", 502;
    /// No response from the backend in time.
    ResponseTimeout = 29, "response-timeout", 504;
    /// The backend's body ended early or is malformed; the client's connection was ended.
    ResponseTruncated = 30, "response-truncated", 0;
    /// The backend's body stopped; the client's connection was ended.
    ResponseIdle = 31, "response-idle", 0;
    /// The client took too long to read; its connection was ended.
    ClientSlow = 32, "client-slow", 0;
    /// A tunnel was silent for too long.
    TunnelTimeout = 33, "tunnel-timeout", 0;
    /// The backend was taken out of service within the exchange.
    BackendDown = 34, "backend-down", 502;
    /// The backend sent more interim responses (1xx) than are passed on, and no final one.
    ResponseInterim = 35, "response-interim", 502;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_are_unique() {
        for (at, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at + 1);
            assert_eq!(Cause::from_u8(*cause as u8), Some(*cause));
            assert!(Cause::ALL.iter().skip(at + 1).all(|other| other.code() != cause.code()));
        }
        assert_eq!(Cause::from_u8(0), None);
        assert_eq!(Cause::from_u8(Cause::ALL.len() as u8 + 1), None);
    }
}
