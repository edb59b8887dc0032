//! When to phone home, where to, and when to stop: steps 3, 4 and 6 as a pure state machine.
//!
//! No clock, no socket, no task: [`State::handle`] takes what has happened and gives what to do,
//! [`State::next_timeout`] says when to call it with [`Event::Tick`] at the latest. `run.rs` carries the
//! commands out. Times are durations since the agent was started.
//!
//! Why the agent is with a dispatcher at all:
//!
//! 1. *window*: the button was pressed. The agent looks for a dispatcher and waits there until the window
//!    ends or it has been dispatched.
//! 2. *falling back*: it has uplinks to tunnel servers, and none was up for long.
//!
//! Dispatched means: a dispatcher set uplinks in this session. They are tried beside the dispatcher's
//! uplink; once one is up and nothing was set for a moment (a server's second address follows the
//! first), the dispatcher is left and the uplinks of before are forgotten. If none comes up, nothing is
//! forgotten, and the agent goes back to the dispatchers.
//!
//! Invariants (a property test holds them): at most one uplink to a dispatcher, counting one that is
//! being closed; no dispatcher without a reason; while the window is open the agent is on its way to a
//! dispatcher, with one, or trying what one has just set; no uplink is forgotten before a newer one was up.

use homing_uplink::{Backoff, BackoffSettings};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long after the last SetUplink the dispatcher is kept, for a server's second address.
const SETTLE: Duration = Duration::from_secs(2);

/// How long what a dispatcher has set is tried at most before the agent goes back to the dispatchers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fallback begins within this share of [`Settings::fallback_after`], at random: thousands of devices
/// lose a tunnel server at once.
const FALLBACK_SPREAD: u32 = 10;

/// What the configuration decides.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many dispatchers are on the list.
    pub dispatchers: usize,
    /// How long the button keeps the agent phoning.
    pub press_window: Duration,
    /// How long all uplinks must have been down before the agent goes back to the dispatchers.
    pub fallback_after: Duration,
    /// Intervals between rounds through the list.
    pub backoff: BackoffSettings,
}

/// What an uplink leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Step 4: it may ask for the OAK proof, and what it sets replaces what was before.
    Dispatcher,
    /// Step 7: the tunnel server with this address.
    TunnelServer(String),
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// Step 3: the button.
    Pressed,
    /// The dispatcher that was dialled has admitted us.
    DispatcherConnected,
    /// The dispatcher that was dialled could not be reached, or dialling was given up as commanded.
    DispatcherFailed,
    /// The uplink to the dispatcher has ended, whoever ended it.
    DispatcherEnded,
    /// An uplink was set and is stored.
    UplinkSet {
        /// Its key.
        address: String,
        /// It is new, or trusts another anchor than before.
        changed: bool,
        /// Who set it.
        by: Peer,
    },
    /// An uplink was deleted, and is stored no more.
    UplinkDeleted {
        /// Its key.
        address: String,
    },
    /// A tunnel server has admitted us.
    UplinkUp {
        /// The uplink's key.
        address: String,
    },
    /// An uplink has ended or could not be made; it is tried again by itself.
    UplinkDown {
        /// Its key.
        address: String,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Step 4: dial the dispatcher with this number on the list.
    DialDispatcher(usize),
    /// Give up dialling, or close the uplink to the dispatcher. `DispatcherFailed` or `DispatcherEnded`
    /// follows.
    LeaveDispatcher,
    /// Step 6: keep an uplink up from now on; if it is kept already, begin anew with what is stored now.
    Keep(String),
    /// Stop keeping an uplink.
    Drop(String),
    /// Stop keeping an uplink, and delete it from the store.
    Forget(String),
}

/// Where the agent is with its dispatchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nowhere, and not wanted there.
    Idle,
    /// Between two attempts.
    Waiting {
        /// When the next one begins.
        until: Duration,
    },
    /// On its way to one.
    Dialing,
    /// Waiting there to be dispatched.
    Connected {
        /// Since when.
        since: Duration,
    },
    /// Told to leave; not gone yet.
    Leaving,
}

