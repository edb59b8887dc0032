//! What is remembered of one registration, and how it changes by what the dispatcher says. Pure.
//!
//! Invariant: what the dispatcher said later is never undone by what it said earlier (its `seq` decides), and a step
//! that was carried out here (7, tunnel) is not taken back by the dispatcher's account of step 5.

use crate::{moves::Errand, passwords::Password};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem, ProblemDetail, Target,
        dispatcher::{ANOTHER_KEY, Contested, Registration, RegistrationState},
        tunnel::{Access, MoveState, RelayState},
    },
};
use homing_uplink::Fingerprint;
use jiff::Timestamp;

/// The problem codes of a device with which somebody else has used our dispatcher account: dispatched by his
/// registration, or handed over to him.
const FOREIGN_REGISTRATION: &str = "foreign-registration";
const NOT_OFFERED_HERE: &str = "not-offered-here";

/// A registration without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whose.
    pub serial: SerialNumber,
    /// What people call it.
    pub name: String,
    /// Anything worth knowing.
    pub description: String,
    /// The device's user.
    pub user: String,
    /// What the proxy gives of it.
    pub access: Access,
    /// How far it has come.
    pub standing: Standing,
}

/// How far a registration has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// How it stands with the dispatcher.
    pub relay: RelayState,
    /// The last step that was carried out.
    pub step: Step,
    /// Place of the dispatcher's last word in its sequence of changes.
    pub seq: u64,
    /// The key that the dispatcher vouched for.
    pub fingerprint: Option<Fingerprint>,
    /// Another tunnel server vouched for the key, and the dispatcher has not been told that the device came.
    pub adopted: bool,
    /// What went wrong last between us and the dispatcher, or in step 5.
    pub problem: Option<ProblemDetail>,
    /// Others have tried to register it.
    pub contested: Option<Contested>,
    /// Whose its password is.
    pub password: Password,
    /// Where it is sent.
    pub errand: Errand,
}

impl Standing {
    /// Of a registration that was just entered.
    pub fn registered() -> Self {
        Standing {
            relay: RelayState::Pending,
            step: Step::Register,
            seq: 0,
            fingerprint: None,
            adopted: false,
            problem: None,
            contested: None,
            password: Password::Unknown,
            errand: Errand::default(),
        }
    }

    /// Of one that comes from another tunnel server: its key is welcome at once.
    pub fn handed_over(fingerprint: Fingerprint) -> Self {
        Standing { fingerprint: Some(fingerprint), adopted: true, ..Standing::registered() }
    }

    /// It is still to be relayed. One that has moved away is the other server's to relay.
    pub fn is_pending(&self) -> bool {
        self.relay == RelayState::Pending && !self.errand.is_moved()
    }

    /// Somebody waits at the dispatcher and says that he is this device, with another key.
    pub fn is_doubted(&self) -> bool {
        self.is_pending() && self.problem.as_ref().is_some_and(|problem| problem.code == ANOTHER_KEY)
    }

    /// Somebody else uses our account, and is to be shown even while the device is connected.
    pub fn is_misused(&self) -> bool {
        let code = self.problem.as_ref().map(|problem| problem.code.as_str());
        matches!(code, Some(FOREIGN_REGISTRATION | NOT_OFFERED_HERE))
    }

    /// It has come without the dispatcher, which is to be told so.
    pub fn has_arrived(&self) -> bool {
        self.adopted && self.step == Step::Tunnel && self.relay == RelayState::Waiting
    }

    /// It is at the other tunnel server, and was told to forget us. A dispatch that began before may send it here all the
    /// same: then it is told again.
    pub fn let_go(&mut self, target: &Target, is_gone: bool, now: Timestamp) {
        let is_on_its_way = self.relay == RelayState::Dispatching;
        self.errand.with(target, |moving| {
            moving.let_go = !is_on_its_way;
            // That its uplink here stood may have been noted only now.
            if is_gone {
                moving.enter(MoveState::Moved, now);
            }
        });
    }

