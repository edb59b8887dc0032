//! A device's move to another tunnel server, as it is remembered. Pure.
//!
//! 1. `Queued`: it is offline. It is told when it connects (`errands.rs`).
//! 2. `Trying`: it was told, and tries the other server beside us.
//! 3. `Moved`: it says that it is there. It is told to forget us, and does (`let_go`).
//!
//! One that is to `keep` us ends in `Both` instead, and is asked now and then whether it is there still: it may have been
//! dispatched anew, to us alone.
//!
//! Undone before 3, it is told to forget the other server; undone after, it is expected back.
//!
//! Invariant: whatever addresses it was told on the way and are not wanted any more are in [`Errand::forget`] until it
//! has been told to forget them.

use homing_protocol::api::{
    ProblemDetail, Target,
    tunnel::{MoveState, Moving},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A device that has an address dials it within this time (ONVIF Uplink 26.06 §5.2: every 30 s at last).
const DIALS_WITHIN: SignedDuration = SignedDuration::from_mins(2);

/// What is to be done about where a device dials, as soon as it is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Errand {
    /// It is sent to another tunnel server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    /// Addresses that it was told and is to forget, `host:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<String>,
    /// The account that it was offered to, here, without sending it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_to: Option<String>,
}

/// A move as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// Where to.
    pub target: Target,
    /// The account that the claim is offered to.
    pub account: Option<String>,
    /// The dispatcher has that offer.
    pub offered: bool,
    /// It stays here as well.
    #[serde(default)]
    pub keep: bool,
    /// How far.
    pub state: MoveState,
    /// It has been told to forget us, and has.
    pub let_go: bool,
    /// When the state was entered.
    pub since: Timestamp,
    /// Why it does not go on.
    pub problem: Option<ProblemDetail>,
}

impl Errand {
    /// Another account may take it over: that was said here.
    pub fn is_offered(&self) -> bool {
        let moving = self.moving.as_ref().is_some_and(|moving| moving.account.is_some());
        moving || self.offered_to.is_some()
    }

    /// Nothing is to be done at the device.
    pub fn is_done(&self) -> bool {
        self.forget.is_empty() && self.moving.as_ref().is_none_or(|moving| moving.state == MoveState::Moved)
    }

    /// Another server with the same dispatcher account has it registered, too, or is about to.
    pub fn is_shared(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.account.is_none())
    }

    /// It is at another server, and not missed here.
    pub fn is_moved(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.state == MoveState::Moved)
    }

    /// It has forgotten us; without its word for that, it would have dialled again long ago.
    pub fn has_let_go(&self, now: Timestamp) -> bool {
        let long_ago = |moving: &Move| now.duration_since(moving.since) > DIALS_WITHIN;
        self.is_moved() && self.moving.as_ref().is_some_and(|moving| moving.let_go || long_ago(moving))
    }

    /// Sends it there, for good or to `keep` us as well. A move to there that is under way goes on.
    pub fn send(&mut self, target: Target, account: Option<String>, keep: bool, now: Timestamp) {
        if let Some(moving) = self.moving.as_mut().filter(|moving| moving.target == target) {
            if moving.keep != keep && matches!(moving.state, MoveState::Moved | MoveState::Both) {
                moving.enter(MoveState::Trying, now);
            }
            moving.keep = keep;
            if account.is_some() && account != moving.account {
                (moving.account, moving.offered) = (account, false);
            }
            return;
        }
        self.undo();
        self.forget.retain(|address| !target.servers.contains(address));
        let state = MoveState::Queued;
        let (offered, let_go, problem) = (account.is_none(), false, None);
        self.moving = Some(Move { target, account, offered, keep, state, let_go, since: now, problem });
    }

    /// Calls it back.
    pub fn undo(&mut self) {
        if let Some(moving) = self.moving.take()
            && matches!(moving.state, MoveState::Trying | MoveState::Both)
        {
            self.forget.extend(moving.target.servers);
        }
    }

    /// Its uplink stands: it has not let go of us, and is told again.
    pub fn connected(&mut self, now: Timestamp) {
        if let Some(moving) = self.moving.as_mut().filter(|moving| moving.state == MoveState::Moved) {
            moving.enter(MoveState::Trying, now);
        }
    }

    /// The dispatcher sends it here: by an order of before, if it is at another server.
    pub fn sent_here(&mut self) {
        if let Some(moving) = &mut self.moving {
            moving.let_go = false;
        }
    }

    /// Nothing else is to be done, whatever there is to say of it.
    pub fn is_same(&self, other: &Errand) -> bool {
        let wanted =
            |errand: &Errand| errand.moving.as_ref().map(|moving| (moving.target.clone(), moving.keep));
        self.forget == other.forget && wanted(self) == wanted(other)
    }

    /// Changes the move to this target, if it is still wanted.
    pub fn with(&mut self, target: &Target, change: impl FnOnce(&mut Move)) {
        self.moving.as_mut().filter(|moving| moving.target == *target).map(change);
    }
}

impl Move {
    /// The device got so far.
    pub fn enter(&mut self, state: MoveState, now: Timestamp) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
        self.problem = None;
    }

    /// As people are shown it.
    pub fn view(&self) -> Moving {
        Moving {
            state: self.state,
            keep: self.keep,
            servers: self.target.servers.clone(),
            since: self.since,
            problem: self.problem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn target(server: &str) -> Target {
        Target { servers: vec![server.to_owned()], trust_anchor: "PEM".into() }
    }

    #[test]
    fn what_a_device_was_told_in_vain_it_is_told_to_forget() {
        let mut errand = Errand::default();
        errand.send(target("a:1"), None, false, NOW);
        errand.undo();
        assert!(errand.is_done(), "it was not told yet");

        errand.send(target("a:1"), None, false, NOW);
        errand.with(&target("a:1"), |moving| moving.enter(MoveState::Trying, NOW));
        errand.send(target("a:1"), None, false, NOW);
        assert_eq!(errand.moving.as_ref().unwrap().state, MoveState::Trying, "it goes on");
        errand.send(target("b:1"), None, false, NOW);
        assert_eq!(errand.forget, ["a:1"]);
        errand.send(target("a:1"), None, false, NOW);
        assert_eq!(errand.forget, Vec::<String>::new(), "it is wanted again");
    }

    #[test]
    fn one_that_is_kept_is_at_both_until_that_is_undone_or_it_moves() {
        let mut errand = Errand::default();
        errand.send(target("a:1"), None, true, NOW);
        errand.with(&target("a:1"), |moving| moving.enter(MoveState::Both, NOW));
        assert!(!errand.is_done() && !errand.is_moved(), "it is asked again");
        let mut undone = errand.clone();
        undone.undo();
        assert_eq!((undone.moving, undone.forget), (None, vec!["a:1".to_owned()]));
        errand.send(target("a:1"), None, false, NOW);
        assert!(!errand.is_done(), "now it is to let go of us");
    }

    #[test]
    fn a_device_that_did_not_let_go_is_told_again() {
        let mut errand = Errand::default();
        errand.send(target("a:1"), None, false, NOW);
        errand.with(&target("a:1"), |moving| moving.enter(MoveState::Moved, NOW));
        assert!(errand.is_done() && errand.is_moved());
        assert!(!errand.has_let_go(NOW) && errand.has_let_go(NOW + DIALS_WITHIN * 2));
        errand.connected(NOW);
        assert_eq!(errand.moving.as_ref().unwrap().state, MoveState::Trying);
    }
}
