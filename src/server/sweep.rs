//! Which connections have waited too long. The worker's sweep asks, twice a second: so no request arms a timer.

use std::time::Duration;

use crate::config::model::Timeouts;
use crate::gateway::connection::{ConnInfo, Phase};
use crate::policy::instant::Mono;

/// How long a client that will send no more is waited for before the first octet of its answer. Whoever has only shut its sending
/// side cannot be told from whoever has left until something was written; and most have left.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// How long a client of HTTP/2 that was told goodbye may take to answer and leave.
const GOODBYE: Duration = Duration::from_secs(2);

/// Whether an idle connection is to be told that it ends. HTTP/2 has a word for it (RFC 9113 section 9.1): whoever is about to
/// send a request then knows that it was not processed.
pub(super) fn is_goodbye(conn: &ConnInfo, now: Mono, timeouts: &Timeouts) -> bool {
    let (phase, since) = conn.phase();
    let is_over = conn.is_multiplexed() && phase == Phase::Idle && now.since(since) > timeouts.keepalive;
    is_over && !conn.is_leaving()
}

/// Whether a client of HTTP/2 has had its time to leave.
pub(super) fn must_leave(conn: &ConnInfo, now: Mono) -> bool {
    let (phase, since) = conn.phase();
    conn.is_multiplexed() && conn.is_leaving() && phase == Phase::Idle && now.since(since) > GOODBYE
}

/// Whether nobody reads what is sent: neither the client's connection nor the upstream's behind it is held for ever.
pub(super) fn is_stalled(conn: &ConnInfo, now: Mono, timeouts: &Timeouts) -> bool {
    conn.stalled_for(now) > conn.idle(timeouts.idle)
}

