//! Happy Eyeballs (RFC 8305) as a machine: whom to start and whom to give up, when.

use crate::Refused;
use postrider_model::Timestamp;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use thiserror::Error;

/// Addresses of one destination that are tried at most; more than that is no redundancy but a mistake.
const CANDIDATES_MAX: usize = 32;

/// Bounds of a race.
#[derive(Clone, Copy, Debug)]
pub struct RaceLimits {
    /// Time until the next address is tried beside those that have not answered (RFC 8305 §5: 250 ms).
    pub stagger: Duration,
    /// Time for one address.
    pub attempt_timeout: Duration,
    /// Time for all.
    pub total_timeout: Duration,
    /// Addresses tried at once.
    pub concurrent_max: usize,
}

impl Default for RaceLimits {
    fn default() -> Self {
        RaceLimits {
            stagger: Duration::from_millis(250),
            attempt_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(60),
            concurrent_max: 3,
        }
    }
}

/// Why one address was of no use, by culprit.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// The guard: see [`Refused`].
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Us: the egress source's address cannot be bound. No other destination will fare better.
    #[error("our own address {local} cannot be bound: {error}")]
    Bind {
        /// The egress source's address.
        local: IpAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Us: the egress source has no address of this family.
    #[error("the egress source has no {} address", if *.0 { "IPv6" } else { "IPv4" })]
    NoSource(bool),
    /// Us: no descriptor, no memory, no free port.
    #[error("no socket: {0}")]
    Socket(io::Error),
    /// The peer or the way to it.
    #[error("{0}")]
    Connect(io::Error),
    /// The peer or the way to it: nothing came back.
    #[error("timed out after {0:?}")]
    TimedOut(Duration),
}

impl AttemptError {
    /// True if the fault is on our side, so that the destination must not be blamed (or backed off) for it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, AttemptError::Bind { .. } | AttemptError::NoSource(_) | AttemptError::Socket(_))
    }
}

/// One address and why it was of no use.
#[derive(Debug, Error)]
#[error("{address}: {error}")]
pub struct DialError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub error: AttemptError,
}

/// What to do next. Candidates are named by their index.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start connecting to this candidate.
    Start(usize),
    /// Stop connecting to this one.
    Abandon(usize),
    /// Nothing until then, unless an attempt ends before.
    Wait(Timestamp),
    /// This one is connected and nobody else is running.
    Won(usize),
    /// Nobody is left.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Waiting,
    Running(Timestamp),
    Connected,
    Out,
}

/// A race of connections to the addresses of one destination.
#[derive(Debug)]
pub struct Race {
    addresses: Vec<SocketAddr>,
    runners: Vec<Runner>,
    errors: Vec<DialError>,
    limits: RaceLimits,
    deadline: Timestamp,
    /// The next one may start then, even if nobody has failed.
    next_start: Timestamp,
}

impl Race {
    /// With the candidates in the order in which they are preferred (see [`interleave`]).
    #[must_use]
    pub fn new(mut addresses: Vec<SocketAddr>, limits: RaceLimits, now: Timestamp) -> Self {
        addresses.truncate(CANDIDATES_MAX);
        Race {
            runners: vec![Runner::Waiting; addresses.len()],
            addresses,
            errors: Vec::new(),
            limits,
            deadline: now + limits.total_timeout,
            next_start: now,
        }
    }

    /// A candidate's address.
    #[must_use]
    pub fn address(&self, candidate: usize) -> SocketAddr {
        self.addresses[candidate]
    }

    /// The next step; call again until it is `Wait`, `Won` or `Lost`.
    pub fn poll(&mut self, now: Timestamp) -> Step {
        if let Some(winner) = self.runners.iter().position(|runner| *runner == Runner::Connected) {
            let loser = self.runners.iter().position(|runner| matches!(runner, Runner::Running(_)));
            let extra = self.runners.iter().rposition(|runner| *runner == Runner::Connected);
            let Some(loser) = loser.or(extra.filter(|extra| *extra != winner)) else {
                return Step::Won(winner);
            };
            self.runners[loser] = Runner::Out;
            return Step::Abandon(loser);
        }
        let mut running = 0;
        let mut wake = self.deadline;
        for candidate in 0..self.runners.len() {
            if let Runner::Running(since) = self.runners[candidate] {
                let end = (since + self.limits.attempt_timeout).min(self.deadline);
                if end <= now {
                    self.runners[candidate] = Runner::Out;
                    self.note(candidate, AttemptError::TimedOut(now.since(since)));
                    return Step::Abandon(candidate);
                }
                running += 1;
                wake = wake.min(end);
            }
        }
        let next = self.runners.iter().position(|runner| *runner == Runner::Waiting);
        match next {
            Some(next) if now < self.deadline && running < self.limits.concurrent_max => {
                if running > 0 && now < self.next_start {
                    return Step::Wait(wake.min(self.next_start));
                }
                self.runners[next] = Runner::Running(now);
                self.next_start = now + self.limits.stagger;
                Step::Start(next)
            }
            _ if running > 0 => Step::Wait(wake),
            _ => Step::Lost,
        }
    }