    /// The account that its claim is still to be offered to.
    pub fn to_offer(&self) -> Option<&str> {
        self.errand.moving.as_ref().filter(|moving| !moving.offered)?.account.as_deref()
    }

    /// Something of it is still to be told to the dispatcher.
    pub fn is_to_tell(&self) -> bool {
        self.is_pending() || self.has_arrived() || self.to_offer().is_some()
    }

    /// Step 5: takes what the dispatcher says of this registration by itself. While something is still to be relayed,
    /// what it says of the version before is not the last word.
    pub fn hear_change(&mut self, told: &Registration) {
        let (relay, problem) = (self.relay, self.problem.clone());
        let of_before = matches!(told.state, RegistrationState::Waiting | RegistrationState::Refused);
        self.hear(told);
        if relay == RelayState::Pending && of_before {
            (self.relay, self.problem) = (relay, problem);
        }
    }

    /// Steps 2 and 5: takes what the dispatcher says of this registration.
    pub fn hear(&mut self, told: &Registration) {
        if told.seq < self.seq {
            return;
        }
        self.seq = told.seq;
        self.contested = told.contested.clone();
        if told.state == RegistrationState::Transferred {
            return self.transferred(told);
        }
        if told.state == RegistrationState::Dispatching {
            self.errand.sent_here();
        }
        let known = self.fingerprint;
        let told_key = told.fingerprint.as_deref().and_then(|text| text.parse::<Fingerprint>().ok());
        let same_key = told_key.is_none() || told_key == known;
        let is_vouched = same_key || told.voucher.is_some();
        if is_vouched && told_key.is_some() {
            self.fingerprint = told_key;
        }
        self.relay = match told.state {
            RegistrationState::Waiting => RelayState::Waiting,
            RegistrationState::Dispatching => RelayState::Dispatching,
            RegistrationState::Dispatched => RelayState::Dispatched,
            RegistrationState::Refused | RegistrationState::Transferred => RelayState::Refused,
            // The dispatcher has forgotten the credentials, as it should: they are sent again.
            RegistrationState::Returned => RelayState::Pending,
        };
        let dispatching = matches!(self.relay, RelayState::Dispatching | RelayState::Dispatched);
        // The device may be here before the dispatcher has told that it is on its way, or without it.
        if !(self.step == Step::Tunnel && same_key && (dispatching || self.adopted)) {
            self.step = told.step.max(Step::Relay);
        }
        if dispatching && !is_vouched && !self.errand.is_shared() {
            // Whoever it was, it is not the device that was registered here: what is known of that one stays.
            let message = "The dispatcher has dispatched another device with this serial number, by a registration that \
                is not this tunnel server's: another tunnel server uses its account, or somebody has the account's \
                password. If that is nobody of yours, have the account's password changed; then delete the device \
                here and register it again.";
            self.problem = Some(Problem::at(Step::Dispatch, FOREIGN_REGISTRATION, message).error);
            return;
        }
        self.adopted &= !dispatching;
        self.problem = told.problem.clone();
    }

    /// The account that the device was offered to has taken it over: it is sent after its claim. Only if it was offered
    /// here: whoever has the account's password may have offered it to himself.
    fn transferred(&mut self, told: &Registration) {
        self.adopted = false;
        let is_known = self.fingerprint.is_some();
        match told.next.clone() {
            Some(target) if is_known && self.errand.is_offered() => {
                return self.errand.send(target, None, false, told.since);
            }
            Some(target) if is_known => {
                let message = format!(
                    "Another account has taken this device over, and wants it at {}; it was not offered to it here. If \
                     you know of that, move it there or delete it here; else have the password of this tunnel \
                     server's dispatcher account changed, and ask the dispatcher's operator to release the device.",
                    target.servers.join(", ")
                );
                return self.relay_refused(Problem::at(Step::Relay, NOT_OFFERED_HERE, message).error);
            }
            _ => (),
        }
        let message = "Another account has taken this device over before it came here; delete it.";
        self.relay_refused(Problem::at(Step::Relay, "transferred", message).error);
    }

