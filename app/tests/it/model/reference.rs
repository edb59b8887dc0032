//! Who owns what, and where each device should end up: the whole of steps 1 to 7 in as few lines as it takes.
//!
//! Pure, and written from `docs/connection-flow.md`, not from the code. [`Device::handle`] takes what happened
//! and lets everything that follows happen at once; [`Device::expected`] says what must then be seen.

/// Number of an owner, and of its tunnel server.
pub type Owner = usize;

/// What an owner has written down of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Right,
    WrongOak,
    WrongPassword,
}

/// What can happen to one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The button.
    Press,
    /// Off and on again.
    Restart,
    /// Factory default: a new key.
    Reset,
    /// Its site loses or regains the way to the dispatcher.
    Isolate(bool),
    Register(Owner, Written),
    /// OAK and password are put right.
    Correct(Owner),
    Release(Owner),
    /// To the other owner's tunnel server, both being of one mind; see [`Device::may_move`].
    Move(Owner),
}

/// Which ways are open for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// From devices to a tunnel server.
    pub entrance: [bool; 2],
    /// From a tunnel server to the dispatcher.
    pub relay: [bool; 2],
}

/// What came of a request to a tunnel server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused(&'static str),
}

/// What must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The owner that it is connected to, and no other.
    pub tunnel: Option<Owner>,
    /// Of each owner that has it registered: the problem that is shown, if any must be.
    pub problems: [Option<&'static str>; 2],
    /// It waits at the dispatcher.
    pub waits: bool,
    /// It was sent somewhere, and keeps dialling there.
    pub sent: bool,
}

#[derive(Clone, Copy, Debug)]
struct Registration {
    written: Written,
    /// It was corrected, and the dispatcher could not be told yet.
    corrected: bool,
    /// Which one was first at the dispatcher; none while it could not be told.
    since: Option<u32>,
    /// Whether the dispatcher has the secrets now: it forgets them with every dispatch.
    entrusted: bool,
    /// It may have them all the same: it asked for them again when the device phoned home, and the device left before it
    /// was dispatched, as its tunnel stood (again).
    may_be_entrusted: bool,
    /// The key that the dispatcher vouches for.
    vouched: Option<u32>,
    /// The same, as far as its tunnel server has heard of it.
    heard: Option<u32>,
    refused: Option<&'static str>,
    /// The same, as far as its tunnel server has heard of it.
    told: Option<&'static str>,
    /// Another owner has proven the OAK, or had before: refused until its own owner registers or corrects it again.
    lost: bool,
    /// It went to the other owner, and is remembered here until it is released.
    moved: bool,
}

impl Registration {
    fn lose(&mut self, code: &'static str) {
        (self.refused, self.lost) = (Some(code), true);
    }
}

/// One device and all that is known of it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    key: u32,
    clock: u32,
    pressed: bool,
    isolated: bool,
    /// Where it was sent last, with this key.
    sent: Option<Owner>,
    /// Whose it is, since its OAK was proven.
    claim: Option<Owner>,
    /// Who has released it, and could not tell the dispatcher yet.
    releasing: [bool; 2],
    registered: [Option<Registration>; 2],
}

impl Device {
    /// What happens, and everything that follows from it.
    pub fn handle(&mut self, event: Event, ways: Ways) -> Answer {
        let answer = self.take(event, ways);
        self.settle(ways);
        answer
    }

    fn take(&mut self, event: Event, ways: Ways) -> Answer {
        match event {
            Event::Press => {
                self.pressed = true;
                if let Some(owner) = self.connected(ways)
                    && let Some(registration) = &mut self.registered[owner]
                {
                    registration.may_be_entrusted = true;
                }
            }
            // Whoever has pressed and switches off presses again.
            Event::Restart => self.pressed = false,
            Event::Reset => {
                self.key += 1;
                (self.pressed, self.sent) = (false, None);
            }
            Event::Isolate(isolated) => self.isolated = isolated,
            Event::Register(owner, written) => {
                if self.registered[owner].is_some() {
                    return Answer::Refused("already-registered");
                }
                self.releasing[owner] = false;
                self.registered[owner] = Some(Registration {
                    written,
                    corrected: false,
                    since: None,
                    entrusted: false,
                    may_be_entrusted: false,
                    vouched: None,
                    heard: None,
                    refused: None,
                    told: None,
                    lost: false,
                    moved: false,
                });
                return self.answer(owner, ways, None);
            }
            Event::Correct(owner) => {
                let Some(registration) = &mut self.registered[owner] else {
                    return Answer::Refused("not-found");
                };
                let before = *registration;
                if before.vouched.is_some() {
                    return Answer::Done;
                }
                (registration.corrected, registration.told) = (true, None);
                return self.answer(owner, ways, Some(before));
            }
            Event::Move(from) => {
                let (to, key) = (1 - from, Some(self.key));
                self.clock += 1;
                let there = self.registered[from].as_mut().expect("it may move");
                let since = Some(self.clock);
                let taken = Registration { since, entrusted: false, vouched: key, heard: key, ..*there };
                (there.lost, there.moved) = (true, true);
                self.registered[to] = Some(taken);
                (self.claim, self.sent) = (Some(to), Some(to));
            }
            Event::Release(owner) => {
                if self.registered[owner].take().is_none() {
                    return Answer::Refused("not-found");
                }
                self.releasing[owner] = true;
            }
        }
        Answer::Done
    }

    /// What an owner is told at once: what the dispatcher refuses is not kept.
    fn answer(&mut self, owner: Owner, ways: Ways, before: Option<Registration>) -> Answer {
        self.settle(ways);
        if !ways.relay[owner] {
            return Answer::Done;
        }
        let Some(code) = self.registered[owner].and_then(|registration| registration.refused) else {
            return Answer::Done;
        };
        self.registered[owner] = before;
        if before.is_none() {
            self.releasing[owner] = true;
            self.settle(ways);
        }
        Answer::Refused(code)
    }

