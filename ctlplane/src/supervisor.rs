//! What does systemd learn of the daemon? Readiness, a line of status, and that it lives (sd_notify(3)).
//!
//! Without a supervisor that listens (`NOTIFY_SOCKET` is not set) nothing is sent.

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the supervisor could not be told: {error}");
    }
}

/// Requests are answered from now on.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon ends by its own will.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// It has just proved that it lives.
pub(crate) fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}