#[derive(Debug)]
struct Link {
    up: bool,
    /// The session with a dispatcher in which it was set; 0: before any.
    session: u64,
}

#[derive(Debug)]
struct Dispatched {
    session: u64,
    last_set: Duration,
    /// Until then what was set is tried alone.
    patient_until: Option<Duration>,
}

/// The state; see the module.
pub struct State {
    settings: Settings,
    random: SmallRng,
    backoff: Backoff,
    window_until: Option<Duration>,
    falling_back: bool,
    phase: Phase,
    /// When the next attempt was due before what was set was tried.
    due: Duration,
    /// The dispatcher that is dialled or connected, or next.
    dispatcher: usize,
    /// Counts uplinks to dispatchers.
    session: u64,
    links: BTreeMap<String, Link>,
    all_down_since: Option<Duration>,
    dispatched: Option<Dispatched>,
}

impl State {
    /// A state at start, with the uplinks that are stored; `seed` is random.
    pub fn new(settings: Settings, seed: u64, stored: impl IntoIterator<Item = String>) -> Self {
        let links = stored.into_iter().map(|address| (address, Link { up: false, session: 0 })).collect();
        State {
            settings,
            random: SmallRng::seed_from_u64(seed),
            backoff: Backoff::new(settings.backoff),
            window_until: None,
            falling_back: false,
            phase: Phase::Idle,
            due: Duration::ZERO,
            dispatcher: 0,
            session: 0,
            links,
            all_down_since: None,
            dispatched: None,
        }
    }

    /// What to do first: a device that was dispatched before goes straight to its tunnel servers.
    pub fn start(&mut self, now: Duration) -> Vec<Command> {
        let mut commands = self.links.keys().cloned().map(Command::Keep).collect();
        self.decide(now, &mut commands);
        commands
    }