    fn settle(&mut self, ways: Ways) {
        for owner in 0..2 {
            if self.releasing[owner] && ways.relay[owner] {
                self.releasing[owner] = false;
                self.claim = self.claim.filter(|claimed| *claimed != owner);
            }
        }
        for owner in 0..2 {
            let claimed = self.claim.is_some_and(|claim| claim != owner);
            let Some(registration) = &mut self.registered[owner] else { continue };
            if ways.relay[owner] && std::mem::take(&mut registration.corrected) {
                (registration.written, registration.refused) = (Written::Right, None);
                registration.entrusted = true;
                if std::mem::take(&mut registration.lost) {
                    registration.since = None;
                }
            }
            if ways.relay[owner] && registration.since.is_none() {
                self.clock += 1;
                registration.since = Some(self.clock);
                registration.entrusted = true;
                if claimed {
                    registration.lose("claimed-by-another-account");
                }
            }
        }
        if self.phones(ways) {
            self.dispatch(ways);
        }
        for owner in 0..2 {
            if let Some(registration) = self.registered[owner].as_mut().filter(|_| ways.relay[owner]) {
                (registration.heard, registration.told) = (registration.vouched, registration.refused);
            }
        }
        if self.connected(ways).is_some() {
            self.pressed = false;
        }
    }

    /// Step 5: of those who know the OAK the first has it.
    fn dispatch(&mut self, ways: Ways) {
        let stands = |registration: Registration| registration.since.is_some() && !registration.lost;
        let mut at_the_dispatcher: Vec<Owner> =
            (0..2).filter(|owner| self.registered[*owner].is_some_and(stands)).collect();
        at_the_dispatcher
            .sort_by_key(|owner| (self.claim != Some(*owner), self.registered[*owner].unwrap().since));
        for owner in at_the_dispatcher {
            let (key, was_sent) = (self.key, self.sent == Some(owner));
            let registration = self.registered[owner].as_mut().unwrap();
            // It came back, and is asked for again.
            registration.entrusted |= ways.relay[owner];
            if !registration.entrusted {
                continue;
            }
            match registration.written {
                Written::WrongOak => registration.refused = Some("wrong-oak"),
                _ if self.claim.is_some_and(|claim| claim != owner) => {
                    registration.lose("claimed-by-another-account");
                }
                Written::WrongPassword => {
                    registration.refused = Some("wrong-credentials");
                    self.claim = Some(owner);
                }
                Written::Right => {
                    registration.refused = None;
                    registration.vouched = Some(key);
                    (registration.entrusted, registration.may_be_entrusted) = (false, was_sent);
                    (self.claim, self.sent) = (Some(owner), Some(owner));
                }
            }
        }
        // Whoever knew another OAK is told so, and stands beside the claim no more.
        if let Some(claim) = self.claim {
            let other = self.registered[1 - claim].as_mut();
            if let Some(other) = other.filter(|other| other.since.is_some() && !other.lost) {
                other.lose("wrong-oak");
            }
        }
    }

    fn connected(&self, ways: Ways) -> Option<Owner> {
        let heard = |owner: Owner| self.registered[owner].and_then(|registration| registration.heard);
        self.sent.filter(|owner| heard(*owner) == Some(self.key) && ways.entrance[*owner])
    }

    /// Whether it is not known if the dispatcher can dispatch it: then its owner's tunnel server, which cannot be asked
    /// for the secrets, has not heard of that either. Both end the same when it can be asked again.
    pub fn is_undecided(&self, ways: Ways) -> bool {
        let undecided = |owner: Owner| {
            let registration = self.registered[owner]?;
            let lacks = registration.may_be_entrusted && registration.vouched != Some(self.key);
            Some(lacks && !registration.lost && !ways.relay[owner])
        };
        self.phones(ways) && self.claim.and_then(undecided) == Some(true)
    }

    /// What must be seen now.
    pub fn expected(&self, ways: Ways) -> Expected {
        let tunnel = self.connected(ways);
        Expected {
            tunnel,
            problems: self.registered.map(|registration| registration?.told),
            waits: tunnel.is_none() && self.phones(ways) && !self.is_sent(),
            sent: self.sent.is_some(),
        }
    }

    /// Whether the button or the loss of its tunnel server makes it phone home.
    fn phones(&self, ways: Ways) -> bool {
        !self.isolated && (self.pressed || (self.sent.is_some() && self.connected(ways).is_none()))
    }

    /// Whether it was sent to somebody who would take it.
    fn is_sent(&self) -> bool {
        let registration = self.sent.and_then(|owner| self.registered[owner]);
        registration.is_some_and(|registration| registration.vouched == Some(self.key))
    }

    /// Whether it is connected to this owner, and would be taken by the other at once.
    pub fn may_move(&self, from: Owner, ways: Ways) -> bool {
        let open = ways.entrance == [true; 2] && ways.relay == [true; 2];
        let registration = self.registered[from];
        open && self.connected(ways) == Some(from)
            && self.registered[1 - from].is_none()
            && registration.is_some_and(|registration| registration.written == Written::Right)
    }

    /// Whether it went from this owner to the other.
    pub fn has_moved(&self, from: Owner) -> bool {
        self.registered[from].is_some_and(|registration| registration.moved)
    }

    /// Whether an owner has it registered.
    pub fn is_registered(&self, owner: Owner) -> bool {
        self.registered[owner].is_some()
    }

    /// Follows a change of the ways.
    pub fn handle_ways(&mut self, ways: Ways) {
        self.settle(ways);
    }
}
