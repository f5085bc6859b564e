//! Which column does each thing that the proxy counts belong to?

use weir_abi::columns::{
    HttpBackendColumn, HttpColumn, ListenerColumn, ProxyColumn, TcpColumn, UpstreamColumn,
};
use weir_l7::http::event::{BackendHttpCount, BreakerState, HttpCount, HttpGauge};
use weir_l7::{Accounts, BackendCount, Cause, ListenerCount};

use super::Books;

impl Accounts for &Books {
    #[inline]
    fn listener(&mut self, listener: u16, count: ListenerCount, by: u64) {
        let column = match count {
            ListenerCount::Accepted => ProxyColumn::ConnectionsAccepted,
            ListenerCount::RefusedSource => {
                let column = ListenerColumn::AccessConnections as usize;
                return self.listener.add(usize::from(listener), column, by);
            }
            ListenerCount::RefusedLimit => ProxyColumn::ConnectionsRefusedLimit,
            ListenerCount::QueueTimeouts => ProxyColumn::QueueTimeouts,
            ListenerCount::HandshakeTimeouts => ProxyColumn::HandshakeTimeouts,
            ListenerCount::IdleTimeouts => ProxyColumn::IdleTimeouts,
            ListenerCount::HalfCloseTimeouts => ProxyColumn::HalfCloseTimeouts,
            ListenerCount::ClientResets => ProxyColumn::ClientResets,
            ListenerCount::BytesIn => ProxyColumn::BytesIn,
            ListenerCount::BytesOut => ProxyColumn::BytesOut,
            ListenerCount::ProxyHeaderRefused => ProxyColumn::ProxyHeaderRefused,
            ListenerCount::NoBackend => ProxyColumn::NoBackend,
        };
        self.proxy.add(usize::from(listener), column as usize, by);
    }

    fn listener_active(&mut self, listener: u16, by: i64) {
        Books::shift(&self.proxy, usize::from(listener), ProxyColumn::ConnectionsActive as usize, by);
    }

    fn listener_queued(&mut self, listener: u16, by: i64) {
        Books::shift(&self.proxy, usize::from(listener), ProxyColumn::Queued as usize, by);
    }

    #[inline]
    fn backend(&mut self, backend: u32, count: BackendCount, by: u64) {
        let column = match count {
            BackendCount::Connects => UpstreamColumn::Connects,
            BackendCount::ConnectFailures => UpstreamColumn::ConnectFailures,
            BackendCount::ConnectTimeouts => UpstreamColumn::ConnectTimeouts,
            BackendCount::Retries => UpstreamColumn::Retries,
            BackendCount::ServerResets => UpstreamColumn::ServerResets,
            BackendCount::BytesIn => UpstreamColumn::BytesIn,
            BackendCount::BytesOut => UpstreamColumn::BytesOut,
        };
        self.upstream.add(backend as usize, column as usize, by);
    }

    fn backend_active(&mut self, backend: u32, by: i64) {
        Books::shift(&self.upstream, backend as usize, UpstreamColumn::Active as usize, by);
    }

    fn snat_exhausted(&mut self) {
        self.add_tcp(TcpColumn::SnatExhausted, 1);
    }

    fn aborted(&mut self, cause: Cause) {
        let column = match cause {
            Cause::Aborted => TcpColumn::ResetsAborted,
            Cause::Timeout => TcpColumn::ResetsTimeout,
            Cause::Limit => TcpColumn::ResetsLimit,
            Cause::Memory => TcpColumn::ResetsMemory,
        };
        self.add_tcp(column, 1);
    }

    #[inline]
    fn http(&mut self, listener: u16, count: HttpCount, by: u64) {
        let column = match count {
            HttpCount::Requests => HttpColumn::Requests,
            HttpCount::Informational => HttpColumn::Informational,
            HttpCount::Successful => HttpColumn::Successful,
            HttpCount::Redirection => HttpColumn::Redirection,
            HttpCount::ClientError => HttpColumn::ClientError,
            HttpCount::ServerError => HttpColumn::ServerError,
            HttpCount::Own => HttpColumn::Own,
            HttpCount::Retries => HttpColumn::Retries,
            HttpCount::RetriesDenied => HttpColumn::RetriesDenied,
            HttpCount::RateLimited => HttpColumn::RateLimited,
            HttpCount::RateCrowded => HttpColumn::RateCrowded,
            HttpCount::Tunnels => HttpColumn::TunnelsTotal,
            HttpCount::Mirrored => HttpColumn::Mirrored,
            HttpCount::MirrorsDropped => HttpColumn::MirrorsDropped,
            HttpCount::MirrorsSkipped => HttpColumn::MirrorsSkipped,
            HttpCount::KeepAliveTimeouts => HttpColumn::KeepAliveTimeouts,
        };
        self.http.add(usize::from(listener), column as usize, by);
    }