    /// Takes what has happened at `now` (never earlier than before); gives what to do, in order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Tick => {}
            Event::Pressed => self.handle_press(now),
            Event::DispatcherConnected => {
                if self.phase == Phase::Dialing {
                    self.session += 1;
                    self.phase = Phase::Connected { since: now };
                }
            }
            Event::DispatcherFailed | Event::DispatcherEnded => self.handle_dispatcher_gone(now),
            Event::UplinkSet { address, changed, by } => {
                self.handle_uplink_set(now, address, changed, &by, &mut commands);
            }
            Event::UplinkDeleted { address } => {
                if self.links.remove(&address).is_some() {
                    commands.push(Command::Drop(address));
                }
            }
            Event::UplinkUp { address } => self.set_up(&address, true),
            Event::UplinkDown { address } => self.set_up(&address, false),
        }
        self.decide(now, &mut commands);
        commands
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Duration> {
        let attempt = match self.phase {
            Phase::Waiting { until } => Some(until),
            _ => None,
        };
        let fallback = self.all_down_since.filter(|_| !self.falling_back && self.settings.dispatchers > 0);
        let dispatched = self.dispatched.as_ref().and_then(|dispatched| {
            if self.is_up(dispatched.session) {
                Some(dispatched.last_set + SETTLE)
            } else {
                dispatched.patient_until
            }
        });
        [attempt, self.window_until, fallback.map(|since| since + self.settings.fallback_after), dispatched]
            .into_iter()
            .flatten()
            .min()
    }

    /// Where the agent is with its dispatchers.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The dispatcher that is dialled, connected or next, by its number on the list.
    pub fn dispatcher(&self) -> usize {
        self.dispatcher
    }

    /// When the window ends that the button opened, if it is open.
    pub fn window_until(&self) -> Option<Duration> {
        self.window_until
    }

    /// Whether the tunnel servers have been lost for so long that the dispatchers are asked again.
    pub fn is_falling_back(&self) -> bool {
        self.falling_back
    }

    fn handle_press(&mut self, now: Duration) {
        if self.settings.dispatchers == 0 {
            return;
        }
        self.window_until = Some(now + self.settings.press_window);
        self.backoff.reset();
        self.due = now;
        // Somebody stands there: no waiting for an interval, nor for what was set before and does not work.
        if let Phase::Waiting { until } = &mut self.phase {
            *until = now;
        }
        if let Some(dispatched) = &mut self.dispatched {
            dispatched.patient_until = None;
        }
    }

    fn handle_dispatcher_gone(&mut self, now: Duration) {
        match self.phase {
            Phase::Dialing => {
                self.dispatcher = (self.dispatcher + 1) % self.settings.dispatchers.max(1);
                // The others on the list are tried soon, the whole list again after an interval.
                let pause = if self.dispatcher == 0 {
                    let random = self.random.random();
                    self.backoff.next_interval_with(random)
                } else {
                    Duration::from_millis(self.random.random_range(100..500))
                };
                self.phase = Phase::Waiting { until: now + pause };
            }
            Phase::Connected { since } => {
                self.backoff.handle_connection_end(now.saturating_sub(since));
                let random = self.random.random();
                self.phase = Phase::Waiting { until: now + self.backoff.next_interval_with(random) };
            }
            Phase::Leaving => self.phase = Phase::Idle,
            Phase::Idle | Phase::Waiting { .. } => {}
        }
    }

    fn handle_uplink_set(
        &mut self,
        now: Duration,
        address: String,
        changed: bool,
        by: &Peer,
        commands: &mut Vec<Command>,
    ) {
        // What a tunnel server sets is as new as that server is: it is not forgotten as one of before.
        let session = match by {
            Peer::Dispatcher => self.session,
            Peer::TunnelServer(through) => self.links.get(through).map_or(0, |link| link.session),
        };
        // One that is down may have been refused for a key that is vouched for only now: no waiting.
        let begin = changed || self.links.get(&address).is_none_or(|link| !link.up);
        let link = self.links.entry(address.clone()).or_insert(Link { up: false, session });
        if begin {
            link.up = false;
            commands.push(Command::Keep(address));
        }
        if *by == Peer::Dispatcher {
            link.session = session;
            let patience = PATIENCE.min(self.settings.fallback_after);
            self.dispatched =
                Some(Dispatched { session, last_set: now, patient_until: Some(now + patience) });
        }
    }

    fn set_up(&mut self, address: &str, up: bool) {
        let Some(link) = self.links.get_mut(address) else { return };
        let was_up = std::mem::replace(&mut link.up, up);
        let session = link.session;
        if !was_up || self.is_up(session) {
            return;
        }
        // What was set has worked, and is gone: there is nothing left to be patient with.
        if let Some(dispatched) = self.dispatched.as_mut().filter(|dispatched| dispatched.session == session)
        {
            dispatched.patient_until = None;
        }
    }

    fn is_up(&self, session: u64) -> bool {
        self.links.values().any(|link| link.up && link.session == session)
    }

    /// Follows up on whatever was changed: the one place where the agent makes up its mind.
    fn decide(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if self.window_until.is_some_and(|until| now >= until) {
            self.window_until = None;
        }
        self.decide_fallback(now);
        self.decide_dispatched(now, commands);
        let patient = self.dispatched.as_ref().is_some_and(|dispatched| dispatched.patient_until.is_some());
        let wanted = self.settings.dispatchers > 0 && (self.window_until.is_some() || self.falling_back);
        match self.phase {
            Phase::Idle if wanted && !patient => {
                let pressed = self.window_until.is_some();
                let spread = self.settings.fallback_after / FALLBACK_SPREAD;
                let wait = if pressed { Duration::ZERO } else { spread.mul_f64(self.random.random()) };
                self.phase = Phase::Waiting { until: self.due.max(now + wait) };
                self.dial_if_due(now, commands);
            }
            Phase::Waiting { until } if !wanted || patient => {
                (self.phase, self.due) = (Phase::Idle, until);
            }
            Phase::Waiting { .. } => self.dial_if_due(now, commands),
            Phase::Dialing | Phase::Connected { .. } if !wanted => {
                self.phase = Phase::Leaving;
                commands.push(Command::LeaveDispatcher);
            }
            Phase::Idle | Phase::Dialing | Phase::Connected { .. } | Phase::Leaving => {}
        }
    }

    fn dial_if_due(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if matches!(self.phase, Phase::Waiting { until } if now >= until) {
            self.phase = Phase::Dialing;
            commands.push(Command::DialDispatcher(self.dispatcher));
        }
    }

    fn decide_fallback(&mut self, now: Duration) {
        if self.links.is_empty() || self.links.values().any(|link| link.up) {
            self.all_down_since = None;
            self.falling_back = false;
        } else {
            let since = *self.all_down_since.get_or_insert(now);
            self.falling_back |= now >= since + self.settings.fallback_after;
        }
    }

    /// What a dispatcher set works: leave it, and forget what was before.
    fn decide_dispatched(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let Some(dispatched) = &mut self.dispatched else { return };
        dispatched.patient_until = dispatched.patient_until.filter(|until| now < *until);
        let (session, settled) = (dispatched.session, now >= dispatched.last_set + SETTLE);
        if !self.is_up(session) || !settled {
            return;
        }
        self.dispatched = None;
        self.window_until = None;
        let old: Vec<String> = self
            .links
            .iter()
            .filter(|(_, link)| link.session != session)
            .map(|(address, _)| address.clone())
            .collect();
        for address in old {
            self.links.remove(&address);
            commands.push(Command::Forget(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn settings() -> Settings {
        Settings {
            dispatchers: 2,
            press_window: 30 * MINUTE,
            fallback_after: 10 * MINUTE,
            backoff: BackoffSettings::default(),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn set(address: &str, by_dispatcher: bool) -> Event {
        let by = if by_dispatcher { Peer::Dispatcher } else { Peer::TunnelServer("a".into()) };
        Event::UplinkSet { address: address.into(), changed: true, by }
    }

    fn up(address: &str) -> Event {
        Event::UplinkUp { address: address.into() }
    }

    fn down(address: &str) -> Event {
        Event::UplinkDown { address: address.into() }
    }

    /// Steps 3, 4 and 6: press, phone home, be dispatched, connect; then the dispatcher is left.
    #[test]
    fn press_phone_home_dispatch_connect() {
        let mut state = State::new(settings(), 1, []);
        assert_eq!(state.start(seconds(0)), []);
        assert_eq!(state.next_timeout(), None, "a device that was never pressed does nothing at all");
        assert_eq!(state.handle(seconds(1), Event::Pressed), [Command::DialDispatcher(0)]);
        assert_eq!(state.handle(seconds(2), Event::DispatcherConnected), []);
        assert_eq!(state.next_timeout(), Some(seconds(1) + 30 * MINUTE), "it waits there");
        assert_eq!(state.handle(seconds(60), set("a", true)), [Command::Keep("a".into())]);
        assert_eq!(state.handle(seconds(61), set("b", true)), [Command::Keep("b".into())]);
        assert_eq!(state.handle(seconds(61), up("b")), [], "a moment for further addresses");
        assert_eq!(state.next_timeout(), Some(seconds(63)));
        assert_eq!(state.handle(seconds(63), Event::Tick), [Command::LeaveDispatcher]);
        assert_eq!(state.handle(seconds(63), Event::DispatcherEnded), []);
        assert_eq!(state.phase(), Phase::Idle);
        assert_eq!(state.next_timeout(), None);
    }

    /// Step 6: a device that was just dispatched is sent on by its new tunnel server, before it has left the
    /// dispatcher: what it was told last is not forgotten with what was before.
    #[test]
    fn connect_sent_on_at_once_by_the_tunnel_server() {
        let mut state = State::new(settings(), 1, ["old".to_owned()]);
        state.start(seconds(0));
        state.handle(seconds(1), Event::Pressed);
        state.handle(seconds(2), Event::DispatcherConnected);
        state.handle(seconds(3), set("a", true));
        assert_eq!(state.handle(seconds(4), up("a")), []);
        assert_eq!(state.handle(seconds(4), set("b", false)), [Command::Keep("b".into())]);
        assert_eq!(
            state.handle(seconds(5), Event::Tick),
            [Command::Forget("old".into()), Command::LeaveDispatcher]
        );
    }

    /// Step 6: a new address is tried before the old one is forgotten.
    #[test]
    fn connect_to_a_new_owner_before_the_old_one_is_forgotten() {
        let mut state = State::new(settings(), 1, ["old".to_owned()]);
        assert_eq!(state.start(seconds(0)), [Command::Keep("old".into())]);
        state.handle(seconds(1), up("old"));
        assert_eq!(state.handle(seconds(2), Event::Pressed), [Command::DialDispatcher(0)]);
        state.handle(seconds(3), Event::DispatcherConnected);
        state.handle(seconds(4), set("new", true));
        assert_eq!(
            state.handle(seconds(20), down("new")),
            [],
            "the new one does not answer: nothing is lost"
        );
        assert_eq!(
            state.handle(seconds(30), up("new")),
            [Command::Forget("old".into()), Command::LeaveDispatcher]
        );
    }

    #[test]
    fn dispatched_in_vain_it_goes_back_and_keeps_the_old_one() {
        let mut state = State::new(settings(), 1, ["old".to_owned()]);
        state.start(seconds(0));
        state.handle(seconds(1), Event::Pressed);
        state.handle(seconds(2), Event::DispatcherConnected);
        state.handle(seconds(3), set("new", true));
        assert_eq!(state.handle(seconds(4), Event::DispatcherEnded), [], "first what it said is tried");
        assert_eq!(state.phase(), Phase::Idle);
        assert_eq!(state.next_timeout(), Some(seconds(63)));
        assert_eq!(state.handle(seconds(63), Event::Tick), [Command::DialDispatcher(0)]);
        // A press does not wait for that.
        state.handle(seconds(64), Event::DispatcherConnected);
        state.handle(seconds(65), set("new", true));
        state.handle(seconds(66), Event::DispatcherEnded);
        assert_eq!(state.handle(seconds(67), Event::Pressed), [Command::DialDispatcher(0)]);
        assert!(!state.handle(seconds(68), up("old")).contains(&Command::Forget("new".into())));
    }

    #[test]
    fn dispatched_and_lost_in_the_same_moment_it_goes_back_after_its_interval() {
        let mut state = State::new(settings(), 1, []);
        state.handle(seconds(1), Event::Pressed);
        state.handle(seconds(2), Event::DispatcherConnected);
        state.handle(seconds(3), set("a", true));
        state.handle(seconds(3), up("a"));
        assert_eq!(state.handle(seconds(3), Event::DispatcherEnded), []);
        assert_eq!(state.handle(seconds(4), down("a")), []);
        let due = state.next_timeout().unwrap();
        assert!(due > seconds(4) && due < seconds(3) + PATIENCE, "{due:?}");
        assert_eq!(state.handle(due, Event::Tick), [Command::DialDispatcher(0)]);
    }

    #[test]
    fn dispatchers_are_tried_in_turn_with_growing_jittered_pauses() {
        let mut state = State::new(settings(), 1, []);
        let mut commands = state.handle(seconds(0), Event::Pressed);
        let (mut tried, mut pauses, mut now) = (Vec::new(), Vec::new(), seconds(0));
        while tried.len() < 12 {
            let [Command::DialDispatcher(number)] = commands[..] else { panic!("{commands:?}") };
            tried.push(number);
            assert_eq!(state.handle(now, Event::DispatcherFailed), []);
            let next = state.next_timeout().unwrap();
            if number == 1 {
                pauses.push(next - now);
            } else {
                assert!(next - now < seconds(1));
            }
            now = next;
            commands = state.handle(now, Event::Tick);
        }
        assert_eq!(tried, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
        assert!(pauses[0] <= seconds(3) && pauses[5] > seconds(15), "{pauses:?}");
        let first_pause = |seed| {
            let mut state = State::new(Settings { dispatchers: 1, ..settings() }, seed, []);
            state.handle(seconds(0), Event::Pressed);
            state.handle(seconds(0), Event::DispatcherFailed);
            state.next_timeout()
        };
        assert_ne!(first_pause(1), first_pause(2), "two devices do not call in step");
    }

    #[test]
    fn the_window_ends_and_pressing_again_restarts_it() {
        let mut state = State::new(settings(), 1, []);
        state.handle(seconds(0), Event::Pressed);
        state.handle(seconds(1), Event::DispatcherConnected);
        assert_eq!(state.handle(20 * MINUTE, Event::Pressed), []);
        assert_eq!(state.handle(30 * MINUTE, Event::Tick), []);
        assert_eq!(state.handle(50 * MINUTE, Event::Tick), [Command::LeaveDispatcher]);
        assert_eq!(state.handle(50 * MINUTE, Event::Pressed), [], "first the old uplink must be gone");
        assert_eq!(state.handle(50 * MINUTE, Event::DispatcherEnded), [Command::DialDispatcher(0)]);
    }

    #[test]
    fn when_all_tunnel_servers_are_lost_for_long_it_falls_back_and_returns() {
        let mut state = State::new(settings(), 1, ["a".to_owned(), "b".to_owned()]);
        state.start(seconds(0));
        state.handle(seconds(1), up("a"));
        state.handle(seconds(1), up("b"));
        state.handle(seconds(100), down("a"));
        assert_eq!(state.next_timeout(), None, "losing one server loses nothing");
        state.handle(seconds(200), down("b"));
        assert_eq!(state.next_timeout(), Some(seconds(800)));
        assert_eq!(state.handle(seconds(800), Event::Tick), []);
        assert!(state.is_falling_back());
        let due = state.next_timeout().unwrap();
        assert!(due <= seconds(860));
        assert_eq!(state.handle(due, Event::Tick), [Command::DialDispatcher(0)]);
        state.handle(seconds(870), Event::DispatcherConnected);
        assert_eq!(state.handle(seconds(9000), up("a")), [Command::LeaveDispatcher]);
        assert_eq!(state.handle(seconds(9001), Event::DispatcherEnded), []);
        assert_eq!(state.phase(), Phase::Idle);
    }

    #[test]
    fn an_owner_that_deletes_the_last_uplink_has_released_the_device() {
        let mut state = State::new(settings(), 1, ["a".to_owned()]);
        state.start(seconds(0));
        state.handle(seconds(1), up("a"));
        let deleted = Event::UplinkDeleted { address: "a".into() };
        assert_eq!(state.handle(seconds(2), deleted), [Command::Drop("a".into())]);
        assert_eq!((state.phase(), state.next_timeout()), (Phase::Idle, None));
    }

    /// What carries the commands out, with the least freedom that reality has.
    #[derive(Default)]
    struct World {
        dialing: bool,
        connected: bool,
        leaving: bool,
        kept: std::collections::BTreeSet<String>,
        ever_up: std::collections::BTreeSet<String>,
        log: Vec<String>,
    }

    impl World {
        fn carry_out(&mut self, commands: Vec<Command>) -> Result<(), TestCaseError> {
            for command in commands {
                self.log.push(format!("{command:?}"));
                match command {
                    Command::DialDispatcher(number) => {
                        prop_assert!(number < 2);
                        prop_assert!(!self.dialing && !self.connected, "two at once: {:?}", self.log);
                        self.dialing = true;
                    }
                    Command::LeaveDispatcher => {
                        prop_assert!(self.dialing || self.connected, "nothing to leave: {:?}", self.log);
                        self.leaving = true;
                    }
                    Command::Keep(address) => {
                        self.ever_up.remove(&address);
                        self.kept.insert(address);
                    }
                    Command::Drop(address) => prop_assert!(self.kept.remove(&address)),
                    Command::Forget(address) => {
                        prop_assert!(self.kept.remove(&address));
                        prop_assert!(
                            self.kept.iter().any(|kept| self.ever_up.contains(kept)),
                            "forgotten with nothing to replace it: {:?}",
                            self.log
                        );
                    }
                }
            }
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_happens_the_invariants_hold(
            seed in any::<u64>(),
            steps in proptest::collection::vec((0u8..12, 0usize..3, 0u64..400), 1..120),
        ) {
            let addresses = ["a", "b", "c"];
            let mut state = State::new(settings(), seed, ["a".to_owned()]);
            let mut world = World::default();
            world.kept.insert("a".into());
            let mut now = seconds(0);
            let first = state.start(now);
            world.carry_out(first)?;
            for (kind, which, pause) in steps {
                // Time passes, and every timer that is due before is served at its time.
                let next = now + seconds(pause);
                while let Some(due) = state.next_timeout().filter(|due| *due <= next) {
                    now = due.max(now);
                    world.log.push(format!("{now:?} tick"));
                    let commands = state.handle(now, Event::Tick);
                    world.carry_out(commands)?;
                    prop_assert!(
                        state.next_timeout().is_none_or(|later| later > now),
                        "a timer stays due: {:?}", world.log
                    );
                }
                now = next;
                let address = addresses[which].to_owned();
                let event = match kind {
                    0 | 1 => Event::Pressed,
                    2 | 3 if world.dialing => {
                        (world.dialing, world.connected) = (false, true);
                        Event::DispatcherConnected
                    }
                    4 if world.dialing => {
                        (world.dialing, world.leaving) = (false, false);
                        Event::DispatcherFailed
                    }
                    5 | 6 if world.connected => {
                        (world.connected, world.leaving) = (false, false);
                        Event::DispatcherEnded
                    }
                    7 if world.connected => Event::UplinkSet {
                        address, changed: pause % 2 == 0, by: Peer::Dispatcher,
                    },
                    8 if world.kept.contains(&address) => {
                        world.ever_up.insert(address.clone());
                        Event::UplinkUp { address }
                    }
                    9 if world.kept.contains(&address) => Event::UplinkDown { address },
                    10 => {
                        let by = Peer::TunnelServer(addresses[pause as usize % 3].to_owned());
                        Event::UplinkSet { address, changed: true, by }
                    }
                    11 => Event::UplinkDeleted { address },
                    _ => Event::Tick,
                };
                world.log.push(format!("{now:?} {event:?}"));
                let commands = state.handle(now, event);
                world.carry_out(commands)?;

                let with_dispatcher = world.dialing || world.connected;
                match state.phase() {
                    Phase::Idle | Phase::Waiting { .. } => prop_assert!(!with_dispatcher, "{:?}", world.log),
                    Phase::Dialing => prop_assert!(world.dialing && !world.leaving, "{:?}", world.log),
                    Phase::Connected { .. } => prop_assert!(world.connected && !world.leaving, "{:?}", world.log),
                    Phase::Leaving => prop_assert!(with_dispatcher && world.leaving, "{:?}", world.log),
                }
                let reason = state.window_until().is_some() || state.is_falling_back();
                if !reason {
                    prop_assert!(
                        matches!(state.phase(), Phase::Idle | Phase::Leaving),
                        "with a dispatcher for no reason: {:?}", world.log
                    );
                } else if state.phase() == Phase::Idle {
                    prop_assert!(
                        state.dispatched.as_ref().is_some_and(|d| d.patient_until.is_some()),
                        "idle while pressed: {:?}", world.log
                    );
                }
                let idle_for_ever = state.next_timeout().is_none();
                prop_assert!(
                    !(idle_for_ever && reason && state.phase() == Phase::Idle),
                    "stranded: {:?}", world.log
                );
            }
        }
    }
}