/// Whether a connection is to be ended now.
pub(super) fn is_overdue(conn: &ConnInfo, now: Mono, timeouts: &Timeouts) -> bool {
    if is_stalled(conn, now, timeouts) || conn.half_closed_for(now) > HALF_CLOSED {
        return true;
    }
    if conn.head_since().is_some_and(|since| now.since(since) > timeouts.header) {
        return true;
    }
    let (phase, since) = conn.phase();
    let limit = match phase {
        // It leaves by itself, with a last word; this is for one that does not come to it.
        Phase::Idle if conn.is_leaving() => 3 * GOODBYE,
        Phase::Idle if conn.is_multiplexed() => timeouts.keepalive + GOODBYE,
        Phase::Idle => timeouts.keepalive,
        Phase::Head => timeouts.header,
        Phase::Busy => return false,
    };
    now.since(since) > limit
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};

    /// In whole seconds, all different.
    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        body_idle: Duration::from_secs(30),
        response: Duration::from_secs(60),
        idle: Duration::from_secs(300),
        handshake: Duration::from_secs(7),
        keepalive: Duration::from_secs(75),
    };

    fn connection() -> (ConnInfo, Arc<SimulatedClock>) {
        let clock = SimulatedClock::shared(0);
        (ConnInfo::new(IpAddr::from([192, 0, 2, 1]), false, clock.mono()), clock)
    }

    /// Whether it ends after so many seconds and no sooner.
    async fn ends_after(conn: &ConnInfo, clock: &SimulatedClock, seconds: u64) -> bool {
        advance(Duration::from_secs(seconds)).await;
        let before = is_overdue(conn, clock.mono(), &TIMEOUTS);
        advance(Duration::from_millis(1)).await;
        !before && is_overdue(conn, clock.mono(), &TIMEOUTS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_comes_ends_by_keepalive() {
        let (conn, clock) = connection();
        assert!(ends_after(&conn, &clock, 75).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_of_http2_is_told_once_and_ends_a_little_later() {
        let (conn, clock) = connection();
        conn.multiplex(clock.mono());
        advance(Duration::from_secs(75)).await;
        assert!(!is_goodbye(&conn, clock.mono(), &TIMEOUTS));
        advance(Duration::from_millis(1)).await;
        assert!(is_goodbye(&conn, clock.mono(), &TIMEOUTS) && !is_overdue(&conn, clock.mono(), &TIMEOUTS));
        // The sweep may be late.
        advance(Duration::from_secs(9)).await;
        conn.drain(clock.mono());
        assert!(!is_goodbye(&conn, clock.mono(), &TIMEOUTS));
        advance(GOODBYE).await;
        assert!(!must_leave(&conn, clock.mono()));
        advance(Duration::from_millis(1)).await;
        assert!(must_leave(&conn, clock.mono()) && !is_overdue(&conn, clock.mono(), &TIMEOUTS));
        advance(2 * GOODBYE).await;
        assert!(is_overdue(&conn, clock.mono(), &TIMEOUTS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_ends_by_header_from_its_first_octet_however_many_follow() {
        let (conn, clock) = connection();
        advance(Duration::from_secs(70)).await;
        conn.received(&*clock);
        for _ in 0..9 {
            advance(Duration::from_secs(1)).await;
            conn.received(&*clock);
            assert!(!is_overdue(&conn, clock.mono(), &TIMEOUTS));
        }
        assert!(ends_after(&conn, &clock, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_served_has_its_own_limits_and_idleness_begins_after_it() {
        let (conn, clock) = connection();
        conn.received(&*clock);
        conn.begin(clock.mono());
        advance(Duration::from_secs(1000)).await;
        assert!(!is_overdue(&conn, clock.mono(), &TIMEOUTS));
        conn.end(clock.mono());
        assert!(ends_after(&conn, &clock, 75).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_ends_by_idle_and_one_that_takes_a_little_does_not() {
        let (conn, clock) = connection();
        conn.received(&*clock);
        conn.begin(clock.mono());
        for _ in 0..3 {
            conn.wrote(false, &*clock);
            advance(Duration::from_secs(299)).await;
            assert!(!is_overdue(&conn, clock.mono(), &TIMEOUTS));
            conn.wrote(true, &*clock);
        }
        conn.wrote(false, &*clock);
        advance(Duration::from_secs(100)).await;
        // Tried again, and nothing taken again: the time runs on.
        conn.wrote(false, &*clock);
        assert!(ends_after(&conn, &clock, 200).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_ends_by_idle_of_its_route_until_the_next_request_begins() {
        let (conn, clock) = connection();
        for seconds in [20, 1000] {
            conn.begin(clock.mono());
            conn.set_idle(Duration::from_secs(seconds));
            conn.wrote(false, &*clock);
            // All of the answer is handed over, and not taken.
            conn.end(clock.mono());
            // Less than a connection between two requests has.
            advance(Duration::from_secs(70)).await;
            assert_eq!(is_overdue(&conn, clock.mono(), &TIMEOUTS), seconds == 20);
            conn.wrote(true, &*clock);
        }
        conn.begin(clock.mono());
        conn.wrote(false, &*clock);
        assert!(ends_after(&conn, &clock, 300).await);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_requests_at_once_the_most_patient_one_decides() {
        let (conn, clock) = connection();
        conn.multiplex(clock.mono());
        for seconds in [20, 400, 30] {
            conn.begin(clock.mono());
            conn.set_idle(Duration::from_secs(seconds));
        }
        conn.wrote(false, &*clock);
        assert!(ends_after(&conn, &clock, 400).await);
        let (conn, clock) = connection();
        conn.multiplex(clock.mono());
        conn.begin(clock.mono());
        conn.set_idle(Duration::from_secs(20));
        conn.wrote(false, &*clock);
        assert!(ends_after(&conn, &clock, 300).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_more_and_gets_nothing_is_soon_taken_to_have_left() {
        let (conn, clock) = connection();
        conn.received(&*clock);
        conn.begin(clock.mono());
        conn.stops_sending(&*clock);
        advance(Duration::from_millis(500)).await;
        // Told again, the time runs on.
        conn.stops_sending(&*clock);
        advance(Duration::from_millis(499)).await;
        assert!(!is_overdue(&conn, clock.mono(), &TIMEOUTS));
        advance(Duration::from_millis(2)).await;
        assert!(is_overdue(&conn, clock.mono(), &TIMEOUTS));
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_more_and_takes_what_comes_is_served_to_the_end() {
        let (conn, clock) = connection();
        conn.received(&*clock);
        conn.begin(clock.mono());
        conn.stops_sending(&*clock);
        conn.wrote(true, &*clock);
        advance(Duration::from_secs(1000)).await;
        assert!(!is_overdue(&conn, clock.mono(), &TIMEOUTS));
    }
}