    #[inline]
    fn http_gauge(&mut self, listener: u16, gauge: HttpGauge, by: i64) {
        let column = match gauge {
            HttpGauge::Exchanges => HttpColumn::Exchanges,
            HttpGauge::IdleClients => HttpColumn::IdleClients,
            HttpGauge::Tunnels => HttpColumn::Tunnels,
        };
        Books::shift(&self.http, usize::from(listener), column as usize, by);
    }

    fn cause(&mut self, listener: u16, cause: weir_http::cause::Cause) {
        // numbers begin at 1
        self.cause.add(usize::from(listener), usize::from(cause as u8).saturating_sub(1), 1);
    }

    #[inline]
    fn backend_http(&mut self, backend: u32, count: BackendHttpCount, by: u64) {
        let column = match count {
            BackendHttpCount::Requests => HttpBackendColumn::Requests,
            BackendHttpCount::Reused => HttpBackendColumn::Reused,
            BackendHttpCount::ServerErrors => HttpBackendColumn::ServerErrors,
            BackendHttpCount::Failures => HttpBackendColumn::Failures,
            BackendHttpCount::BreakerOpened => HttpBackendColumn::BreakerOpened,
        };
        self.http_backend.add(backend as usize, column as usize, by);
    }

    #[inline]
    fn backend_idle(&mut self, backend: u32, by: i64) {
        Books::shift(&self.http_backend, backend as usize, HttpBackendColumn::Idle as usize, by);
    }

    fn breaker(&mut self, backend: u32, state: BreakerState) {
        for (column, of) in [
            (HttpBackendColumn::BreakerOpen, BreakerState::Open),
            (HttpBackendColumn::BreakerHalfOpen, BreakerState::HalfOpen),
        ] {
            self.http_backend.set(backend as usize, column as usize, u64::from(state == of));
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_http::cause::Cause;

    use super::*;
    use crate::books::tests::books;

    #[test]
    fn http_is_counted_by_listener_cause_and_backend() {
        let (_parent, [first, second, _], reader) = books();
        let (mut first, mut second) = (&first, &second);
        first.http(3, HttpCount::Requests, 2);
        second.http(3, HttpCount::Requests, 1);
        first.http(3, HttpCount::ServerError, 1);
        first.http_gauge(3, HttpGauge::Exchanges, 1);
        second.http_gauge(3, HttpGauge::Exchanges, -1);
        second.http_gauge(3, HttpGauge::Tunnels, 1);
        for cause in Cause::ALL {
            first.cause(3, *cause);
        }
        second.cause(3, Cause::NoRoute);
        let sum = |group, row, column| reader.group(group).unwrap().sum_of(row, column);
        assert_eq!((sum("http", 3, "requests"), sum("http", 3, "responses_5xx")), (3, 1));
        assert_eq!(
            (sum("http", 3, "exchanges"), sum("http", 3, "tunnels"), sum("http", 2, "requests")),
            (0, 1, 0)
        );
        for cause in Cause::ALL {
            let expected = if *cause == Cause::NoRoute { 2 } else { 1 };
            assert_eq!(sum("http_cause", 3, cause.code()), expected, "{cause:?}");
        }
        first.backend_http(2, BackendHttpCount::Requests, 5);
        first.backend_idle(2, 1);
        first.breaker(2, BreakerState::Open);
        second.breaker(2, BreakerState::HalfOpen);
        let breakers =
            || (sum("http_backend", 2, "breaker_open"), sum("http_backend", 2, "breaker_half_open"));
        assert_eq!(breakers(), (1, 1));
        first.breaker(2, BreakerState::Closed);
        assert_eq!(breakers(), (0, 1));
        assert_eq!((sum("http_backend", 2, "requests"), sum("http_backend", 2, "idle")), (5, 1));
        // beyond the table: not counted, no harm
        first.http(u16::MAX, HttpCount::Requests, 1);
        first.cause(u16::MAX, Cause::Memory);
        first.breaker(u32::MAX, BreakerState::Open);
    }
}
