//! When two states are the same: everything that can still make a difference, mixed into one number.
//!
//! Left out is what cannot: the numbers of calls, instants that have passed, the rate (it is set after every event), the
//! last use (a scenario says when a stash is idle). Every field of a lease is named here, so that a new one is thought of.

use std::hash::{Hash, Hasher};

use super::world::{Message, Stage, World};
use super::*;

/// A multiplication and a shift for each word: good enough to tell a million states apart, and quick.
struct Mix(u64);

impl Mix {
    fn fold(&mut self, word: u64) {
        let product = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.fold(u64::from(*byte)));
    }

    fn write_u8(&mut self, n: u8) {
        self.fold(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.fold(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }
}

impl World {
    pub(super) fn fingerprint(&self, scenario: &Scenario) -> u64 {
        let mut mix = Mix(1);
        (self.now, self.calls_made, &self.ledger, &self.left, &self.spent, &self.lost).hash(&mut mix);
        for (n, replica) in self.replicas.iter().enumerate() {
            let eye = Eye { scenario, replica: n, now: scenario.mono(n, self.now) };
            eye.hash_lease(&replica.lease, &mut mix);
            (replica.queue, replica.recall, replica.admitted).hash(&mut mix);
            replica.watch.hash_with(|at| eye.ahead(at), &mut mix);
        }
        for message in &self.messages {
            hash_message(message, &mut mix);
        }
        mix.finish()
    }
}

/// Looks at one replica at one time.
struct Eye<'a> {
    scenario: &'a Scenario,
    replica: usize,
    now: Mono,
}

impl Eye<'_> {
    /// When `at` will have come: how many of the scenario's instants are before it. All of the past is the same, and so is all
    /// that lies between two instants (but where time stops at deadlines, too).
    fn ahead(&self, at: Mono) -> u64 {
        if at <= self.now {
            return 0;
        }
        if self.scenario.edges.is_some() {
            return at.0;
        }
        let instants = self.scenario.instants;
        instants.iter().filter(|instant| self.scenario.mono(self.replica, **instant) < at).count() as u64
    }

    fn stash(&self, stash: &Option<Stash>) -> impl Hash + use<> {
        stash
            .map(|stash| (stash.minute, stash.tokens, self.ahead(stash.start), self.ahead(stash.deadline), stash.known))
    }

    fn hash_lease(&self, lease: &SubjectLease, mix: &mut Mix) {
        let SubjectLease {
            limits: _,
            demand: _,
            clock,
            known,
            shown,
            grant,
            early,
            size,
            low_mark,
            early_at,
            jitter: _,
            early_asked,
            denied,
            second_look,
            soft,
            retry_at,
            single_until,
            owed,
            return_due,
            debts,
            local: _,
            alone: _,
            seen,
            counted,
            call,
            calls_made: _,
            last_used: _,
            stopped,
            rule: _,
        } = lease;
        (clock.map(|clock| clock.micros(self.now)), known, shown, size, low_mark).hash(mix);
        (self.stash(grant), self.stash(early), self.ahead(*early_at), early_asked).hash(mix);
        let denied = denied.filter(|denial| self.now < denial.until);
        (denied.map(|denial| (denial.minute, self.ahead(denial.until))), second_look, soft).hash(mix);
        (self.ahead(*retry_at), self.ahead(*single_until), self.ahead(lease.recalled_at())).hash(mix);
        (owed, return_due.map(|due| self.ahead(due)), debts).hash(mix);
        (seen, counted, call.map(|call| call.without_id()), stopped).hash(mix);
    }
}

fn hash_message(message: &Message, mix: &mut Mix) {
    (message.replica, message.awaited, message.orphan).hash(mix);
    match &message.stage {
        Stage::Sent => (0_u8, &message.call.request).hash(mix),
        Stage::Executed(reply) if message.awaited => (1_u8, reply).hash(mix),
        // Nothing of these makes a difference any more, but for the tokens where a mistake takes them.
        Stage::Executed(reply) => (2_u8, reply.minute, reply.granted).hash(mix),
        Stage::Delivered(reply) => (3_u8, reply.minute, reply.granted).hash(mix),
    }
}