    /// A candidate's connection stands.
    pub fn connected(&mut self, candidate: usize) {
        self.runners[candidate] = Runner::Connected;
    }

    /// A candidate failed; the next one may start at once (RFC 8305 §5).
    pub fn failed(&mut self, candidate: usize, error: AttemptError, now: Timestamp) {
        self.runners[candidate] = Runner::Out;
        self.next_start = now;
        self.note(candidate, error);
    }

    fn note(&mut self, candidate: usize, error: AttemptError) {
        self.errors.push(DialError { address: self.addresses[candidate], error });
    }

    /// Why the candidates that are out are out, in the order in which they fell. Empty when there was nobody
    /// to begin with.
    #[must_use]
    pub fn into_errors(self) -> Vec<DialError> {
        self.errors
    }
}

/// The addresses with their families taking turns, IPv6 first (RFC 8305 §4); within a family the order stays.
#[must_use]
pub fn interleave(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut v6 = addresses.iter().filter(|address| address.is_ipv6());
    let mut v4 = addresses.iter().filter(|address| address.is_ipv4());
    let mut interleaved = Vec::with_capacity(addresses.len());
    while interleaved.len() < addresses.len() {
        interleaved.extend(v6.next());
        interleaved.extend(v4.next());
    }
    interleaved
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RaceLimits = RaceLimits {
        stagger: Duration::from_millis(250),
        attempt_timeout: Duration::from_secs(10),
        total_timeout: Duration::from_secs(15),
        concurrent_max: 2,
    };

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1000)
    }

    fn race(candidates: usize) -> Race {
        let address = |i| SocketAddr::from(([192, 0, 2, u8::try_from(i).unwrap()], 25));
        Race::new((0..candidates).map(address).collect(), LIMITS, at(0))
    }

    fn refused() -> AttemptError {
        AttemptError::Connect(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn the_first_that_connects_wins_and_the_others_are_given_up() {
        let mut race = race(3);
        assert_eq!(race.poll(at(0)), Step::Start(0));
        assert_eq!(race.poll(at(0)), Step::Wait(at(250)));
        assert_eq!(race.poll(at(250)), Step::Start(1));
        race.connected(1);
        assert_eq!(race.poll(at(300)), Step::Abandon(0));
        assert_eq!(race.poll(at(300)), Step::Won(1));
    }

    #[test]
    fn a_failure_starts_the_next_at_once() {
        let mut race = race(2);
        assert_eq!(race.poll(at(0)), Step::Start(0));
        race.failed(0, refused(), at(10));
        assert_eq!(race.poll(at(10)), Step::Start(1));
        race.failed(1, refused(), at(20));
        assert_eq!(race.poll(at(20)), Step::Lost);
        assert_eq!(race.into_errors().len(), 2);
    }

    #[test]
    fn attempts_and_the_race_time_out() {
        let mut race = race(3);
        assert_eq!(race.poll(at(0)), Step::Start(0));
        assert_eq!(race.poll(at(250)), Step::Start(1));
        // Two at once is the bound.
        assert_eq!(race.poll(at(500)), Step::Wait(at(10_000)));
        assert_eq!(race.poll(at(10_000)), Step::Abandon(0));
        assert_eq!(race.poll(at(10_000)), Step::Start(2));
        assert_eq!(race.poll(at(10_250)), Step::Abandon(1));
        assert_eq!(race.poll(at(10_250)), Step::Wait(at(15_000)));
        assert_eq!(race.poll(at(15_000)), Step::Abandon(2));
        assert_eq!(race.poll(at(15_000)), Step::Lost);
        assert!(matches!(race.into_errors()[2].error, AttemptError::TimedOut(after) if after.as_secs() == 5));
    }

    #[test]
    fn of_two_that_connect_together_the_preferred_one_wins() {
        let mut race = race(2);
        assert_eq!(race.poll(at(0)), Step::Start(0));
        assert_eq!(race.poll(at(250)), Step::Start(1));
        race.connected(1);
        race.connected(0);
        assert_eq!(race.poll(at(251)), Step::Abandon(1));
        assert_eq!(race.poll(at(251)), Step::Won(0));
    }

    #[test]
    fn nobody_loses_at_once() {
        assert_eq!(race(0).poll(at(0)), Step::Lost);
    }

    #[test]
    fn families_take_turns() {
        let check = |addresses: &str, expected: &str| {
            let parse = |text: &str| text.split(' ').map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
            assert_eq!(interleave(&parse(addresses)), parse(expected));
        };
        check("1.1.1.1 1.1.1.2 1.1.1.3 ::1 ::2", "::1 1.1.1.1 ::2 1.1.1.2 1.1.1.3");
        check("1.1.1.1", "1.1.1.1");
        check("::1 ::2 1.1.1.1", "::1 1.1.1.1 ::2");
    }
}