    /// Step 2 failed, and is tried again by itself.
    pub fn relay_later(&mut self, problem: ProblemDetail) {
        self.relay = RelayState::Pending;
        self.problem = Some(problem);
    }

    /// Step 2 was refused.
    pub fn relay_refused(&mut self, problem: ProblemDetail) {
        self.relay = RelayState::Refused;
        self.problem = Some(problem);
    }

    /// One that moved away is to come back: it is ours to relay again.
    pub fn call_back(&mut self) {
        if self.errand.is_moved() {
            self.adopted = self.fingerprint.is_some();
            (self.relay, self.step) = (RelayState::Pending, Step::Register);
        }
        self.errand.undo();
    }

    /// Step 7: its uplink stands.
    pub fn tunnelled(&mut self, now: Timestamp) {
        if self.errand.has_let_go(now) {
            self.call_back();
        }
        // It was relayed again, and came by itself: the dispatcher is to forget its secrets.
        let at_dispatcher = matches!(self.relay, RelayState::Waiting | RelayState::Refused);
        if at_dispatcher && self.fingerprint.is_some() && !self.errand.is_moved() {
            (self.adopted, self.relay) = (true, RelayState::Waiting);
        }
        if !self.adopted {
            self.relay = RelayState::Dispatched;
        }
        self.step = Step::Tunnel;
        if !self.is_misused() {
            self.problem = None;
        }
        self.errand.connected(now);
    }

    /// The dispatcher has lost its memory: what it was still to do is asked of it again.
    pub fn dispatcher_forgot(&mut self) {
        self.seq = 0;
        if self.relay != RelayState::Dispatched {
            self.relay = RelayState::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::api::Problem;

    fn told(seq: u64, state: RegistrationState, step: Step, key: Option<u8>) -> Registration {
        Registration {
            serial: SerialNumber::new([0, 0x40, 0x8C, 1, 2, 3]),
            state,
            fingerprint: key.map(|key| Fingerprint([key; 32]).to_string()),
            voucher: key.map(|_| "ours".to_owned()),
            problem: None,
            step,
            since: jiff::Timestamp::UNIX_EPOCH,
            seq,
            next: None,
            contested: None,
        }
    }

    #[test]
    fn step_5_told_late_does_not_undo_step_7() {
        let mut standing = Standing::registered();
        standing.hear(&told(1, RegistrationState::Waiting, Step::Relay, None));
        assert_eq!((standing.relay, standing.step), (RelayState::Waiting, Step::Relay));
        standing.hear(&told(2, RegistrationState::Dispatching, Step::PhoneHome, Some(1)));
        assert_eq!(standing.fingerprint, Some(Fingerprint([1; 32])));
        standing.tunnelled(Timestamp::UNIX_EPOCH);
        standing.hear(&told(3, RegistrationState::Dispatched, Step::Dispatch, Some(1)));
        assert_eq!((standing.relay, standing.step, standing.seq), (RelayState::Dispatched, Step::Tunnel, 3));
    }

    #[test]
    fn step_2_a_correction_that_is_still_to_be_relayed_is_not_forgotten() {
        let mut standing = Standing::registered();
        standing.hear(&told(1, RegistrationState::Waiting, Step::Relay, None));
        standing.relay_later(Problem::at(Step::Relay, "dispatcher-unreachable", "away").error);
        standing.hear_change(&told(2, RegistrationState::Refused, Step::PhoneHome, None));
        assert_eq!(standing.relay, RelayState::Pending, "the corrected one is still to be sent");
        assert_eq!(standing.seq, 2);
        standing.hear(&told(3, RegistrationState::Waiting, Step::Relay, None));
        assert_eq!(standing.relay, RelayState::Waiting, "it was");
        standing.relay_later(Problem::at(Step::Relay, "dispatcher-unreachable", "away").error);
        standing.hear_change(&told(4, RegistrationState::Dispatching, Step::PhoneHome, Some(1)));
        assert_eq!(standing.relay, RelayState::Dispatching, "it was good enough");
    }

    #[test]
    fn an_older_word_is_not_heard() {
        let mut standing = Standing::registered();
        standing.hear(&told(7, RegistrationState::Dispatched, Step::Dispatch, Some(1)));
        let before = standing.clone();
        standing.hear(&told(6, RegistrationState::Waiting, Step::Relay, Some(2)));
        assert_eq!(standing, before);
    }

    #[test]
    fn a_device_that_came_back_is_relayed_again_and_gets_a_new_key() {
        let mut standing = Standing::registered();
        standing.hear(&told(1, RegistrationState::Dispatched, Step::Dispatch, Some(1)));
        standing.tunnelled(Timestamp::UNIX_EPOCH);
        standing.hear(&told(2, RegistrationState::Returned, Step::PhoneHome, None));
        assert_eq!((standing.relay, standing.step), (RelayState::Pending, Step::PhoneHome));
        assert_eq!(standing.fingerprint, Some(Fingerprint([1; 32])), "until the new one is vouched for");
        standing.hear(&told(3, RegistrationState::Dispatched, Step::Dispatch, Some(2)));
        assert_eq!(standing.step, Step::Dispatch, "the new key has not been here");
        assert_eq!(standing.fingerprint, Some(Fingerprint([2; 32])));
    }

    #[test]
    fn a_dispatch_that_began_before_a_move_does_not_undo_it() {
        let (there, now) =
            (Target { servers: vec!["b:1".into()], trust_anchor: String::new() }, Timestamp::UNIX_EPOCH);
        let moved = |standing: &mut Standing| {
            standing.errand.send(there.clone(), Some("beta".into()), false, now);
            standing.errand.with(&there, |moving| moving.enter(MoveState::Moved, now));
            standing.let_go(&there, true, now);
        };
        let is_wanted_there =
            |standing: &Standing| standing.errand.moving.as_ref().map(|moving| moving.state);

        let mut at_home = Standing::registered();
        at_home.hear(&told(1, RegistrationState::Dispatched, Step::Dispatch, Some(1)));
        at_home.tunnelled(now);
        let mut on_its_way = at_home.clone();
        moved(&mut at_home);
        let mut sent_late = at_home.clone();
        at_home.tunnelled(now);
        assert_eq!(is_wanted_there(&at_home), None, "it was sent back by the other server");

        on_its_way.hear(&told(2, RegistrationState::Dispatching, Step::PhoneHome, Some(1)));
        moved(&mut on_its_way);
        on_its_way.tunnelled(now);
        assert_eq!(is_wanted_there(&on_its_way), Some(MoveState::Trying), "it is told again");

        sent_late.hear(&told(2, RegistrationState::Dispatching, Step::PhoneHome, Some(1)));
        sent_late.tunnelled(now);
        assert_eq!(is_wanted_there(&sent_late), Some(MoveState::Trying), "it is told again");
    }

    #[test]
    fn a_dispatcher_that_forgot_is_told_again_what_it_was_to_do() {
        let mut waiting = Standing::registered();
        waiting.hear(&told(9, RegistrationState::Waiting, Step::Relay, None));
        waiting.dispatcher_forgot();
        assert_eq!((waiting.relay, waiting.seq), (RelayState::Pending, 0));
        let mut tunnelled = Standing::registered();
        tunnelled.tunnelled(Timestamp::UNIX_EPOCH);
        tunnelled.dispatcher_forgot();
        assert_eq!(tunnelled.relay, RelayState::Dispatched);
    }
}
